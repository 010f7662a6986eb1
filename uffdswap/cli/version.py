# SPDX-License-Identifier: MIT
"""`uffdswap version`: what is installed here, for a report of a problem."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from .. import __version__

__all__ = ("uffdswap", "version")


def version() -> None:
    """Print the version, and those of what it runs on."""
    system = platform.uname()
    print(f"uffdswap {__version__}")
    print(f"Python {platform.python_version()}, {system.system} {system.release} {system.machine}")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        version()
        raise typer.Exit


def uffdswap(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Swap of its own, in user space, for any Linux program."""
