# SPDX-License-Identifier: MIT
"""`uffdswap version`: what is installed here, for a report of a problem."""

from __future__ import annotations

import platform

from .. import __version__

__all__ = ("version",)


def version() -> None:
    """Print the version, and those of what it runs on."""
    system = platform.uname()
    print(f"uffdswap {__version__}")
    print(f"Python {platform.python_version()}, {system.system} {system.release} {system.machine}")
