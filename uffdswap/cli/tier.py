# SPDX-License-Identifier: MIT
"""`uffdswap tier`: the tiers of a running session."""

from __future__ import annotations

import json
import os
import re
from typing import Annotated

import typer

from .. import control
from ..config import NO_BUDGET, parse_disk
from ..errors import UsageError
from ..status import tier_table
from ..tier_desk import PRIORITY_MAX
from ..units import format_duration, format_size, printable
from ._execute import print_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ("add", "remove", "show")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")

_Pid = Annotated[
    int | None,
    typer.Option(
        "--pid",
        metavar="PID",
        show_default=False,
        help="A process of the session; not needed if only one is running.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show(
    pid: _Pid = None,
    as_json: _Json = False,
    exact: Annotated[
        bool, typer.Option("--bytes", help="Print sizes as whole numbers of bytes.")
    ] = False,
) -> None:
    """List the tiers of a session, RAM first.

    ORIGINAL is what the pages were, STORED what they take there, FREE what else would fit.
    """
    with control.choose(pid, os.environ) as client:
        tiers = client.tiers()
    if as_json:
        _print_json("tier-list", {"tiers": tiers})
    else:
        print(tier_table(tiers, exact=exact))


def add(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH[:SIZE]",
            show_default=False,
            help="A folder, a file or a block device, and how much of it may be used.",
        ),
    ],
    pid: _Pid = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="Its name. [default: disk1, ...]"),
    ] = None,
    priority: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=PRIORITY_MAX,
            help="Higher is filled first; of equal ones, the older.",
        ),
    ] = 0,
    as_json: _Json = False,
) -> None:
    """Add a disk tier to a running session.

    A program that waits for room goes on.
    """
    disk = parse_disk(place, "PATH[:SIZE]")
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(
            f'--name: "{name}" cannot be a name',
            remedy="give up to 31 letters, digits, dots, dashes and underscores",
        )
    request = control.TierAdd(
        path=disk.path, cap_bytes=disk.cap_bytes, name=name, priority=priority
    )
    with control.choose(pid, os.environ) as client:
        (tier,) = client.tiers(request)
        ram = client.tiers()[0]
    if as_json:
        _print_json("tier-add", {"tier": tier})
    else:
        room = format_size(tier["free_bytes"])
        kind = f"new {tier['kind']}" if tier["is_new"] else tier["kind"]
        print(f"{tier['name']} added: {kind} {printable(disk.path)}, {room} free")
    if ram["cap_bytes"] is None:
        print_line(NO_BUDGET)


def remove(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", show_default=False, help="A disk tier, or its path."),
    ],
    pid: _Pid = None,
    verbose: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, show_default=False, help="Tell how far it is."),
    ] = 0,
    as_json: _Json = False,
) -> None:
    """Remove a disk tier, and wait until it is gone.

    The program goes on meanwhile. What the tier holds comes back to RAM, or goes on to other tiers.
    It is refused before anything moves if those have no room for it. Ctrl-C ends the wait, not the
    removal.
    """
    if not name:
        raise UsageError("NAME is empty", remedy="see: uffdswap tier list")
    with control.choose(pid, os.environ) as client:
        wanted = _meant(name, client.tiers())
        removed = client.remove_tier(wanted, _teller() if verbose else lambda _leaving: None)
    if as_json:
        _print_json("tier-remove", removed.as_dict())
    else:
        print(_removal_line(removed))


def _meant(name: str, tiers: list[dict[str, Any]]) -> str:
    """Return the name or path of the tier that is meant: a name wins over a path as `add` has it.

    A path may be gone by now, and may have a size behind it, as where it was added.
    """
    if name in {tier["name"] for tier in tiers}:
        return name
    given = [one for one in (name, name.rpartition(":")[0]) if one]
    paths = list(map(os.path.abspath, given))
    places = {tier["path"] for tier in tiers}
    found = [path for path in paths if path in places]
    return found[0] if found else paths[0] if "/" in name else name


def _teller() -> Callable[[control.Leaving], None]:
    """Return what prints how far a removal is; the beginning is no news."""
    begun: list[int] = []

    def tell(leaving: control.Leaving) -> None:
        if begun:
            moved = leaving.stored_bytes - leaving.left_bytes
            share = moved / leaving.stored_bytes if leaving.stored_bytes else 1.0
            print_line(
                f"{leaving.name}: {share:.0%} moved, {format_size(leaving.left_bytes)} to go"
            )
        begun.append(leaving.id)

    return tell


def _removal_line(removed: control.Removed) -> str:
    if not removed.stored_bytes:
        return f"{removed.name} removed: it was empty"
    rate = format_size(int(removed.stored_bytes / max(removed.moved_seconds, 1e-6)))
    return (
        f"{removed.name} removed: {format_size(removed.stored_bytes)} moved"
        f" ({format_size(removed.original_bytes)} original)"
        f" in {format_duration(removed.moved_seconds)}, {rate}/s;"
        f" its space was given back after {format_duration(removed.seconds)}"
    )


def _print_json(kind: str, body: dict[str, Any]) -> None:
    print(json.dumps({"schema": f"uffdswap.{kind}/1", **body}, indent=2))
