# SPDX-License-Identifier: MIT
# Goal: the agent runs where the program runs, and is never caught where it cannot run at all.
# Method: look, while a program pages, where the kernel lets the fault threads run.
"""Which processors the agent's fault threads and hands keep to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from uffdswap.bench.counters import workload_path

from .fixtures import StartFunction
from .harness import Programs, Session, wait_until

REAL_TIME = ("chrt", "--fifo", "10")
BELOW = ("unshare", "--fork", "--pid")
PAGING = ("24M", "150000")


def require_two_processors() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors to choose from")


def tasks_that_follow(session: Session) -> list[int]:
    threads = Path(f"/proc/{session.agent().pid}/task").iterdir()
    answering = (task for task in threads if (task / "comm").read_text() == "uffdswap-fault\n")
    return [*(int(task.name) for task in answering), *session.hands()]


def is_running(session: Session, program: str) -> bool:
    # By name: a child of the launcher is nobody in particular until it has executed something.
    return any(target.name == Path(program).name for target in session.targets())


def watch(session: Session, program: str) -> set[int]:
    """Return how many processors a task that follows was ever left, until the program ends."""
    counts: set[int] = set()
    wait_until(lambda: is_running(session, program), "the program runs")
    while is_running(session, program):
        with contextlib.suppress(OSError, StopIteration):  # the session ends
            counts |= {len(os.sched_getaffinity(task)) for task in tasks_that_follow(session)}
    return counts


def test_fault_threads_keep_to_the_processor_of_the_program(
    programs: Programs, start_session: StartFunction
) -> None:
    require_two_processors()
    program = programs("rewrite")
    with start_session([program, *PAGING], resident="8M") as session:
        assert 1 in watch(session, program)
        session.finish().require_ok(paged=True)


def test_threads_in_a_namespace_of_their_own_are_followed(
    programs: Programs, start_session: StartFunction
) -> None:
    require_two_processors()
    if subprocess.run([*BELOW, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no permission for a PID namespace")
    program = programs("rewrite")
    with start_session([*BELOW, program, *PAGING, "2"], resident="8M") as session:
        assert 1 in watch(session, program)
        session.finish().require_ok(paged=True)


def test_nobody_keeps_to_the_processor_of_a_real_time_thread(
    programs: Programs, start_session: StartFunction
) -> None:
    require_two_processors()
    if subprocess.run([*REAL_TIME, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no permission for a real-time thread")
    program = programs("rewrite")
    with start_session([*REAL_TIME, program, *PAGING], resident="8M") as session:
        counts = watch(session, program)
        assert counts, "no look at a task that follows"
        assert 1 not in counts
        session.finish().require_ok(paged=True)


def test_hands_that_does_not_run_is_let_go(
    programs: Programs, start_session: StartFunction
) -> None:
    require_two_processors()
    with start_session([programs("race_write"), "3"], resident="8M") as session:
        wait_until(lambda: bool(session.hands()), "the program has hands")
        (hands,) = session.hands()
        wait_until(lambda: len(os.sched_getaffinity(hands)) == 1, "hands follows the program")
        os.kill(hands, signal.SIGSTOP)
        wait_until(lambda: len(os.sched_getaffinity(hands)) > 1, "it may run elsewhere")
        os.kill(hands, signal.SIGCONT)
        session.finish().require_ok(paged=True)


def test_hands_is_let_go_while_the_program_walks(start_session: StartFunction) -> None:
    require_two_processors()
    walk = (workload_path(), *["--pattern", "seq-read", "--size", "64M", "--seconds", "3"])
    with start_session(walk, resident="16M") as session:
        wait_until(lambda: bool(session.hands()), "the program has hands")
        (hands,) = session.hands()

        def is_alone() -> bool:
            here = {len(os.sched_getaffinity(task)) for task in tasks_that_follow(session)}
            return 1 in here and len(os.sched_getaffinity(hands)) > 1

        wait_until(is_alone, "fault threads follow the program and hands does not")
        session.finish().require_ok(paged=True)
