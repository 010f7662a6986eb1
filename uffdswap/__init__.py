# SPDX-License-Identifier: MIT
"""Swap of its own, in user space, for any Linux program.

This module is the public API and nothing else. It imports nothing heavy: `uffdswap run` pays for
every import before the program starts.
"""

from .errors import UffdswapError
from .units import format_size, parse_size

__all__ = ("UffdswapError", "__version__", "format_size", "parse_size")

__version__ = "0.1.0"
