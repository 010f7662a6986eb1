# SPDX-License-Identifier: MIT
"""A memory cgroup of version 1 or 2, whichever the machine has: the kernel's limit for a peer.

Version 1 has a trap. Its count of what can be reclaimed is refreshed only when somebody asks, and
with a swap device that finishes at once the kernel runs out of patience before the count is right:
it kills programs while most of the swap is free. Reading `memory.stat` twenty times a second keeps
it honest, and is done here for both versions.

Where both versions are mounted, as systemd's hybrid set-up has them, the memory controller belongs
to one of them: version 1 if it is mounted with `memory`, or else the version 2 tree whose
`cgroup.controllers` lists it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SetupFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from .guardian import Guardian

__all__ = ("Group", "Hierarchy", "StatReader", "find_hierarchy")

_STAT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where groups with a memory limit are made."""

    folder: Path
    version: int


def find_hierarchy(root: Path = Path("/")) -> Hierarchy:
    """Return a folder to make groups in. Raises `SetupFailed` if there is none."""
    mounts = (root / "proc/self/mounts").read_text().splitlines()
    for line in mounts:
        _source, point, kind, options, *_rest = line.split()
        folder = root / point.lstrip("/")
        if kind == "cgroup" and "memory" in options.split(","):
            return Hierarchy(folder, 1)
        if kind == "cgroup2" and _has_memory(folder):
            return Hierarchy(folder, 2)
    what = "the kernel's swap cannot be compared with"
    remedy = "mount a cgroup file system with the memory controller, or compare with none"
    raise SetupFailed(what, cause="there is no memory cgroup here", remedy=remedy)


def _has_memory(folder: Path) -> bool:
    try:
        return "memory" in (folder / "cgroup.controllers").read_text().split()
    except OSError:
        return False


class Group:
    """A group with a limit on its memory; the guardian removes it."""

    def __init__(
        self,
        guardian: Guardian,
        name: str,
        limit_bytes: int,
        hierarchy: Hierarchy | None = None,
    ) -> None:
        hierarchy = hierarchy or find_hierarchy()
        self.version = hierarchy.version
        self.folder = hierarchy.folder / name
        try:
            if self.version == 2:
                self._enable_memory(guardian, hierarchy.folder)
            guardian.note("remove-group", path=str(self.folder))
            self.folder.mkdir()
            limit = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
            (self.folder / limit).write_text(str(limit_bytes))
        except OSError as error:
            what = f"cannot make the cgroup {self.folder}"
            remedy = "run the benchmark as root, outside a container"
            raise SetupFailed(what, cause=str(error.strerror), remedy=remedy) from error

    def _enable_memory(self, guardian: Guardian, folder: Path) -> None:
        control = folder / "cgroup.subtree_control"
        if "memory" not in control.read_text().split():
            guardian.note("write", path=str(control), text="-memory")
            control.write_text("+memory")

    def enter_command(self, command: list[str]) -> list[str]:
        """Return a command that enters the group and becomes the other one."""
        script = f'echo $$ > "{self.folder}/cgroup.procs" && exec "$@"'
        return ["/bin/sh", "-c", script, "sh", *command]

    def statistics(self) -> str:
        """Return what the kernel tells of the group's memory, for people to look at."""
        return (self.folder / "memory.stat").read_text()

    def oom_kills(self) -> int:
        """Return how many processes of the group the kernel has killed for want of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        for line in (self.folder / name).read_text().splitlines():
            key, _space, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
        return 0


class StatReader:
    """Reads a group's `memory.stat` twenty times a second while it is open; see above for why.

    Calls `also` as often: a figure that has no maximum of its own can be followed that way.
    """

    def __init__(self, group: Group, also: Callable[[], object] | None = None) -> None:
        self._path = group.folder / "memory.stat"
        self._also = also
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._stop.wait(_STAT_SECONDS):
            try:
                self._path.read_bytes()
                if self._also is not None:
                    self._also()
            except OSError:
                return
