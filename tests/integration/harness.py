# SPDX-License-Identifier: MIT
"""Run programs under `uffdswap run`, with a watch on their processes and their memory.

Every run goes through a small supervisor (tests/programs/supervise.c) that ends whatever the run
leaves behind and reports it, at a timeout as well as at the end. So a test cannot leave a process
to the next one, and a session that forgets one of its own tasks fails the test that started it.

On a slow or busy machine UFFDSWAP_TEST_PATIENCE=4 (and pytest --timeout=480) gives every run four
times its time. No test depends on how long anything takes, only on it coming to an end.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

__all__ = (
    "EXIT_SKIPPED",
    "MIB",
    "REPOSITORY",
    "Outcome",
    "Process",
    "Programs",
    "Rss",
    "Run",
    "Session",
    "processes_below",
    "wait_until",
)

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = REPOSITORY / "tests" / "programs"
EXIT_SKIPPED = 77
MIB = 1 << 20
# More than a budget of 48 MiB holds, by far, and quick to write even where nearly all of it is out.
GLUTTON = (
    *("python3", "-I", "-S", "-c"),
    "import random; kept = [random.randbytes(1 << 20) for _ in range(160)]",
)
PATIENCE = float(os.environ.get("UFFDSWAP_TEST_PATIENCE", "1"))

_C_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-pthread")
_HARNESS_GRACE_SECONDS = 30.0
_TAIL_CHARACTERS = 4000

Stats = dict[str, Any]


# --- C programs ----------------------------------------------------------------------------------


class Programs:
    """Compiled programs by name: those of tests/programs, and any other C file by path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str) -> str:
        """Return the path of tests/programs/NAME.c, compiled."""
        return self.compile(PROGRAMS / f"{name}.c", _C_FLAGS)

    def compile(self, source: Path, flags: Sequence[str]) -> str:
        """Compile one file, once."""
        program = self._folder / source.stem
        if not program.exists():
            command = ["gcc", *flags, str(source), "-o", str(program)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
            assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
            assert not done.stderr, f"{shlex.join(command)}\n{done.stderr}"
        return str(program)


# --- What a run did ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rss:
    """The most that was seen from outside, by rss_sampler.c."""

    samples: int
    late: int
    targets: int
    targets_bytes: int
    agent_bytes: int
    memfd_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, like `subprocess.CompletedProcess`, and what uffdswap said about it."""

    args: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    stats: Stats
    left_over: tuple[str, ...]
    timed_out: bool
    rss: Rss | None
    stops: int | None

    def describe(self) -> str:
        """Return what somebody needs to repeat and to understand the run."""
        lines = [
            f"command: {shlex.join(self.args)}",
            f"exit status: {self.returncode}" + (" (timed out)" if self.timed_out else ""),
            f"left over: {list(self.left_over)}",
            f"rss: {self.rss}",
            f"stops of a thread: {self.stops}",
            f"stdout: {self.stdout[-_TAIL_CHARACTERS:]}",
            f"stderr: {self.stderr[-_TAIL_CHARACTERS:]}",
        ]
        return "\n".join(lines)

    def require_ok(self, *, paged: bool | None = None, may_vanish: bool = False) -> None:
        """Demand success: status 0, nothing left over, no page poisoned.

        With `paged`, also that pages were evicted (True) or none was (False). With `may_vanish`,
        pages may have gone without an event, as they do behind a guard. Status 77 skips the test
        with the reason that the program gave.
        """
        if self.returncode == EXIT_SKIPPED and not self.timed_out:
            pytest.skip(self.stdout.strip())
        assert not self.timed_out, self.describe()
        assert self.returncode == 0, self.describe()
        assert not self.left_over, self.describe()
        if self.stats:
            assert self.stats["integrity"]["poisoned_pages"] == 0, self.describe()
            assert may_vanish or not self.stats["integrity"]["vanished_pages"], self.describe()
            assert self.stats["exit_status"] == 0, self.describe()
        if paged is not None:
            evicted_pages = self.stats["evictions"]["pages"]
            assert (evicted_pages > 0) == paged, f"{evicted_pages} pages evicted\n{self.describe()}"


# --- Processes -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Process:
    """A line of /proc: enough to tell agent, hands and targets apart."""

    pid: int
    parent: int
    started: int
    name: str
    command: str

    @property
    def is_agent(self) -> bool:
        return "uffdswap.agent" in self.command

    @property
    def is_hands(self) -> bool:
        return self.name == "uffdswap-hands"


def _read_process(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    name, _parenthesis, rest = stat.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        started=int(fields[19]),
        name=name.decode(errors="replace"),
        command=command.replace(b"\0", b" ").decode(errors="replace"),
    )


def processes_below(root: int) -> list[Process]:
    """Return all descendants of a process, parents before their children, in order of age."""
    found = [_read_process(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")]
    every = [process for process in found if process]
    below: list[Process] = []
    parents = {root}
    while parents:
        generation = [process for process in every if process.parent in parents]
        below += sorted(generation, key=lambda process: (process.started, process.pid))
        parents = {process.pid for process in generation}
    return below


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Poll until `condition` holds; fail the test if it does not in time."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.01)


# --- Running -------------------------------------------------------------------------------------


def run_command(
    *words: object, runtime: Path, seconds: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a command of uffdswap that finds its sessions below `runtime`; not yet judged."""
    return subprocess.run(
        [sys.executable, "-m", "uffdswap", *map(str, words)],
        env=os.environ | {"XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@dataclass(frozen=True, slots=True)
class Run:
    """What to run and how: the program, the limits, and the time it may take."""

    args: tuple[str, ...]
    resident: str | None = None
    memory: str | None = None
    stress: int | None = None
    options: tuple[str, ...] = ()
    bare: bool = False
    timeout: float = 90.0
    cwd: Path | None = None
    env: dict[str, str] = field(default_factory=dict)
    sample_rss: bool = False
    freeze_ms: int = 0
    freeze_only: str | None = None

    def command(self, stats: Path) -> list[str]:
        """Return the command line, which for a bare run is the program's own."""
        if self.bare:
            return list(self.args)
        options = ["--stats", str(stats)]
        if self.resident:
            options += ["--resident", self.resident]
        if self.memory:
            options += ["--memory", self.memory]
        if self.stress:
            options += ["--stress", str(self.stress)]
        options += self.options
        return [sys.executable, "-m", "uffdswap", "run", *options, "--", *self.args]

    def environment(self) -> dict[str, str]:
        """Return the environment, free of settings that would change what is tested."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("UFFDSWAP_")}
        return inherited | {"PYTHONDONTWRITEBYTECODE": "1"} | self.env


class Session:
    """A run that is going on. Use as a context manager; `finish()` waits for the end."""

    def __init__(self, run: Run, programs: Programs, folder: Path) -> None:
        self._folder = folder
        self._stats = folder / "stats.json"
        self._args = tuple(run.command(self._stats))
        self._sampler: subprocess.Popen[str] | None = None
        self._freezer: subprocess.Popen[str] | None = None
        self._timeout = run.timeout * PATIENCE
        report_read, report_write = os.pipe()
        self._report = os.fdopen(report_read)
        supervise = [programs("supervise"), str(report_write), str(int(self._timeout))]
        try:
            self._process = self._start(run, [*supervise, *self._args], report_write)
        finally:
            os.close(report_write)
        self.pid = int(json.loads(self._report.readline())["pid"])
        if run.sample_rss:
            sampler = [programs("rss_sampler"), str(self.pid)]
            self._sampler = subprocess.Popen(sampler, stdout=subprocess.PIPE, text=True)
        if run.freeze_ms:
            freezer = [programs("freeze"), str(self.pid), str(run.freeze_ms)]
            freezer += [run.freeze_only] if run.freeze_only else []
            self._freezer = subprocess.Popen(freezer, stdout=subprocess.PIPE, text=True)

    def _start(self, run: Run, command: list[str], report_fd: int) -> subprocess.Popen[str]:
        with (self._folder / "stdout").open("w") as out, (self._folder / "stderr").open("w") as err:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                text=True,
                cwd=run.cwd or self._folder,
                env=run.environment(),
                pass_fds=(report_fd,),
            )

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End whatever still runs. May be called more than once."""
        if self._process.poll() is None:
            self._process.terminate()  # the supervisor kills all that is below it
            self._process.wait(timeout=_HARNESS_GRACE_SECONDS)
        if self._process.stdin:
            self._process.stdin.close()
        self._report.close()
        for beside in (self._sampler, self._freezer):
            if beside:
                beside.kill()
                beside.communicate()

    def output(self) -> str:
        """Return what the program has printed so far."""
        return (self._folder / "stdout").read_text(errors="replace")

    def errors(self) -> str:
        """Return what has come on stderr so far."""
        return (self._folder / "stderr").read_text(errors="replace")

    def wait_for_output(self, text: str, *, seconds: float = 60.0) -> None:
        """Wait until the program has printed `text`; fail if it ends or takes too long."""
        self._wait_for(self.output, text, seconds)

    def wait_for_error(self, text: str, *, seconds: float = 60.0) -> None:
        """Wait until `text` has come on stderr; fail if the program ends or it takes too long."""
        self._wait_for(self.errors, text, seconds)

    def _wait_for(self, shown: Callable[[], str], text: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds * PATIENCE
        while text not in shown():
            ended = self._process.poll() is not None
            late = time.monotonic() > deadline
            if (ended or late) and text not in shown():
                found = f"{self.output()}\n{self.errors()}"
                pytest.fail(f'{shlex.join(self._args)}\nno "{text}" in:\n{found}')
            time.sleep(0.01)

    def send_line(self, line: str = "") -> None:
        """Write one line to the program's stdin."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def agent(self) -> Process:
        """Return the session's agent."""
        return next(process for process in processes_below(self.pid) if process.is_agent)

    def targets(self) -> list[Process]:
        """Return the session's targets, the program itself first.

        There may be one too many: hands that has not run yet has the name of its program.
        """
        below = processes_below(self.pid)
        return [process for process in below if not process.is_agent and not process.is_hands]

    def hands(self) -> list[int]:
        """Return the PID of each target's hands, as far as they have begun."""
        return [process.pid for process in processes_below(self.pid) if process.is_hands]

    def finish(self) -> Outcome:
        """Wait for the end, which the supervisor brings about at the timeout."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=self._timeout + _HARNESS_GRACE_SECONDS)
        report = json.loads(self._report.read())
        stats = self._stats.read_text() if self._stats.exists() else ""
        return Outcome(
            args=self._args,
            returncode=os.waitstatus_to_exitcode(report["status"]),
            stdout=self.output(),
            stderr=self.errors(),
            stats=json.loads(stats) if stats else {},
            left_over=tuple(report["left_over"]),
            timed_out=bool(report["timed_out"]),
            rss=self._rss(),
            stops=self._stops(),
        )

    def _rss(self) -> Rss | None:
        if not self._sampler:
            return None
        line, _errors = self._sampler.communicate(timeout=_HARNESS_GRACE_SECONDS)
        return Rss(**json.loads(line))

    def _stops(self) -> int | None:
        if not self._freezer:
            return None
        line, _errors = self._freezer.communicate(timeout=_HARNESS_GRACE_SECONDS)
        return None if self._freezer.returncode == EXIT_SKIPPED else int(line)
