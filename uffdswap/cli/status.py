# SPDX-License-Identifier: MIT
"""`uffdswap status`: how the running sessions are."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Annotated

import typer

from .. import control
from ..errors import NoSuchSession, UffdswapError
from ..status import document, session_document, table
from ._execute import print_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ("status",)


def status(
    pids: Annotated[
        list[int] | None,
        typer.Argument(
            metavar="PID...", show_default=False, help="Processes of sessions; default: all."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    exact: Annotated[
        bool, typer.Option("--bytes", help="Print sizes as whole numbers of bytes.")
    ] = False,
) -> None:
    """Show the running sessions, and below each its processes.

    RESIDENT is in memory, COLD has left (in the size it had), STORED is what that costs now,
    UNMANAGED is there and can never leave (files, shared memory, stacks), SWAP is the share in use
    of all that the tiers can hold. Children of a program are part of its session. A narrow terminal
    does without some columns.
    """
    clients = control.connect_all(pids, os.environ) if pids else control.sessions(os.environ)
    found: list[dict[str, Any]] = []
    silent = 0
    for client in clients:
        with client:
            try:
                state, targets = client.state()
                found.append(session_document(state, targets, client.tiers()))
            except UffdswapError as error:
                if pids:
                    raise
                if not isinstance(error, NoSuchSession):  # it is not just ending
                    print_line(str(error))
                    silent += 1
    if as_json:
        print(json.dumps(document(found), indent=2))
    elif found:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(table(found, exact=exact, width=width))
    elif not silent:
        print("no session is running")
    if silent:
        raise typer.Exit(1)
