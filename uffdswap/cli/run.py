# SPDX-License-Identifier: MIT
"""`uffdswap run`: its options and its help.

Command lines that are plainly right do not come through here, see `_parse`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ._execute import execute
from ._options import Disk, Memory, NoDisk, NoDiskEncryption, OnFull, Resident

__all__ = ("command",)

_HELP = """Run PROGRAM under a memory limit, with swap of its own.

Sizes: 512M and 512MiB are 2^20 bytes each, 500MB is 10^6, 50% is half of what the machine or its
cgroup allows, max is no limit. Every option can be given as an environment variable, too:
UFFDSWAP_MEMORY for --memory.

Processes that the program starts share its limit. It keeps its terminal, standard streams and
exit status; 125 is a failure of uffdswap, 126 a program that cannot be executed, 127 one that
is not there.
"""


def command(  # noqa: PLR0913, PLR0917 # one parameter an option, for typer
    program: Annotated[list[str], typer.Argument(metavar="PROGRAM [ARGS]", show_default=False)],
    memory: Memory = None,
    resident: Resident = None,
    disk: Disk = None,
    no_disk: NoDisk = 0,
    no_disk_encryption: NoDiskEncryption = 0,
    on_full: OnFull = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="Replacement policy: clock."),
    ] = None,
    stats: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", show_default=False, help="Write the final statistics as JSON."
        ),
    ] = None,
    stress: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            show_default=False,
            help="Evict RATE random resident pages a second, whatever the limit: a test.",
        ),
    ] = None,
    quiet: Annotated[
        int, typer.Option("--quiet", "-q", count=True, show_default=False, help="Say less.")
    ] = 0,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Say more.")
    ] = 0,
) -> int:
    """Pass the options on, as they were written."""
    given = {
        "memory": memory,
        "resident": resident,
        "disk": "\n".join(disk) if disk else None,
        "no_disk": str(no_disk) if no_disk else None,
        "no_disk_encryption": str(no_disk_encryption) if no_disk_encryption else None,
        "on_full": on_full,
        "policy": policy,
        "stats": stats,
        "stress": stress,
        "quiet": str(quiet) if quiet else None,
        "verbose": str(verbose) if verbose else None,
    }
    options = {name: text for name, text in given.items() if text is not None}
    return execute(options, tuple(program))


command.__doc__ = _HELP
