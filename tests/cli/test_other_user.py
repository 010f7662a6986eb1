# SPDX-License-Identifier: MIT
# Goal: a program that the launcher may not signal runs on as before, and never reads a wrong page.
# Method: a program that becomes another user, under a launcher without CAP_KILL.
"""Programs that change their user."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

import pytest
from integration.harness import processes_below, wait_until

from .launching import UFFDSWAP, Launch, error_lines, is_running, python

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="needs root and setpriv, to become another user and to go without CAP_KILL",
)

LIMIT = ("--resident", "16M", "--no-disk")
WITHOUT_KILL = ("setpriv", "--bounding-set", "-kill", "--inh-caps", "-kill")

# Has memory that leaves, becomes somebody else, and at a word counts the pages that read wrong.
CHANGED = """
import os
pages = bytearray(64 << 20)
pages[::4096] = b"x" * (len(pages) >> 12)
os.setuid(65534)
print(os.getpid(), flush=True)
input()
print(sum(byte != 120 for byte in pages[::4096]), "wrong", flush=True)
"""

# A launcher with a bug that shows when it is sent a signal.
BROKEN = """
import sys
from uffdswap import cli
from uffdswap.launch import Launcher
def forward(self, info):
    raise RuntimeError("a bug")
Launcher._forward = forward
sys.exit(cli.main())
"""


def start(*launcher: str) -> Launch:
    return Launch(python(CHANGED), options=LIMIT, launcher=(*WITHOUT_KILL, *launcher, "run"))


def hands_of(launch: Launch) -> int:
    return next(process.pid for process in processes_below(launch.pid) if process.is_hands)


def test_signal_that_may_not_be_passed_on_is_told_of_and_the_program_goes_on() -> None:
    with start(*UFFDSWAP) as launch:
        program = int(launch.line())
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            launch.process.send_signal(number)
            time.sleep(0.1)  # so that they do not become one
        launch.send_line()
        status, stdout, stderr = launch.finish()
    assert (status, stdout) == (0, b"0 wrong\n"), stderr
    usr1, term = error_lines(stderr)
    assert f"SIGUSR1 cannot be passed on to process {program}" in usr1
    assert f"as root: kill -TERM {program}" in term


def test_program_that_may_not_be_killed_waits_for_pages_that_are_lost() -> None:
    with start(*UFFDSWAP) as launch:
        program = int(launch.line())
        hands = hands_of(launch)
        os.kill(launch.agent().pid, signal.SIGKILL)
        assert launch.process.wait(60) == 125
        launch.send_line()
        time.sleep(1)  # in which it would read zeros
        assert is_running(program)
        assert is_running(hands)
        os.kill(program, signal.SIGKILL)
        _status, stdout, stderr = launch.finish()
    assert stdout == b""
    assert f"process {program} cannot be killed" in stderr.decode()
    wait_until(lambda: not is_running(hands), "its hands has ended")


def test_program_that_may_not_be_killed_gets_no_zeros_from_a_launcher_that_fails() -> None:
    with start(sys.executable, "-P", "-c", BROKEN) as launch:
        program = int(launch.line())
        launch.process.send_signal(signal.SIGUSR1)
        assert launch.process.wait(60) == 125
        launch.send_line()
        _status, stdout, stderr = launch.finish()
    assert stdout == b""  # not a word of pages: it has had SIGBUS
    assert f"process {program} cannot be killed" in stderr.decode()
    wait_until(lambda: not is_running(program), "the program has ended")
