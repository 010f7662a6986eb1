# SPDX-License-Identifier: MIT
"""What the kernel and the agent have counted: processor time, pages moved, memory held.

All of it is read from outside, at moments when the workload stands still; nothing here knows what a
measurement is. A page that is moved twice counts twice.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uffdswap

from ..control import connect
from ..errors import SetupFailed, UffdswapError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .peers import Job

__all__ = (
    "Moved",
    "describe_tree",
    "helper_cpu_seconds",
    "kernel_cpu_seconds",
    "moved_pages",
    "resident_bytes",
    "stored_bytes",
    "stored_peak_bytes",
    "tree",
    "tree_resident_bytes",
    "workload_path",
    "workload_pid",
    "zswap_bytes",
)

_KERNEL_THREADS = ("kswapd", "kcompactd", "zswap", "zram")


@dataclass(frozen=True, slots=True)
class Moved:
    """Pages that were brought in, ahead of their use or not, and pages that left."""

    pages_in: int = 0
    pages_out: int = 0
    faults: int = 0
    """Accesses that waited for uffdswap; the kernel counts those that wait for it elsewhere."""

    def __sub__(self, before: Moved) -> Moved:
        return Moved(
            self.pages_in - before.pages_in,
            self.pages_out - before.pages_out,
            self.faults - before.faults,
        )


def workload_path() -> str:
    """Return where the workload program is, which is installed beside the shim."""
    for folder in uffdswap.__path__:
        path = Path(folder) / "uffdswap_workload"
        if path.exists():
            return str(path)
    raise SetupFailed("uffdswap_workload is missing", remedy="install uffdswap again")


# --- Processes -----------------------------------------------------------------------------------


def _stat_fields(pid: int) -> tuple[str, list[str]]:
    """Return name and later fields of /proc/PID/stat; the parent's pid is the second of these."""
    text = Path(f"/proc/{pid}/stat").read_text()
    name, _parenthesis, rest = text.partition("(")[2].rpartition(") ")
    return name, rest.split()


def _parents() -> dict[int, tuple[int, str]]:
    """Return parent and name of every process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                name, fields = _stat_fields(int(folder.name))
                found[int(folder.name)] = (int(fields[1]), name)
    return found


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    parents = _parents()
    found = [root]
    for pid in found:
        found += [child for child, (parent, _name) in parents.items() if parent == pid]
    return found


def workload_pid(root: int) -> int:
    """Return the workload among a process and its descendants: the one that runs its program.

    Hands shares the program's memory and so its executable, but not its descriptors.
    """
    path = os.path.realpath(workload_path())
    for pid in tree(root):
        with contextlib.suppress(OSError):
            if os.path.realpath(f"/proc/{pid}/exe") == path and Path(f"/proc/{pid}/fd/1").exists():
                return pid
    raise UffdswapError("the workload has gone in the middle of a measurement")


def describe_tree(root: int) -> str:
    """Tell what every task of a tree is doing, for people who wonder why it does not end."""
    lines = []
    for pid in tree(root):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            lines.append(f"process {pid}: {words}")
            for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
                lines += _describe_task(task)
    return "\n".join(lines) + "\n"


def _describe_task(task: Path) -> list[str]:
    with contextlib.suppress(OSError):
        name, fields = _stat_fields(int(task.name))
        lines = [f"  task {task.name} ({name}) state {fields[0]}"]
        with contextlib.suppress(OSError):  # needs root
            lines += [f"    {line}" for line in (task / "stack").read_text().splitlines()]
        return lines
    return []


# --- Processor time ------------------------------------------------------------------------------


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process, to the nanosecond."""
    total_ns = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def helper_cpu_seconds(job: Job, root: int, workload: int) -> float:
    """Return the time of whoever moves pages beside the program: all of ours, or the kernel's."""
    if job.is_ours:
        return sum(_cpu_seconds(pid) for pid in tree(root) if pid != workload)
    return kernel_cpu_seconds(job)


def kernel_cpu_seconds(job: Job) -> float:
    """Return the time of the kernel's threads that reclaim memory, where the peer uses them."""
    if job.group is None:
        return 0.0
    names = _parents().items()
    return sum(_cpu_seconds(pid) for pid, (_p, name) in names if name.startswith(_KERNEL_THREADS))


# --- Pages moved ---------------------------------------------------------------------------------


def moved_pages(job: Job, root: int) -> Moved:
    """Return what has been moved up to now, by this session or by the kernel."""
    if job.is_ours:
        with connect(root, os.environ) as client:
            return moved_by_session(client.state()[0].counters)
    if job.group is None:
        return Moved()
    return moved_by_kernel(Path("/proc/vmstat").read_text())


def moved_by_session(counters: Mapping[str, int]) -> Moved:
    """Return what a session's counters say."""
    kinds = ("standby", "zero", "same", "ram", "disk")
    pages = sum(counters[f"faults_{kind}"] for kind in kinds)
    return Moved(
        pages + counters["prefetched_pages"],
        counters["evicted_pages"],
        faults=pages + counters["faults_present"],
    )


def moved_by_kernel(vmstat: str) -> Moved:
    r"""Return what /proc/vmstat says, which counts by where the page was.

    What zswap writes on to its device has left before.

    >>> moved_by_kernel("pswpin 5\npswpout 9\nzswpin 2\nzswpout 7\nzswpwb 4\nswpin_zero 1")
    Moved(pages_in=8, pages_out=12, faults=0)
    """
    counts = {name: int(value) for name, value in map(str.split, vmstat.splitlines())}
    pages_in = sum(counts.get(name, 0) for name in ("pswpin", "zswpin", "swpin_zero"))
    pages_out = sum(counts.get(name, 0) for name in ("pswpout", "zswpout", "swpout_zero"))
    return Moved(pages_in, pages_out - counts.get("zswpwb", 0))


# --- Memory --------------------------------------------------------------------------------------


def resident_bytes(pid: int) -> int:
    """Return the anonymous memory of one process; 0 if it has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def tree_resident_bytes(root: int) -> int:
    """Return the anonymous memory of a process and its descendants."""
    return sum(map(resident_bytes, tree(root)))


def stored_bytes(job: Job, root: int) -> int:
    """Return what is held in RAM for pages that are out, and what the helpers need themselves."""
    if job.zram:
        return _zram_bytes(job.zram, 2)
    if job.group is not None:
        return zswap_bytes()
    return _helpers_bytes(root) if job.is_ours else 0


def stored_peak_bytes(job: Job) -> int:
    """Return the most that zram has held since it was set up; 0 for others."""
    return _zram_bytes(job.zram, 4) if job.zram else 0


def _zram_bytes(device: str, field: int) -> int:
    return int((Path("/sys/block") / device / "mm_stat").read_text().split()[field])


def zswap_bytes() -> int:
    """Return what zswap holds."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Zswap:"):
            return int(line.split()[1]) * 1024
    return 0


def _helpers_bytes(root: int) -> int:
    memfds: dict[int, int] = {}
    total = 0
    for pid in tree(root):
        if os.path.realpath(f"/proc/{pid}/exe") == os.path.realpath(workload_path()):
            continue  # the workload and hands, which has no memory but the workload's
        total += resident_bytes(pid)
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith("/memfd:"):
                    status = link.stat()
                    memfds[status.st_ino] = status.st_blocks * 512
    return total + sum(memfds.values())
