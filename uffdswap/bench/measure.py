# SPDX-License-Identifier: MIT
"""Take one measurement: the workload, or any command, under one contender.

The workload stops between its phases and waits, so the processor time of everybody else involved
(agent and hands here, the kernel's reclaim threads there), the pages moved and the memory held are
read at exactly the edges of the measured phase. Of any other command only the whole is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import UffdswapError
from . import counters
from .counters import Moved, workload_path
from .evidence import Evidence, RunFailed, RunFiles
from .group import StatReader
from .peers import NoLimit, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .guardian import Guardian
    from .peers import Job, Peer

__all__ = (
    "App",
    "AppSample",
    "Bench",
    "Budget",
    "Sample",
    "Work",
    "measure_command",
    "measure_work",
    "peak_bytes",
)

_PEAK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement needs beside what is measured."""

    guardian: Guardian
    evidence: Evidence = field(default_factory=Evidence)
    timeout_seconds: float = 600.0
    """A run that takes longer is ended, and has failed."""


@dataclass(frozen=True, slots=True)
class Budget:
    """RAM for uffdswap, resident and stored together, instead of a limit on what is resident."""

    memory_bytes: int
    may_use_disk: bool


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
class App:
    """A command, the memory it wants, and how much of that may be resident."""

    command: list[str]
    size_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of the workload."""

    pages_per_second: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    accesses: int
    faults: int
    """Accesses that had to wait for their page, on uffdswap or, as major faults, on the kernel."""
    pages_in: int
    pages_out: int
    program_cpu_seconds: float
    helper_cpu_seconds: float
    """Agent, hands and launcher here; the kernel's reclaim threads there."""
    resident_bytes: int
    stored_bytes: int
    stored_peak_bytes: int
    """From the beginning, filling included; 0 where there is no such figure."""

    @property
    def faults_per_access(self) -> float:
        """Return how many of the accesses had to wait for their page."""
        return self.faults / max(self.accesses, 1)

    @property
    def cpu_us_per_access(self) -> float:
        """Return the processor time of program and helpers together for one access."""
        return 1e6 * (self.program_cpu_seconds + self.helper_cpu_seconds) / max(self.accesses, 1)

    @property
    def cpu_us_per_page(self) -> float | None:
        """Return the same for one page brought in, for which another one leaves."""
        if not self.pages_in:
            return None
        return 1e6 * (self.program_cpu_seconds + self.helper_cpu_seconds) / self.pages_in


@dataclass(frozen=True, slots=True)
class AppSample:
    """One run of any command, from its start to its end."""

    wall_seconds: float
    cpu_seconds: float
    """Of the command, all its children and the helpers, which start and end with it."""
    pages_in: int
    pages_out: int
    stored_peak_bytes: int


def measure_work(
    bench: Bench, peer: Peer, work: Work, *, label: str = "run", budget: Budget | None = None
) -> Sample:
    """Set a contender up, run the workload under it, undo the set-up; return what was measured.

    Raises `RunFailed` for wrong content and for a run that did not come to its end; `label` names
    the folder that its files are kept in.
    """
    task = _task(work.command(), work.size_bytes, work.limit_bytes, budget)
    with _set_up(bench, peer, task) as run, run.failing_as(f"the run under {peer.name}", label):
        return _follow(run)


def measure_command(
    bench: Bench, peer: Peer, app: App, *, label: str = "run", budget: Budget | None = None
) -> AppSample:
    """Run any command under a contender. Raises `RunFailed` unless it ends with status 0."""
    task = _task(app.command, app.size_bytes, app.limit_bytes, budget)
    with _set_up(bench, peer, task) as run, run.failing_as(f"the run under {peer.name}", label):
        return _time(run)


def peak_bytes(bench: Bench, command: list[str], *, label: str = "run") -> int:
    """Run a command without a limit; return the most anonymous memory it and its children had."""
    peak = 0
    task = _task(command, 0, 0, None)
    with _set_up(bench, NoLimit(), task) as run, run.failing_as("the run without a limit", label):
        with run.started(gated=False) as process:
            while process.poll() is None:
                peak = max(peak, counters.tree_resident_bytes(process.pid))
                time.sleep(_PEAK_SECONDS)
        run.require_success(process)
    return peak


def _task(command: list[str], size_bytes: int, limit_bytes: int, budget: Budget | None) -> Task:
    if budget is None:
        return Task(command, size_bytes, limit_bytes)
    return Task(command, size_bytes, limit_bytes, budget.memory_bytes, budget.may_use_disk)


# --- One run -------------------------------------------------------------------------------------


class _Run:
    """One command under one contender, from its set-up to the undoing of that."""

    def __init__(self, bench: Bench, job: Job, files: RunFiles) -> None:
        self.job = job
        self.files = files
        self._bench = bench
        self._zswap_peak_bytes = 0
        files.add_command(job.command)

    @contextlib.contextmanager
    def failing_as(self, what: str, label: str) -> Iterator[None]:
        """Keep the files and raise `RunFailed` if anything goes wrong inside."""
        try:
            yield
        except (UffdswapError, OSError, ValueError, KeyError) as error:
            if self.job.group is not None:
                with contextlib.suppress(OSError):
                    self.files.add("memory.stat", self.job.group.statistics())
            folder = self._bench.evidence.keep(self.files, label)
            raise RunFailed(f"{what} failed", cause=str(error), folder=folder) from error

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the count of a kernel peer's group right, and follow what zswap holds."""
        if self.job.group is None:
            yield
        else:
            with StatReader(self.job.group, also=self._note_zswap):
                yield

    def _note_zswap(self) -> None:
        self._zswap_peak_bytes = max(self._zswap_peak_bytes, counters.zswap_bytes())

    def stored_peak_bytes(self) -> int:
        """Return the most that was held for pages that are out; the command has ended."""
        if self.job.is_ours:
            return int(self._stats()["peak"]["ram_bytes"])
        return max(counters.stored_peak_bytes(self.job), self._zswap_peak_bytes)

    def moved_in_all(self, kernel_before: Moved) -> Moved:
        """Return the pages moved from start to end; the command has ended."""
        if not self.job.is_ours:
            return counters.moved_pages(self.job, 0) - kernel_before
        stats = self._stats()
        flat = {f"faults_{key}": value for key, value in stats["faults"].items()}
        flat["prefetched_pages"] = stats["faults"]["prefetched_pages"]
        flat["evicted_pages"] = stats["evictions"]["pages"]
        return counters.moved_by_session(flat)

    def _stats(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.files.stats.read_text())
        return found

    @contextlib.contextmanager
    def started(self, *, gated: bool) -> Iterator[subprocess.Popen[str]]:
        """Start the command in a session of its own; kill what is left of it at the end."""
        with self.files.stderr.open("w") as stderr:
            process = subprocess.Popen(
                self.job.command,
                stdin=subprocess.PIPE if gated else subprocess.DEVNULL,
                stdout=subprocess.PIPE if gated else subprocess.DEVNULL,
                stderr=stderr,
                env=os.environ | {"TMPDIR": str(self.files.temporary)},
                start_new_session=True,
                text=True,
            )
        too_late = threading.Event()
        timer = threading.Timer(
            self._bench.timeout_seconds, self._end_late, (process.pid, too_late)
        )
        try:
            self._bench.guardian.note("kill-session", pid=process.pid)
            timer.start()
            yield process
            process.wait()
        finally:
            timer.cancel()
            _kill(process)
            if too_late.is_set():
                seconds = self._bench.timeout_seconds
                raise UffdswapError(f"it did not come to its end within {seconds:g} s")

    def _end_late(self, pid: int, too_late: threading.Event) -> None:
        """End a run that takes too long, and keep what it was doing; on the timer's thread."""
        too_late.set()
        try:
            self.files.add("processes.txt", counters.describe_tree(pid))
        finally:
            _kill_group(pid)

    def require_success(self, process: subprocess.Popen[str]) -> None:
        """Raise `UffdswapError` for a status other than 0, with the last words of the run."""
        status = process.returncode
        if status == 0:
            return
        how = f"it was killed by signal {-status}" if status < 0 else f"its status was {status}"
        words = self.files.last_words()
        raise UffdswapError(how, cause=f'it said "{words}"' if words else "")

    def require_no_kill(self) -> None:
        """Raise `UffdswapError` if the kernel killed any of it, whatever its status says."""
        if self.job.group is not None and self.job.group.oom_kills():
            raise UffdswapError("the kernel killed processes of it for want of memory")


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process, unless it has ended, and with it everything of its session."""
    if process.poll() is None:
        _kill_group(process.pid)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what was not written any more
                stream.close()


@contextlib.contextmanager
def _set_up(bench: Bench, peer: Peer, task: Task) -> Iterator[_Run]:
    """Set a contender up for a command; undo that at the end, whatever has happened."""
    files = bench.evidence.begin(bench.guardian)
    try:
        job = peer.set_up(bench.guardian, replace(task, stats_path=str(files.stats)))
        yield _Run(bench, job, files)
    finally:
        bench.guardian.undo()


# --- The workload --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Edges:
    """What was read where the measured phase begins, and then what it came to."""

    cpu_seconds: float = 0.0
    moved: Moved = field(default_factory=Moved)
    resident_bytes: int = 0
    stored_bytes: int = 0


def _follow(run: _Run) -> Sample:
    """Start the workload, let it through its gates, and read the counters at each."""
    edges = _Edges()
    message: dict[str, Any] = {}
    with run.watched(), run.started(gated=True) as process:
        assert process.stdin is not None and process.stdout is not None
        with run.files.results.open("w") as results:
            for line in process.stdout:
                results.write(line)
                message = json.loads(line)
                if "phase" not in message:
                    break
                _read_edge(run, process.pid, str(message["phase"]), edges)
                process.stdin.write("\n")
                process.stdin.flush()
        process.wait()
    run.require_success(process)
    run.require_no_kill()
    if "accesses" not in message:
        raise UffdswapError("the workload ended without a result")
    return _sample(message, edges, run.stored_peak_bytes())


def _read_edge(run: _Run, pid: int, phase: str, edges: _Edges) -> None:
    """Read at an edge; what asking the agent costs falls outside of the measured phase."""
    if phase not in ("ready", "measured"):
        return
    workload = counters.workload_pid(pid)
    if phase == "ready":
        edges.moved = counters.moved_pages(run.job, pid)
        edges.cpu_seconds = counters.helper_cpu_seconds(run.job, pid, workload)
    else:
        cpu_seconds = counters.helper_cpu_seconds(run.job, pid, workload)
        edges.cpu_seconds = cpu_seconds - edges.cpu_seconds
        edges.moved = counters.moved_pages(run.job, pid) - edges.moved
        edges.resident_bytes = counters.resident_bytes(workload)
        edges.stored_bytes = counters.stored_bytes(run.job, pid)


def _sample(message: dict[str, Any], edges: _Edges, stored_peak_bytes: int) -> Sample:
    latency = message["latency_ns"]
    return Sample(
        pages_per_second=message["pages_per_second"],
        p50_us=latency["p50"] / 1000,
        p99_us=latency["p99"] / 1000,
        p999_us=latency["p999"] / 1000,
        max_us=latency["max"] / 1000,
        accesses=message["accesses"],
        faults=message["faults"]["major"] + edges.moved.faults,
        pages_in=edges.moved.pages_in,
        pages_out=edges.moved.pages_out,
        program_cpu_seconds=message["cpu_seconds"]["user"] + message["cpu_seconds"]["system"],
        helper_cpu_seconds=round(edges.cpu_seconds, 6),
        resident_bytes=edges.resident_bytes,
        stored_bytes=edges.stored_bytes,
        stored_peak_bytes=stored_peak_bytes,
    )


# --- Any command ---------------------------------------------------------------------------------


def _time(run: _Run) -> AppSample:
    """Start a command, wait for its end, and read what it took as a whole."""
    moved = Moved() if run.job.is_ours else counters.moved_pages(run.job, 0)
    kernel_seconds = counters.kernel_cpu_seconds(run.job)
    before_seconds = _children_cpu_seconds()
    start = time.monotonic()
    with run.watched(), run.started(gated=False) as process:
        process.wait()
        wall_seconds = time.monotonic() - start
    run.require_success(process)
    run.require_no_kill()
    kernel_seconds = counters.kernel_cpu_seconds(run.job) - kernel_seconds
    moved = run.moved_in_all(moved)
    return AppSample(
        wall_seconds=wall_seconds,
        cpu_seconds=round(_children_cpu_seconds() - before_seconds + kernel_seconds, 6),
        pages_in=moved.pages_in,
        pages_out=moved.pages_out,
        stored_peak_bytes=run.stored_peak_bytes(),
    )


def _children_cpu_seconds() -> float:
    """Return the processor time of all children that have ended and been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
