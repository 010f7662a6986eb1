# SPDX-License-Identifier: MIT
"""Make `python -m uffdswap` the same as the `uffdswap` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
