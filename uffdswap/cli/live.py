# SPDX-License-Identifier: MIT
"""`uffdswap set`, `reclaim`, `park` and `restore`: act on a running session."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from .. import control
from ..config import parse_limit
from ..errors import UsageError
from ..machine import available_memory_bytes
from ..units import format_size, parse_size_of
from ._options import Memory, Resident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..protocol import Message

__all__ = ("park", "reclaim", "restore", "set_limits")

_Pid = Annotated[
    int,
    typer.Argument(
        metavar="PID",
        show_default=False,
        help="A process of the session. Its launcher means all of the session.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def set_limits(
    pid: _Pid,
    memory: Memory = None,
    resident: Resident = None,
    as_json: _Json = False,
) -> None:
    """Change the limits of a running session; max is no limit.

    Returns at once. What is over a lower limit leaves as fast as it can be compressed.
    """
    if memory is None and resident is None:
        raise UsageError("nothing to set", remedy="give --memory or --resident")
    request = control.SetLimits(
        memory=memory is not None,
        memory_bytes=_limit("--memory", memory),
        resident=resident is not None,
        resident_bytes=_limit("--resident", resident),
    )
    with control.connect(pid, os.environ) as client:
        reply = control.expect(client.ask(request), control.Changed)
    if as_json:
        limits = {"memory_bytes": reply.memory_bytes, "resident_bytes": reply.resident_bytes}
        print(json.dumps({"schema": "uffdswap.set/1", "limits": limits}, indent=2))
    else:
        print(f"memory {_shown(reply.memory_bytes)}, resident {_shown(reply.resident_bytes)}")


def reclaim(
    pid: _Pid,
    size: Annotated[
        str, typer.Argument(metavar="SIZE", show_default=False, help="How much is to leave.")
    ],
    as_json: _Json = False,
) -> None:
    """Evict about SIZE once, the coldest first."""
    size_bytes = parse_size_of("SIZE", size)
    if size_bytes is None:
        raise UsageError("max is no size to reclaim", remedy="to evict everything: uffdswap park")
    if size_bytes == 0:
        raise UsageError("SIZE: nothing can be reclaimed of 0", remedy="give at least a page, 4K")
    _act("reclaim", pid, lambda pid: control.Reclaim(pid=pid, size_bytes=size_bytes), as_json)


def park(pid: _Pid, as_json: _Json = False) -> None:
    """Evict all there is of a process, and wait until it is out.

    It goes on: what it touches comes back, and only that. A good way to keep what is idle.
    """
    _act("park", pid, lambda pid: control.Park(pid=pid), as_json)


def restore(pid: _Pid, as_json: _Json = False) -> None:
    """Bring all of a process back, as far as its limits allow.

    Waits until it is there. Nothing else is evicted for it.
    """
    with control.connect(pid, os.environ) as client:
        request = control.Restore(pid=client.pid)
        reply = control.expect(client.ask(request, seconds=None), control.Moved)
        rest = client.still_out(client.pid)
    if as_json:
        limits = {"memory_bytes": rest.memory_bytes, "resident_bytes": rest.resident_bytes}
        report = {"evicted_bytes": rest.evicted_bytes, "limits": limits}
        _print_json("restore", client.pid, reply, report)
        return
    text = f"{format_size(reply.moved_bytes)} brought back"
    if rest.evicted_bytes:
        text += f"; {format_size(rest.evicted_bytes)} stay out"
        given = [one for one in (rest.memory_bytes, rest.resident_bytes) if one is not None]
        text += f": the limit of {format_size(min(given))} leaves no room" if given else ""
    print(text)


def _act(name: str, pid: int, request: Callable[[int], Message], as_json: bool) -> None:
    with control.connect(pid, os.environ) as client:
        reply = control.expect(client.ask(request(client.pid), seconds=None), control.Moved)
    if as_json:
        _print_json(name, client.pid, reply, {})
    else:
        print(f"{format_size(reply.moved_bytes)} evicted")


def _print_json(name: str, pid: int, reply: control.Moved, more: dict[str, Any]) -> None:
    report = {
        "schema": f"uffdswap.{name}/1",
        "pid": pid,
        "targets": reply.targets,
        "moved_bytes": reply.moved_bytes,
    }
    print(json.dumps(report | more, indent=2))


def _limit(option: str, text: str | None) -> int | None:
    return None if text is None else parse_limit(text, option, available_memory_bytes)


def _shown(limit_bytes: int | None) -> str:
    return "none" if limit_bytes is None else format_size(limit_bytes)
