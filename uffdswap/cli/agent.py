# SPDX-License-Identifier: MIT
"""`uffdswap agent`, `shim-path` and `link-flags`: programs that join without a launcher."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..runtime import link_flags, shim_path, standing_path
from ..standing import StandingAgent, defaults_of
from ._execute import print_line
from ._options import Disk, NoDisk, NoDiskEncryption, OnFull

__all__ = ("agent", "print_link_flags", "print_shim_path")


def agent(  # noqa: PLR0913, PLR0917 # one parameter an option, for typer
    socket: Annotated[
        str | None,
        typer.Option("--socket", metavar="PATH", show_default=False, help="Listen there."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            "-m",
            metavar="SIZE",
            show_default=False,
            help="Budget of a program that does not say its own (UFFDSWAP_MEMORY).",
        ),
    ] = None,
    resident: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            show_default=False,
            help="Limit on resident anonymous memory, likewise (UFFDSWAP_RESIDENT).",
        ),
    ] = None,
    disk: Disk = None,
    no_disk: NoDisk = 0,
    no_disk_encryption: NoDiskEncryption = 0,
    on_full: OnFull = None,
) -> None:
    """Manage the programs that join by libuffdswap.so alone.

    Stays in the foreground. A program joins by

    LD_PRELOAD=$(uffdswap shim-path) UFFDSWAP_SOCKET=PATH UFFDSWAP_MEMORY=512M PROGRAM

    A program that links the library needs no LD_PRELOAD: cc program.c $(uffdswap link-flags). Each
    program has, with its children, a session and a budget of its own. What its variables do not say
    is as these options say, or the same variables of the agent.
    """
    options = {
        "memory": memory,
        "resident": resident,
        "disk": "\n".join(disk) if disk else None,
        "no_disk": str(no_disk) if no_disk else None,
        "no_disk_encryption": str(no_disk_encryption) if no_disk_encryption else None,
        "on_full": on_full,
    }
    given = {name: text for name, text in options.items() if text is not None}
    defaults = defaults_of(given, os.environ)
    path = socket or standing_path(os.environ)
    StandingAgent(str(Path(path).absolute()), defaults, os.environ, print_line).serve()


def print_shim_path() -> None:
    """Print where libuffdswap.so is, for LD_PRELOAD."""
    print(shim_path())


def print_link_flags() -> None:
    """Print the compiler's options to link libuffdswap.so.

    cc program.c $(uffdswap link-flags)
    """
    print(shlex.join(link_flags()))
