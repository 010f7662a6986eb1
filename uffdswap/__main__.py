# SPDX-License-Identifier: MIT
"""Make `python -m uffdswap` the same as the `uffdswap` command."""

from .entry import run

if __name__ == "__main__":
    run()
