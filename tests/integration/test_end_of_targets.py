# SPDX-License-Identifier: MIT
# Goal: when a target ends, in whatever way, all that was held for it is given back.
# Method: count the agent's and the launcher's descriptors, threads and memory before and after.
"""Ends of targets: exec, exit, SIGKILL; and the end of the agent, which must not go unnoticed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from .fixtures import RunFunction, StartFunction
from .harness import MIB, Programs, Session, processes_below, wait_until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a PID namespace")

STEADY_SECONDS = 0.5
CPU_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a session holds, seen from outside."""

    agent_fds: int
    agent_threads: int
    launcher_fds: int
    processes: int


def count(folder: str) -> int:
    """Count the entries of a folder."""
    return sum(1 for _entry in Path(folder).iterdir())


def holdings(session: Session) -> Holdings:
    """Count now."""
    agent = session.agent().pid
    return Holdings(
        agent_fds=count(f"/proc/{agent}/fd"),
        agent_threads=count(f"/proc/{agent}/task"),
        launcher_fds=count(f"/proc/{session.pid}/fd"),
        processes=len(processes_below(session.pid)),
    )


def steady_holdings(session: Session) -> Holdings:
    """Count when nothing has changed for a while: what ended before has been given back."""
    deadline = time.monotonic() + 20
    counted = holdings(session)
    since = time.monotonic()
    while time.monotonic() - since < STEADY_SECONDS:
        assert time.monotonic() < deadline, "the agent does not come to rest"
        time.sleep(0.02)
        now = holdings(session)
        if now != counted:
            counted, since = now, time.monotonic()
    return counted


def memfd_bytes(pid: int) -> int:
    """Return what a process's memfds hold, each counted once."""
    blocks = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).startswith("/memfd:"):
                status = entry.stat()
                blocks[status.st_ino] = status.st_blocks
    return 512 * sum(blocks.values())


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_thousand_children_leave_nothing_behind(
    programs: Programs, start_session: StartFunction
) -> None:
    args = [programs("lifecycle_fork"), "fork_exec_many", "8M"]
    with start_session(args, resident="8M", timeout=100) as session:
        session.wait_for_output("ready")
        before = steady_holdings(session)
        before_bytes = memfd_bytes(session.agent().pid)
        session.send_line("go")
        session.wait_for_output("done", seconds=90)
        after = steady_holdings(session)
        after_bytes = memfd_bytes(session.agent().pid)
        session.send_line("end")
        outcome = session.finish()
    outcome.require_ok(paged=True)
    assert after == before
    assert after_bytes <= before_bytes + 4 * MIB
    assert outcome.stats["targets"] >= 1000
    assert outcome.stats["swap"]["descriptors"] == 0


def start_busy(programs: Programs, start_session: StartFunction) -> Session:
    """Start a program that faults and is evicted from all the time, and let it get going."""
    session = start_session([programs("race_write"), "0"], resident="10M", stress=20_000)
    session.wait_for_output("running")
    target = session.targets()[0].pid
    wait_until(lambda: cpu_seconds(target) > CPU_SECONDS, "the target gets going")
    return session


def wait_for_child(session: Session) -> int:
    """Return the child that the program has told of, once that runs.

    By its number, since its hands has its name until it has run for the first time.
    """
    session.wait_for_output("running")
    session.wait_for_output("child")
    return int(re.findall(r"child (\d+)", session.output())[0])


def test_killed_target_leaves_nothing_behind(
    programs: Programs, start_session: StartFunction
) -> None:
    with start_busy(programs, start_session) as session:
        os.kill(session.targets()[0].pid, signal.SIGKILL)
        outcome = session.finish()
    assert not outcome.timed_out, outcome.describe()
    assert outcome.returncode == -signal.SIGKILL, outcome.describe()
    assert not outcome.left_over, outcome.describe()
    assert outcome.stats["signal"] == signal.SIGKILL
    assert outcome.stats["evictions"]["pages"] > 0
    assert outcome.stats["integrity"]["poisoned_pages"] == 0


def test_killed_child_leaves_its_parent_alone(
    programs: Programs, start_session: StartFunction
) -> None:
    program = programs("race_write")
    script = f"{program} 0 & echo child $!; wait $!; test $? = 137 && echo survived"
    with start_session(["sh", "-c", script], resident="10M", stress=20_000) as session:
        child = wait_for_child(session)
        wait_until(lambda: cpu_seconds(child) > CPU_SECONDS, "the child gets going")
        agent = session.agent().pid
        os.kill(child, signal.SIGKILL)
        outcome = session.finish()
    outcome.require_ok(paged=True)
    assert "survived" in outcome.stdout
    assert not Path(f"/proc/{agent}").exists()


STATIC = """
#include <stdio.h>
int main(void) { puts("running"); fflush(stdout); return getchar() != EOF; }
"""


@needs_root
@pytest.mark.parametrize("size_mib", [0, 64], ids=["at-once", "large"])
def test_memory_of_a_program_in_a_pid_namespace_goes_when_it_executes_a_static_one(
    programs: Programs, start_session: StartFunction, tmp_path: Path, size_mib: int
) -> None:
    source = tmp_path / "static.c"
    source.write_text(STATIC)
    static = programs.compile(source, ["-static"])
    script = f"import os; x = b'x' * ({size_mib} << 20); os.execv('{static}', ['static'])"
    inside = [sys.executable, "-I", "-S", "-c", script]
    args = ["unshare", "--pid", "--fork", *inside]
    with start_session(args, resident="1G") as session:
        session.wait_for_output("running")
        # It ends as a child of a program that does not wait for it; unshare's own stays.
        wait_until(lambda: living_hands(session) == 1, "the old image's hands has ended")
        outcome = session.finish()
    outcome.require_ok()


def living_hands(session: Session) -> int:
    """Count those that have not ended, reaped or not."""
    count = 0
    for pid in session.hands():
        with contextlib.suppress(OSError):
            count += "VmRSS" in Path(f"/proc/{pid}/status").read_text()
    return count


def test_death_of_the_agent_ends_the_program_and_never_zeroes_it(
    programs: Programs, start_session: StartFunction
) -> None:
    with start_busy(programs, start_session) as session:
        os.kill(session.agent().pid, signal.SIGKILL)
        outcome = session.finish()
    assert not outcome.timed_out, outcome.describe()
    assert outcome.returncode == 125, outcome.describe()
    assert "uffdswap: " in outcome.stderr, outcome.describe()
    assert "race_write[" not in outcome.stderr, f"it saw a wrong page\n{outcome.describe()}"
    assert not outcome.left_over, outcome.describe()


def test_who_outlives_a_process_in_its_memory_sees_no_zeros(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run([programs("clone_vm")], stress=20_000)
    outcome.require_ok(paged=True)
    assert "clone_vm: ok" in outcome.stdout, outcome.describe()


def test_a_child_whose_hands_cannot_be_started_lives_on(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run([programs("no_hands"), "8M"], resident="8M")
    outcome.require_ok(paged=True)
    assert "no_hands: ok" in outcome.stdout, outcome.describe()
    assert outcome.stderr.count("could not start its helper task") == 1, outcome.describe()


def test_a_child_that_cannot_join_is_told_of(uffdswap_run: RunFunction) -> None:
    script = """
import os, resource, time
pages = bytearray(24 << 20)
pages[::4096] = bytes(1 for _ in pages[::4096])
resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))
for _ in range(2):
    if not os.fork():
        time.sleep(13)
        os._exit(pages[::4096] != bytes(1 for _ in pages[::4096]))
for _ in range(2):
    assert os.wait()[1] == 0
"""
    outcome = uffdswap_run([sys.executable, "-c", script], resident="12M")
    outcome.require_ok(paged=True)
    assert outcome.stderr.count("a forked child could not join") == 1, outcome.describe()


def test_nobody_waits_for_hands_that_has_not_begun(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run([programs("no_hands"), "8M", "late"], resident="8M")
    outcome.require_ok(paged=True)
    assert "no_hands: ok" in outcome.stdout, outcome.describe()


def test_a_program_that_executes_another_is_not_taken_for_one_without_hands(
    uffdswap_run: RunFunction,
) -> None:
    # Each child is evicted from while it executes; the busy ones delay the agent in between.
    script = """
    (while :; do :; done) & busy=$!
    (while :; do :; done) & busy="$busy $!"
    for round in $(seq 300); do sh -c 'true; exec /bin/true' & wait $! || echo lost; done
    kill $busy
    """
    outcome = uffdswap_run(["sh", "-c", script], resident="10M", stress=200_000)
    assert outcome.returncode == 0, outcome.describe()
    assert "lost" not in outcome.stdout, outcome.describe()
    assert outcome.stats["evictions"]["pages"] > 0


def test_stopped_target_is_not_in_the_way_of_others(
    programs: Programs, start_session: StartFunction
) -> None:
    busy, other = programs("race_write"), programs("rewrite")
    script = f"{busy} 0 & echo child $!; {other} 24M 10000 && kill -KILL $!"
    with start_session(["sh", "-c", script], resident="16M") as session:
        child = wait_for_child(session)
        os.kill(child, signal.SIGSTOP)
        session.wait_for_output("MiB right", seconds=80)
        outcome = session.finish()
    outcome.require_ok(paged=True)
