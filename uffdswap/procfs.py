# SPDX-License-Identifier: MIT
"""What /proc says of processes, for those who have to know who belongs to whom.

Small, because launcher and agent import it before the program starts.
"""

from __future__ import annotations

import contextlib
import os

from .record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("Stat", "children_of", "descendants_of", "stat_of")


class Stat(Record):
    """What matters of /proc/PID/stat. The start time is in clock ticks."""

    name: bytes
    state: str
    parent: int
    start_time: int

    @property
    def is_hands(self) -> bool:
        """Whether it is, by its name, the helper task of a managed program."""
        return self.name == b"uffdswap-hands"


def stat_of(pid: int) -> Stat | None:
    """Return what a process is, one that has ended but not been reaped included; else None."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            name, _end, rest = file.read().partition(b"(")[2].rpartition(b") ")
    except OSError:
        return None
    fields = rest.split()
    if len(fields) < 20:
        return None  # it ended while it was read
    return Stat(
        name=name, state=fields[0].decode(), parent=int(fields[1]), start_time=int(fields[19])
    )


def children_of(parent: int) -> set[int]:
    """Return the children of a process, those that have ended included."""
    with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{parent}/children") as file:
        return set(map(int, file.read().split()))
    children = set()  # a kernel without CONFIG_PROC_CHILDREN
    for name in os.listdir("/proc"):
        if name.isdecimal():
            stat = stat_of(int(name))
            if stat is not None and stat.parent == parent:
                children.add(int(name))
    return children


def descendants_of(roots: Iterable[int]) -> set[int]:
    """Return some processes and all that are below them, whichever thread has made them."""
    found: set[int] = set()
    left = set(roots)
    while left:
        pid = left.pop()
        found.add(pid)
        left |= _children_of_threads(pid) - found
    return found


def _children_of_threads(parent: int) -> set[int]:
    children: set[int] = set()
    try:
        for thread in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                children.update(map(int, file.read().split()))
    except OSError:  # a thread has ended, or there is no CONFIG_PROC_CHILDREN
        return children | children_of(parent)
    return children
