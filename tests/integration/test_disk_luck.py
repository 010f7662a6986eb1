# SPDX-License-Identifier: MIT
# Goal: whatever a disk does, nothing is lost or wrong: what cannot be written stays in RAM, and
#   what cannot be read right is poisoned and told, never invented.
# Method: disks that are filled, cut, damaged, swapped about, removed and slowed down while a
#   program that knows each of its pages is swapped to them.
"""Bad luck with disks, made to happen."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uffdswap.tier_desk import SLOT_BYTES

from .fixtures import StartFunction
from .harness import GLUTTON, MIB, REPOSITORY, Outcome, wait_until
from .places import fill_up, loop_device, small_file_system
from .test_control import Controlled, runtime

__all__ = ("runtime",)

PROGRAM = REPOSITORY / "tests" / "programs" / "luck_pages.py"
SIZE_MIB = 64
BUDGET = "48M"  # the pages, the agent and the interpreter need about 90

pytestmark = pytest.mark.timeout(240)


class Unlucky(Controlled):
    """A session with a program of pages, for which something goes wrong."""

    def churn(self, times: int = 3000, seed: int = 1) -> None:
        self.tell(f"churn {times} {seed}", "churned")

    def end_right(self) -> Outcome:
        """Demand that every page is right, and that it was said so."""
        self.churn(seed=99)
        self.check()
        outcome = self.session.finish()
        outcome.require_ok(paged=True)
        assert "WRONG" not in outcome.stdout, outcome.describe()
        return outcome

    def end_poisoned(self, *, why: str) -> Outcome:
        """Demand that the program gets SIGBUS for what is damaged, and no wrong page."""
        self.session.send_line("check")
        outcome = self.session.finish()
        assert "WRONG" not in outcome.stdout, outcome.describe()
        assert "right" not in outcome.stdout, outcome.describe()
        assert outcome.returncode == -signal.SIGBUS, outcome.describe()
        assert outcome.stats["integrity"]["poisoned_pages"] > 0, outcome.describe()
        # It was read alone, or came back with its whole segment: then it is found out twice.
        alone = f"in the disk tier disk1 was damaged .*({why})"
        whole = "disk1: [0-9]+ pages were damaged on the disk(.|\n)*in the ram tier was damaged"
        assert re.search(f"{alone}|{whole}", outcome.stderr), outcome.describe()
        assert not outcome.left_over, outcome.describe()
        return outcome


StartUnlucky = Callable[..., Unlucky]


@pytest.fixture
def start(start_session: StartFunction, runtime: Path) -> StartUnlucky:
    def run(disk: str | Path, size_mib: int = SIZE_MIB, **options: Any) -> Unlucky:
        command = ["python3", "-S", "-E", PROGRAM, str(size_mib)]
        environment = {"XDG_RUNTIME_DIR": str(runtime)}
        more = options.pop("options", ())
        options = {"memory": BUDGET, "options": ("--disk", str(disk), *more), **options}
        return Unlucky(start_session(command, env=environment, **options), runtime)

    return run


# --- Writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_file_system_that_others_fill_loses_nothing(
    kind: str, start: StartUnlucky, tmp_path: Path
) -> None:
    with small_file_system(tmp_path, 160, kind=kind) as place:
        one = start(place)
        hog = fill_up(place)
        one.command("set", one.pid, "--memory", "200M")
        one.churn()
        one.check()
        hog.unlink()
        one.command("set", one.pid, "--memory", "100M")
        assert one.end_right().stats["swap"]["demoted_segments"] > 0


def test_a_full_file_system_and_a_budget_that_binds_end_in_words(
    start_session: StartFunction, tmp_path: Path
) -> None:
    with small_file_system(tmp_path, 24) as place:
        fill_up(place)
        options = ("--disk", str(place), "--on-full", "kill")
        outcome = start_session(GLUTTON, memory=BUDGET, options=options).finish()
    assert outcome.returncode == 125, outcome.describe()
    assert f"the budget of {BUDGET[:-1]} MiB cannot hold this program" in outcome.stderr


def test_a_small_file_system_is_left_its_share(
    start_session: StartFunction, tmp_path: Path
) -> None:
    over = threading.Event()
    free: list[int] = []

    def look() -> None:
        while not over.wait(0.001):
            free.append(os.statvfs(place).f_bavail)

    with small_file_system(tmp_path, 64, kind="ext4") as place:
        blocks = os.statvfs(place).f_blocks
        looker = threading.Thread(target=look)
        looker.start()
        options = ("--disk", str(place), "--on-full", "kill")
        outcome = start_session(GLUTTON, memory=BUDGET, options=options).finish()
        over.set()
        looker.join()
    assert outcome.returncode == 125, outcome.describe()
    assert "failed" not in outcome.stderr, outcome.describe()
    assert blocks // 64 * 3 // 4 < min(free) < max(free) // 4


def test_pages_that_cannot_be_written_stay_in_ram(start: StartUnlucky, tmp_path: Path) -> None:
    """Writes behind the 16th MiB fail, the first of them in its middle, until they may go on."""
    file = tmp_path / "tier"
    one = start(file, memory="400M")
    agent = one.session.agent().pid
    _soft, hard = resource.prlimit(agent, resource.RLIMIT_FSIZE)
    resource.prlimit(agent, resource.RLIMIT_FSIZE, (16 * MIB + 8192, hard))
    one.command("set", one.pid, "--memory", "140M", "--resident", "16M")
    one.churn(20000)
    one.check()
    assert 8 * MIB < one.status()["stored_bytes"]["disk"] < 17 * MIB
    assert file.stat().st_size <= 16 * MIB + 8192
    resource.prlimit(agent, resource.RLIMIT_FSIZE, (hard, hard))
    one.command("set", one.pid, "--memory", "90M", "--resident", "max")
    outcome = one.end_right()
    assert outcome.stderr.count("disk tier disk1: a write failed (File too large)") == 1
    assert outcome.stats["peak"]["disk_bytes"] > 17 * MIB


def test_a_disk_that_loses_writes_is_found_out(start: StartUnlucky, tmp_path: Path) -> None:
    """A loop device says of a write that its file system took half of that all is well."""
    with (
        small_file_system(tmp_path, 16) as place,
        loop_device(place, 256) as device,
    ):
        one = start(device.path, memory="90M", resident="16M")
        wait_until(
            lambda: one.status()["counters"]["demoted_segments"] > 0, "segments go to the device"
        )
        one.session.send_line("check")
        outcome = one.session.finish()
    assert "WRONG" not in outcome.stdout, outcome.describe()
    assert outcome.stats["swap"]["demoted_segments"] > 0
    if outcome.returncode:
        assert outcome.returncode == -signal.SIGBUS, outcome.describe()
        assert "in the disk tier disk1 was damaged (its seal is broken)" in outcome.stderr


# --- Reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept_mib", [0, 8])
def test_pages_that_cannot_be_read_are_poisoned(
    kept_mib: int, start: StartUnlucky, tmp_path: Path
) -> None:
    with loop_device(tmp_path, 256) as device:
        one = start(device.path)
        one.churn()
        device.cut(kept_mib * MIB)
        # A write behind the cut makes the file longer again, with zeros in between.
        one.end_poisoned(why="it cannot be read|its seal is broken")


def test_a_file_that_is_cut_off_is_told(start: StartUnlucky, tmp_path: Path) -> None:
    file = tmp_path / "tier"
    file.touch()
    one = start(file)
    os.truncate(file, 0)
    one.end_poisoned(why="it is cut off|its seal is broken")  # zeros, once a write has grown it


def flip_bits(file: Path) -> None:
    with file.open("r+b", buffering=0) as stream:
        for offset in range(1000, stream.seek(0, os.SEEK_END), 4096):
            stream.seek(offset)
            byte = stream.read(1)[0]
            stream.seek(offset)
            stream.write(bytes([byte ^ 16]))


def swap_slots(file: Path) -> None:
    slots = _slots(file)
    _write_slots(file, slots[1::2] + slots[::2])


def move_objects(file: Path) -> None:
    """Within each slot, by the length of a page that did not compress and its tag."""
    step = 4096 + 16
    _write_slots(file, [slot[step:] + slot[:step] for slot in _slots(file)])


def _slots(file: Path) -> list[bytes]:
    content = file.read_bytes()
    ends = range(0, len(content), SLOT_BYTES)
    return [content[start : start + SLOT_BYTES].ljust(SLOT_BYTES, b"\0") for start in ends]


def _write_slots(file: Path, slots: list[bytes]) -> None:
    with file.open("r+b") as stream:
        stream.write(b"".join(slots))


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
@pytest.mark.parametrize("damage", [flip_bits, swap_slots, move_objects])
def test_what_is_not_what_was_written_is_refused(
    damage: Callable[[Path], None], sealed: bool, start: StartUnlucky, tmp_path: Path
) -> None:
    file = tmp_path / "tier"
    file.touch()
    one = start(file, options=() if sealed else ("--no-disk-encryption",))
    one.churn()
    damage(file)
    # Pages that did not compress are stored as they are: only their hash tells. The interpreter's
    # own did, and one of them may be the first that is missed.
    one.end_poisoned(why="its seal is broken" if sealed else "hash mismatch|decompressed")


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
def test_what_was_there_earlier_is_refused(
    sealed: bool, start: StartUnlucky, tmp_path: Path
) -> None:
    file = tmp_path / "tier"
    file.touch()
    one = start(file, options=() if sealed else ("--no-disk-encryption",))
    earlier = file.read_bytes()
    one.churn(30000)
    with file.open("r+b") as stream:
        stream.write(earlier)
    one.end_poisoned(why="its seal is broken" if sealed else "hash mismatch|decompressed")


# --- The place goes, or is slow ------------------------------------------------------------------


def test_a_folder_that_is_removed_is_used_on(start: StartUnlucky, tmp_path: Path) -> None:
    folder = tmp_path / "tier"
    folder.mkdir()
    one = start(folder)
    folder.rmdir()
    one.churn()
    assert one.end_right().stats["faults"]["disk"] > 0


def test_a_file_that_is_replaced_is_used_on_and_the_other_is_left_alone(
    start: StartUnlucky, tmp_path: Path
) -> None:
    file = tmp_path / "tier"
    one = start(file)
    file.unlink()
    file.write_text("precious")
    assert one.end_right().stats["faults"]["disk"] > 0
    assert file.read_text() == "precious"


def test_a_disk_slower_than_the_program(start: StartUnlucky, tmp_path: Path) -> None:
    with loop_device(tmp_path, 256) as device:
        device.throttle(16 * MIB)
        one = start(device.path, timeout=200)
        one.churn(1000)
        device.throttle(0)
        assert one.end_right().stats["faults"]["disk"] > 0


# --- Limits and bad company ----------------------------------------------------------------------


def test_budgets_that_change_while_they_are_being_met(start: StartUnlucky, tmp_path: Path) -> None:
    one = start(tmp_path, memory="200M")
    for round_number in range(3):
        for budget in ("120M", "36M", "64M", BUDGET, "180M", "40M"):
            one.command("set", one.pid, "--memory", budget)
            one.session.send_line(f"churn 200 {round_number}")
    one.command("set", one.pid, "--memory", "160M", "--resident", "8M")
    one.command("set", one.pid, "--memory", "40M", "--resident", "max")
    one.check()
    assert one.end_right().stats["swap"]["demoted_segments"] > 0


def test_park_and_restore_while_the_program_works(start: StartUnlucky, tmp_path: Path) -> None:
    one = start(tmp_path, memory="160M")
    for number in range(4):
        one.session.send_line(f"churn 4000 {number}")
        one.command("park", one.pid)
        one.command("restore", one.pid)
    one.check()
    assert one.end_right().stats["swap"]["promoted_segments"] > 0


def test_garbage_on_the_socket_while_it_swaps(start: StartUnlucky, tmp_path: Path) -> None:
    one = start(tmp_path)
    one.session.send_line("churn 6000 5")
    for number in range(50):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(one.socket_path())
            client.send(os.urandom(1 + number * 97))
            client.recv(65536)
    assert one.status()["program_pid"] == one.pid
    one.end_right()
