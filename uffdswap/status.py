# SPDX-License-Identifier: MIT
"""How sessions are: the JSON document of schema `uffdswap.status/1`, and the table for people.

Two sizes are kept apart everywhere: what pages were before they left (`evicted`, COLD) and what
they cost now (`stored`). Keys of the document are only ever added.
"""

from __future__ import annotations

from pathlib import Path

from .smaps import UNMANAGED_KINDS, unmanaged_bytes
from .units import format_duration, format_size, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .control import State, Target

__all__ = ("SCHEMA", "document", "session_document", "table", "tier_table")

SCHEMA = "uffdswap.status/1"

_PAGE_BYTES = 4096
_HEADER = (
    *("PID", "COMMAND", "LIMIT", "RESIDENT", "COLD", "STORED", "RATIO", "DISK"),
    *("UNMANAGED", "SWAP", "FAULTS", "REFAULTS", "P99"),
)
_TIER_HEADER = (
    *("NAME", "KIND", "PLACE", "PRIORITY", "STATE"),
    *("ORIGINAL", "STORED", "CAP", "FREE"),
)
_DISPENSABLE = ("REFAULTS", "RATIO", "DISK", "FAULTS", "UNMANAGED", "P99")
"""The columns that a narrow terminal does without, the first of them first."""
_LEFT = ("COMMAND", "NAME", "KIND", "PLACE", "STATE")
_NOTHING = "-"
_GAP = 2  # between columns


def document(sessions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON object for some sessions."""
    return {"schema": SCHEMA, "sessions": list(sessions)}


def session_document(
    state: State, targets: Sequence[Target], tiers: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return one session as a JSON object."""
    counters = state.counters
    evicted_bytes = sum(target.evicted_pages for target in targets) * _PAGE_BYTES
    standby_bytes = counters["standby_pages"] * _PAGE_BYTES
    target_documents = [_target_document(target) for target in targets]
    return {
        "launcher_pid": state.launcher_pid,
        "agent_pid": state.agent_pid,
        "program_pid": state.program_pid or None,
        "limits": {
            "memory_bytes": state.memory_bytes,
            "resident_bytes": state.resident_bytes,
        },
        "resident_bytes": counters["resident_bytes"],
        "ram_bytes": counters["ram_bytes"],
        "evicted_bytes": evicted_bytes,
        "stored_bytes": {
            "standby": standby_bytes,
            "ram": counters["ram_stored_bytes"],
            "disk": counters["disk_stored_bytes"],
        },
        "metadata_bytes": counters["metadata_bytes"],
        "used_share": _used_share(state),
        "faults": sum(target.faults for target in targets),
        "refaults": sum(target.refaults for target in targets),
        "latency_us": {
            name: counters[f"latency_{name}_ns"] / 1000
            for name in ("p50", "p90", "p99", "p999", "max")
        },
        "targets": target_documents,
        "counters": dict(counters),
        "original_bytes": {
            "standby": standby_bytes,
            "ram": counters["ram_original_bytes"],
            "disk": counters["disk_original_bytes"],
        },
        "swap_share": _swap_share(state, tiers),
        "waits_for_room": bool(counters["waits_for_room"]),
        "tiers": list(tiers),
        "unmanaged_bytes": _unmanaged_sum(target_documents),
    }


def _unmanaged_sum(targets: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    """Return the sum over the targets that may be looked at; None if none may."""
    known = [target["unmanaged_bytes"] for target in targets if target["unmanaged_bytes"]]
    if not known:
        return None
    return {kind: sum(one[kind] for one in known) for kind in ("total", *UNMANAGED_KINDS)}


def _used_share(state: State) -> float | None:
    """Return how much of the budget is kept for what has left; 1 is full. None: no budget."""
    if state.memory_bytes is None:
        return None
    return round(state.counters["ram_bytes"] / state.memory_bytes, 4)


def _swap_share(state: State, tiers: Sequence[dict[str, Any]]) -> float | None:
    """Return how much is in use of all that budget and disks can hold; 1 is full. None: no budget.

    What is free on a disk counts as far as its tier may use it, so that the share grows towards 1
    as the session runs out of room, whichever tier it is that fills up.
    """
    if state.memory_bytes is None:
        return None
    disks = [tier for tier in tiers if tier["kind"] != "ram" and tier["state"] != "removing"]
    stored_bytes: int = sum(tier["stored_bytes"] for tier in disks)
    used_bytes = state.counters["ram_bytes"] + stored_bytes
    free_bytes: int = sum(tier["free_bytes"] for tier in disks)
    return round(used_bytes / (state.memory_bytes + stored_bytes + free_bytes), 4)


def _target_document(target: Target) -> dict[str, Any]:
    return {
        "id": target.id,
        "pid": target.pid or None,
        "command": _command(target.pid),
        "resident_bytes": target.resident_bytes,
        "evicted_bytes": target.evicted_pages * _PAGE_BYTES,
        "evicted_pages": {
            "total": target.evicted_pages,
            "zero": target.zero_pages,
            "same": target.same_pages,
            "standby": target.standby_pages,
            "object": target.object_pages,
        },
        "faults": target.faults,
        "refaults": target.refaults,
        "original_bytes": {
            "standby": target.standby_pages * _PAGE_BYTES,
            "ram": target.ram_pages * _PAGE_BYTES,
            "disk": target.disk_pages * _PAGE_BYTES,
        },
        "stored_bytes": {
            "standby": target.standby_pages * _PAGE_BYTES,
            "ram": target.ram_stored_bytes,
            "disk": target.disk_stored_bytes,
        },
        "unmanaged_bytes": unmanaged_bytes(target.pid) if target.pid else None,
    }


def _command(pid: int) -> str | None:
    """Return the name of a process; None if it has none yet or any more."""
    if not pid:
        return None
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return None


# --- For people ----------------------------------------------------------------------------------


def table(
    sessions: Sequence[dict[str, Any]], *, exact: bool = False, width: int | None = None
) -> str:
    """Return a table with a row a session, named by its launcher, and below it a row a target.

    Where it would be wider than `width` columns it has less to say.
    """
    rows: list[tuple[str, ...]] = [_HEADER]
    for session in sessions:
        rows.append(_session_row(session, exact))
        rows += [_target_row(target, exact) for target in session["targets"]]
    for name in _DISPENSABLE:
        if width is None or sum(_widths(rows)) + _GAP * (len(rows[0]) - 1) <= width:
            break
        left_out = rows[0].index(name)
        rows = [row[:left_out] + row[left_out + 1 :] for row in rows]
    return _aligned(rows)


def tier_table(tiers: Sequence[dict[str, Any]], *, exact: bool = False) -> str:
    """Return a table with a row a tier."""
    return _aligned([_TIER_HEADER, *(_tier_row(tier, exact) for tier in tiers)])


def _widths(rows: Sequence[tuple[str, ...]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = _widths(rows)
    return "\n".join(_line(rows[0], row, widths) for row in rows)


def _line(header: Sequence[str], row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        text.ljust(width) if name in _LEFT else text.rjust(width)
        for name, text, width in zip(header, row, widths, strict=True)
    ]
    return (" " * _GAP).join(cells).rstrip()


def _size(size_bytes: int, exact: bool) -> str:
    return str(size_bytes) if exact else format_size(size_bytes)


def _ratio(original_bytes: int, stored_bytes: int) -> str:
    if not original_bytes or not stored_bytes:
        return _NOTHING
    return f"{original_bytes / stored_bytes:.1f}x"


def _unmanaged(of: dict[str, Any], exact: bool) -> str:
    found = of["unmanaged_bytes"]
    return _NOTHING if found is None else _size(found["total"], exact)


def _session_row(session: dict[str, Any], exact: bool) -> tuple[str, ...]:
    limits = [value for value in session["limits"].values() if value is not None]
    stored = session["stored_bytes"]
    stored_bytes = sum(stored.values())
    share = session["swap_share"]
    p99_us = session["latency_us"]["p99"]
    return (
        str(session["launcher_pid"]),
        "session",
        _size(min(limits), exact) if limits else "none",
        _size(session["resident_bytes"], exact),
        _size(session["evicted_bytes"], exact),
        _size(stored_bytes, exact),
        _ratio(session["evicted_bytes"], stored_bytes),
        _size(stored["disk"], exact),
        _unmanaged(session, exact),
        _NOTHING if share is None else f"{share:.0%}",
        str(session["faults"]),
        str(session["refaults"]),
        format_duration(p99_us / 1e6) if p99_us else _NOTHING,
    )


def _target_row(target: dict[str, Any], exact: bool) -> tuple[str, ...]:
    stored = target["stored_bytes"]
    stored_bytes = sum(stored.values())
    return (
        str(target["pid"] or "?"),
        f"  {printable(target['command'] or '?')}",
        "",
        _size(target["resident_bytes"], exact),
        _size(target["evicted_bytes"], exact),
        _size(stored_bytes, exact),
        _ratio(target["evicted_bytes"], stored_bytes),
        _size(stored["disk"], exact),
        _unmanaged(target, exact),
        "",
        str(target["faults"]),
        str(target["refaults"]),
        "",
    )


def _tier_row(tier: dict[str, Any], exact: bool) -> tuple[str, ...]:
    return (
        tier["name"],
        tier["kind"],
        printable(tier["path"] or _NOTHING),
        _NOTHING if tier["priority"] is None else str(tier["priority"]),
        tier["state"],
        _size(tier["original_bytes"], exact),
        _size(tier["stored_bytes"], exact),
        "none" if tier["cap_bytes"] is None else _size(tier["cap_bytes"], exact),
        _NOTHING if tier["free_bytes"] is None else _size(tier["free_bytes"], exact),
    )
