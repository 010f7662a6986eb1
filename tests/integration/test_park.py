# SPDX-License-Identifier: MIT
# Goal: a parked process costs next to nothing, on a disk as in RAM, and comes back whole.
# Method: an idle Python process that checks its memory, parked and woken through the command line.
"""Park to the deepest tier, and restore from it."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from .harness import MIB, wait_until
from .test_control import Controlled, runtime, start

__all__ = ("runtime", "start")

SIZE_MIB = 256


def on_disk(one: Controlled) -> int:
    stored = one.status()["stored_bytes"]
    assert isinstance(stored, dict)
    return int(stored["disk"])


@pytest.mark.parametrize("options", [(), ("--no-disk-encryption",)], ids=["sealed", "plain"])
def test_parked_process_is_on_the_disk_and_comes_back(
    options: tuple[str, ...], start: Any, tmp_path: Path
) -> None:
    one = start(SIZE_MIB, options=("--disk", str(tmp_path), *options))
    held_before = one.status()["ram_bytes"]
    one.command("park", one.pid)
    assert one.resident_bytes() < 8 * MIB
    status = one.status()
    assert status["stored_bytes"]["standby"] == 0
    assert status["stored_bytes"]["ram"] < 2 * MIB
    assert status["stored_bytes"]["disk"] > 0.4 * SIZE_MIB * MIB
    assert status["ram_bytes"] - held_before < 16 * MIB
    one.tell("touch", "touched")
    assert one.resident_bytes() < 16 * MIB
    one.check()  # reads all of it, page after page
    assert one.resident_bytes() >= SIZE_MIB * MIB
    one.finish()


def test_restore_reads_whole_segments(start: Any, tmp_path: Path) -> None:
    one = start(SIZE_MIB, options=("--disk", str(tmp_path)))
    one.command("park", one.pid)
    before = one.status()["counters"]
    report = one.json("restore", one.pid)
    assert report["moved_bytes"] >= SIZE_MIB * MIB
    after = one.status()["counters"]
    assert after["faults_disk"] == before["faults_disk"]
    assert after["promoted_segments"] - before["promoted_segments"] >= SIZE_MIB // 3
    assert one.target()["evicted_bytes"] == 0
    one.check()
    one.finish()


def test_park_and_restore_again_and_again(start: Any, tmp_path: Path) -> None:
    one = start(48, options=("--disk", str(tmp_path)))
    for _ in range(4):
        one.command("park", one.pid)
        assert on_disk(one) > 16 * MIB
        one.tell("touch", "touched")
        one.command("park", one.pid)
        one.check()
        one.command("park", one.pid)
        one.command("restore", one.pid)
    one.check()
    one.finish()


def test_restore_on_a_budget_without_room_for_segments(start: Any, tmp_path: Path) -> None:
    """What does not fit stays on the disk, and nothing leaves for what comes."""
    one = start(96, memory="48M", options=("--disk", str(tmp_path)))
    one.command("park", one.pid)
    one.command("restore", one.pid)
    assert one.resident_bytes() <= 48 * MIB
    one.check()
    one.finish()


@pytest.mark.parametrize("where", ["ram", "disk", "disk without room for segments"])
def test_restore_takes_no_guard_away(where: str, start: Any, tmp_path: Path) -> None:
    """A guard that the program has put where a page was is no place for what that page held."""
    options = ("--no-disk",) if where == "ram" else ("--disk", str(tmp_path))
    one = start(64, memory="48M" if "without" in where else "1G", options=options)
    one.command("park", one.pid)
    one.tell("guard", "guard")
    if "no guards" in one.session.output():
        pytest.skip("MADV_GUARD_INSTALL is not in this kernel (6.13)")
    one.command("restore", one.pid)
    one.tell("overflow", "stopped")
    one.session.finish().require_ok(may_vanish=True)


def test_a_disk_that_cannot_hold_it_takes_what_it_can(start: Any, tmp_path: Path) -> None:
    one = start(96, options=("--disk", f"{tmp_path}:8M"))
    one.command("park", one.pid)
    stored = one.status()["stored_bytes"]
    assert 4 * MIB < stored["disk"] <= 8 * MIB
    assert stored["ram"] > 16 * MIB
    assert one.resident_bytes() < 8 * MIB
    one.check()
    one.finish()


def test_without_a_disk_everything_is_in_ram(start: Any) -> None:
    one = start(96, options=("--no-disk",))
    one.command("park", one.pid)
    stored = one.status()["stored_bytes"]
    assert stored["disk"] == 0
    assert stored["ram"] > 16 * MIB
    one.check()
    one.finish()


def test_a_fork_is_parked_without_its_parent(start: Any, tmp_path: Path) -> None:
    """Pages that both refer to go down when one is parked, and are right for either."""
    one = start(64, options=("--disk", str(tmp_path)))
    one.tell("fork", "child")
    child = int(re.findall(r"child (\d+)", one.session.output())[0])
    one.command("park", child)
    one.check()
    one.command("park", one.pid)
    os.kill(child, signal.SIGUSR1)
    one.tell("wait", "child right")
    one.check()
    one.finish()


def test_a_process_whose_hands_is_stopped_is_left_alone(start: Any) -> None:
    """As where a freezer has stopped both: nothing leaves, and nobody is killed for that."""
    one = start(48, options=("--no-disk",))
    (hands,) = one.session.hands()
    os.kill(hands, signal.SIGSTOP)
    assert one.json("park", one.pid)["moved_bytes"] == 0
    one.check()
    os.kill(hands, signal.SIGCONT)
    one.command("park", one.pid)
    assert one.resident_bytes() < 8 * MIB
    one.check()
    one.finish()


def test_a_process_whose_hands_is_killed_at_rest_lives_on(start: Any) -> None:
    """As by kill(-1, SIGKILL) of the first process of a PID namespace."""
    one = start(48, options=("--no-disk",))
    one.command("park", one.pid)
    (hands,) = one.session.hands()
    launcher = psutil.Process(hands).ppid()
    os.kill(launcher, signal.SIGSTOP)  # it reaps hands, which is to be there when it has ended
    os.kill(hands, signal.SIGKILL)
    wait_until(lambda: psutil.Process(hands).status() == psutil.STATUS_ZOMBIE, "hands has ended")
    time.sleep(0.2)  # the agent asks every 50 ms whether the program is still where hands is
    one.check()
    os.kill(launcher, signal.SIGCONT)
    one.json("park", one.pid)
    assert "has lost its helper task" in one.session.errors()
    one.check()
    one.finish()


def test_a_parked_process_that_ends_leaves_nothing_on_the_disk(start: Any, tmp_path: Path) -> None:
    one = start(64, options=("--disk", str(tmp_path)))
    one.tell("fork", "child")
    child = int(re.findall(r"child (\d+)", one.session.output())[0])
    one.command("park", child)
    held = on_disk(one)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: on_disk(one) < held / 2, "the space is given back")
    one.check()
    one.finish()
