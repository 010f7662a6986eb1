# SPDX-License-Identifier: MIT
"""Take one measurement: the workload, or any command, under one contender.

The workload stops between its phases and waits, so the processor time of everybody else involved
(agent and hands here, the kernel's reclaim threads there) and the memory held are read at exactly
the edges of the measured phase.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uffdswap

from ..errors import SetupFailed, UffdswapError
from .group import StatReader

if TYPE_CHECKING:
    from .guardian import Guardian
    from .peers import Job, Peer

__all__ = ("Sample", "Work", "measure_command", "measure_work", "peak_bytes", "workload_path")

_KERNEL_THREADS = ("kswapd", "kcompactd", "zswap", "zram")
_LINE_SECONDS = 600.0
_SAMPLE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Work:
    """What the workload is to do."""

    pattern: str
    size_bytes: int
    limit_bytes: int
    content: str = "text"
    pages_path: str = ""
    threads: int = 1
    seconds: float = 3.0
    warmup_seconds: float = 1.0
    seed: int = 1
    corrupt_page: int | None = None

    def command(self) -> list[str]:
        """Return the command line."""
        words = [workload_path(), "--gate", "--pattern", self.pattern]
        words += ["--size", str(self.size_bytes), "--threads", str(self.threads)]
        words += ["--seconds", str(self.seconds), "--warmup", str(self.warmup_seconds)]
        words += ["--seed", str(self.seed), "--content", self.content]
        if self.pages_path:
            words += ["--pages", self.pages_path]
        if self.corrupt_page is not None:
            words += ["--corrupt", str(self.corrupt_page)]
        return words


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of the workload."""

    pages_per_second: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    accesses: int
    major_faults: int
    program_cpu_seconds: float
    helper_cpu_seconds: float
    """Agent, hands and launcher here; the kernel's reclaim threads there."""
    resident_bytes: int
    stored_bytes: int

    @property
    def cpu_us_per_access(self) -> float:
        """Return the processor time of program and helpers together for one access."""
        return 1e6 * (self.program_cpu_seconds + self.helper_cpu_seconds) / max(self.accesses, 1)


def workload_path() -> str:
    """Return where the workload program is, which is installed beside the shim."""
    for folder in uffdswap.__path__:
        path = Path(folder) / "uffdswap_workload"
        if path.exists():
            return str(path)
    raise SetupFailed("uffdswap_workload is missing", remedy="install uffdswap again")


def measure_work(guardian: Guardian, peer: Peer, work: Work) -> Sample:
    """Set a contender up, run the workload under it, undo the set-up; return what was measured.

    Raises `UffdswapError` for wrong content and for a run that did not come to its end.
    """
    job = peer.set_up(guardian, work.command(), work.size_bytes, work.limit_bytes)
    try:
        with _watched(job), _started(guardian, job) as process:
            sample = _follow(process, job, peer.name)
        _require_no_kill(job, peer.name)
    finally:
        guardian.undo()
    return sample


def measure_command(guardian: Guardian, peer: Peer, command: list[str], peak: int) -> float:
    """Run any command at half of the memory it wants; return its wall time in seconds."""
    job = peer.set_up(guardian, command, 2 * peak, peak // 2)
    try:
        start = time.monotonic()
        with _watched(job), _started(guardian, job, gated=False) as process:
            process.communicate()
        seconds = time.monotonic() - start
        _require_no_kill(job, peer.name)
        _require_status(process.returncode, "", peer.name)
    finally:
        guardian.undo()
    return seconds


def peak_bytes(command: list[str]) -> int:
    """Run a command without a limit; return the most anonymous memory it and its children had."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    peak = 0
    try:
        while process.poll() is None:
            peak = max(peak, sum(_resident_bytes(pid) for pid in _tree(process.pid)))
            time.sleep(_SAMPLE_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _require_status(process.returncode, "", "no limit")
    return peak


# --- One run -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _watched(job: Job) -> Iterator[None]:
    if job.group is None:
        yield
    else:
        with StatReader(job.group):
            yield


@contextlib.contextmanager
def _started(
    guardian: Guardian, job: Job, *, gated: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """Start the job in a session of its own; kill what is left of it at the end."""
    pipe = subprocess.PIPE if gated else subprocess.DEVNULL
    process = subprocess.Popen(
        job.command,
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        guardian.note("kill-session", pid=process.pid)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _follow(process: subprocess.Popen[str], job: Job, name: str) -> Sample:
    """Let the workload through its gates, and read the machine's counters at each."""
    assert process.stdin is not None and process.stdout is not None
    cpu_start = cpu_seconds = 0.0
    resident = stored = 0
    for line in process.stdout:
        message: dict[str, Any] = json.loads(line)
        phase = message.get("phase")
        if phase is None:
            break
        workload = _workload_pid(process.pid)
        if phase == "ready":
            cpu_start = _helper_cpu_seconds(process.pid, workload, job)
        elif phase == "measured":
            cpu_seconds = _helper_cpu_seconds(process.pid, workload, job) - cpu_start
            resident, stored = _resident_bytes(workload), _stored_bytes(process.pid, workload, job)
        process.stdin.write("\n")
        process.stdin.flush()
    else:
        message = {}
    _rest, errors = process.communicate(timeout=_LINE_SECONDS)
    _require_status(process.returncode, errors, name)
    if not message:
        raise UffdswapError(f"the workload under {name} ended without a result", cause=errors)
    return _sample(message, cpu_seconds, resident, stored)


def _sample(message: dict[str, Any], helper_cpu: float, resident: int, stored: int) -> Sample:
    latency = message["latency_ns"]
    return Sample(
        pages_per_second=message["pages_per_second"],
        p50_us=latency["p50"] / 1000,
        p99_us=latency["p99"] / 1000,
        p999_us=latency["p999"] / 1000,
        max_us=latency["max"] / 1000,
        accesses=message["accesses"],
        major_faults=message["faults"]["major"],
        program_cpu_seconds=message["cpu_seconds"]["user"] + message["cpu_seconds"]["system"],
        helper_cpu_seconds=round(helper_cpu, 6),
        resident_bytes=resident,
        stored_bytes=stored,
    )


def _require_status(status: int, errors: str, name: str) -> None:
    if status == 0:
        return
    how = f"it was killed by signal {-status}" if status < 0 else f"its exit status was {status}"
    said = errors.strip().splitlines()
    cause = f"{how}; it said: {said[-1]}" if said else how
    raise UffdswapError(f"the run under {name} failed", cause=cause)


def _require_no_kill(job: Job, name: str) -> None:
    """A program may end with status 0 although the kernel killed one of its workers."""
    if job.group is not None and job.group.oom_kills():
        cause = "the kernel killed processes of it for want of memory"
        raise UffdswapError(f"the run under {name} does not count", cause=cause)


# --- /proc ---------------------------------------------------------------------------------------


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


def _tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    parents = _parents()
    found = [root]
    for pid in found:
        found += [child for child, (parent, _name) in parents.items() if parent == pid]
    return found


def _workload_pid(root: int) -> int:
    """Return the workload among a process and its descendants: the one that runs its program.

    Hands shares the program's memory and so its executable, but not its descriptors.
    """
    path = os.path.realpath(workload_path())
    for pid in _tree(root):
        with contextlib.suppress(OSError):
            if os.path.realpath(f"/proc/{pid}/exe") == path and Path(f"/proc/{pid}/fd/1").exists():
                return pid
    raise UffdswapError("the workload has gone in the middle of a measurement")


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process, to the nanosecond."""
    total_ns = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def _helper_cpu_seconds(root: int, workload: int, job: Job) -> float:
    if job.is_ours:
        return sum(_cpu_seconds(pid) for pid in _tree(root) if pid != workload)
    if job.group is None:
        return 0.0
    names = _parents().items()
    return sum(_cpu_seconds(pid) for pid, (_p, name) in names if name.startswith(_KERNEL_THREADS))


def _resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _stored_bytes(root: int, workload: int, job: Job) -> int:
    """Return what is held in RAM for pages that are out, and what the helpers need themselves."""
    if job.zram:
        return int((Path("/sys/block") / job.zram / "mm_stat").read_text().split()[2])
    if job.group is not None:
        return _zswap_bytes()
    if not job.is_ours:
        return 0
    memfds: dict[int, int] = {}
    agent_bytes = 0
    for pid in _tree(root):
        if os.path.realpath(f"/proc/{pid}/exe") == os.path.realpath(workload_path()):
            continue  # the workload and hands, which has no memory but the workload's
        agent_bytes += _resident_bytes(pid)
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith("/memfd:"):
                    status = link.stat()
                    memfds[status.st_ino] = status.st_blocks * 512
    return agent_bytes + sum(memfds.values())


def _zswap_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Zswap:"):
            return int(line.split()[1]) * 1024
    return 0
