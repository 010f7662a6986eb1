# SPDX-License-Identifier: MIT
"""Options that several commands have, each written once.

Separate from the commands, so that one word and one sentence of help stand for one idea.
"""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ("Disk", "Memory", "NoDisk", "NoDiskEncryption", "OnFull", "Resident")

Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        "-m",
        metavar="SIZE",
        show_default=False,
        help="Budget of RAM: resident memory and all that is kept in RAM for it.",
    ),
]
Resident = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", show_default=False, help="Limit on resident anonymous memory alone."
    ),
]
Disk = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH[:SIZE]",
        show_default=False,
        help="Disk tier: a folder, file or block device; several are filled in the order given."
        " [default: /var/tmp, no cap]",
    ),
]
NoDisk = Annotated[
    int, typer.Option("--no-disk", count=True, show_default=False, help="No disk tier.")
]
NoDiskEncryption = Annotated[
    int,
    typer.Option(
        "--no-disk-encryption",
        count=True,
        show_default=False,
        help="Write to the disk tier as it is.",
    ),
]
OnFull = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        show_default=False,
        help="When every tier is full: wait for room, or kill."
        " [default: wait if there is a disk tier]",
    ),
]
