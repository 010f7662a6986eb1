# SPDX-License-Identifier: MIT
# Goal: tiers come and go, and fill up, under a program that never sees a wrong byte.
# Method: programs of random pages that check themselves, and the command line as users type it.
"""The tiers of a running session, and what happens when all of them are full."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from uffdswap.config import NO_BUDGET

from .fixtures import StartFunction
from .harness import GLUTTON, MIB, Outcome, Session, run_command, wait_until
from .places import silent_file_system

SIZE_MIB = 96  # that do not compress
BUDGET = "48M"
PROGRAM = """
import mmap, os, random, sys
pages = int(sys.argv[1]) * 256
memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def page(number):
    return random.Random(number).randbytes(4096)
print("pid", os.getpid(), flush=True)
for number in range(pages):
    memory[number * 4096 : (number + 1) * 4096] = page(number)
print("filled", flush=True)
for line in sys.stdin:
    for number in range(pages):
        if memory[number * 4096 : (number + 1) * 4096] != page(number):
            print("WRONG", number, flush=True)
    print("checked", flush=True)
"""


class Tiered:
    """A session with tiers, and the commands of uffdswap for it."""

    def __init__(self, session: Session, runtime: Path) -> None:
        self.session = session
        self._runtime = runtime
        session.wait_for_output("pid")
        self.pid = int(re.findall(r"pid (\d+)", session.output())[0])

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return run_command(*words, runtime=self._runtime)

    def command(self, *words: object, status: int = 0) -> str:
        """Return what a command prints: on stderr if it is to fail."""
        done = self.run(*words)
        assert done.returncode == status, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stderr if status else done.stdout

    def tier(self, action: str, *words: object, status: int = 0) -> str:
        """Run a command about tiers. Sessions of others may be running: this one is meant."""
        return self.command("tier", action, "--pid", self.pid, *words, status=status)

    def tiers(self) -> dict[str, dict[str, Any]]:
        report = json.loads(self.tier("list", "--json"))
        assert report["schema"] == "uffdswap.tier-list/1"
        return {tier["name"]: tier for tier in report["tiers"]}

    def status(self) -> dict[str, Any]:
        (session,) = json.loads(self.command("status", self.pid, "--json"))["sessions"]
        assert isinstance(session, dict)
        return session

    def wait_filled(self) -> None:
        self.session.wait_for_output("filled")

    def check(self) -> None:
        before = self.session.output().count("checked")
        self.session.send_line("check")
        wait_until(lambda: self.session.output().count("checked") > before, "it checks itself")
        assert "WRONG" not in self.session.output()

    def finish(self) -> Outcome:
        outcome = self.session.finish()
        outcome.require_ok(paged=True)
        assert "WRONG" not in outcome.stdout
        return outcome


@pytest.fixture
def start(start_session: StartFunction, tmp_path: Path) -> Callable[..., Tiered]:
    runtime = tmp_path / "r"
    runtime.mkdir()

    def run(*options: str, size_mib: int = SIZE_MIB, memory: str = BUDGET) -> Tiered:
        command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(size_mib)]
        environment = {"XDG_RUNTIME_DIR": str(runtime)}
        session = start_session(command, memory=memory, options=options, env=environment)
        return Tiered(session, runtime)

    return run


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Return three places for tiers."""
    places = [tmp_path / name for name in ("one", "two", "three")]
    for place in places:
        place.mkdir()
    return places


# --- Which there are -----------------------------------------------------------------------------


def test_several_disks_are_filled_in_the_order_given(start: Any, folders: list[Path]) -> None:
    file = folders[1] / "tier"
    one = start("--disk", f"{folders[0]}:16M", "--disk", f"{file}:8M", "--disk", str(folders[2]))
    one.wait_filled()
    wait_until(lambda: one.tiers()["disk3"]["segments"] > 0, "the last is used")
    tiers = one.tiers()
    assert list(tiers) == ["ram", "disk1", "disk2", "disk3"]
    assert [tier["kind"] for tier in tiers.values()] == ["ram", "folder", "file", "folder"]
    assert [tier["path"] for tier in tiers.values()] == [
        *(None, str(folders[0])),
        *(str(file), str(folders[2])),
    ]
    assert [tier["cap_bytes"] for tier in tiers.values()] == [48 * MIB, 16 * MIB, 8 * MIB, None]
    for name, cap_bytes in (("disk1", 16 * MIB), ("disk2", 8 * MIB)):
        assert tiers[name]["state"] == "full"
        assert cap_bytes - 2 * MIB < tiers[name]["stored_bytes"] <= cap_bytes
    assert tiers["disk3"]["state"] == "active"
    assert tiers["disk3"]["encrypted"] is True
    header, *rows = one.tier("list", "--bytes").splitlines()
    assert header.split()[:5] == ["NAME", "KIND", "PLACE", "PRIORITY", "STATE"]
    assert [row.split()[0] for row in rows] == list(tiers)
    one.check()
    one.finish()
    assert not file.exists()


def test_tier_of_higher_priority_is_filled_first(start: Any, folders: list[Path]) -> None:
    one = start("--disk", f"{folders[0]}:16M")
    wait_until(lambda: one.tiers()["disk1"]["state"] == "full", "the first is full")
    report = json.loads(one.tier("add", f"{folders[1]}:8M", "--name", "low", "--json"))
    assert report["schema"] == "uffdswap.tier-add/1"
    assert (report["tier"]["name"], report["tier"]["priority"]) == ("low", 0)
    one.tier("add", folders[2], "--name", "high", "--priority", 7)
    one.wait_filled()
    one.check()
    tiers = one.tiers()
    assert tiers["high"]["segments"] > 0
    one.finish()


# --- Adding and removing -------------------------------------------------------------------------


def test_tier_is_removed_while_the_program_goes_on(start: Any, folders: list[Path]) -> None:
    one = start("--disk", str(folders[0]))
    one.wait_filled()
    wait_until(lambda: one.tiers()["disk1"]["segments"] > 20, "it holds something")
    added = one.tier("add", folders[1], "--name", "other")
    assert added.startswith(f"other added: folder {folders[1]}, ")
    one.session.send_line("check")
    report = json.loads(one.tier("remove", "disk1", "--json"))
    assert report["schema"] == "uffdswap.tier-remove/1"
    assert report["name"] == "disk1"
    assert 20 * MIB < report["stored_bytes"] <= 1.1 * report["original_bytes"]
    assert 0 < report["moved_seconds"] <= report["seconds"]
    assert list(one.tiers()) == ["ram", "other"]
    one.session.wait_for_output("checked")
    one.check()
    said = one.tier("remove", "disk1", status=1)
    assert said == "uffdswap: there is no disk tier disk1; `uffdswap tier list` names them\n"
    outcome = one.finish()
    assert outcome.stats["integrity"]["poisoned_pages"] == 0
    assert [list(folder.iterdir()) for folder in folders] == [[], [], []]


def test_new_file_is_told_of(start: Any, tmp_path: Path) -> None:
    one = start("--no-disk", size_mib=4)
    new, empty = tmp_path / "new", tmp_path / "empty"
    empty.touch()
    assert one.tier("add", f"{new}:8M").startswith(f"disk1 added: new file {new}, ")
    assert one.tier("add", empty).startswith(f"disk2 added: file {empty}, ")


def test_tier_without_a_budget_is_for_what_is_parked(start: Any, tmp_path: Path) -> None:
    one = start("--no-disk", memory="max", size_mib=4)
    done = one.run("tier", "add", "--pid", one.pid, tmp_path)
    assert done.stderr == f"uffdswap: {NO_BUDGET}\n"
    one.wait_filled()
    assert one.tiers()["disk1"]["pages"] == 0
    one.command("park", one.pid)
    assert one.tiers()["disk1"]["pages"] >= 1024


def test_tier_is_removed_by_the_path_it_was_added_with(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = start("--no-disk", size_mib=4)
    monkeypatch.chdir(tmp_path)
    for added, removed in (
        ("image:10M", "image"),
        ("image:10M", "./image"),
        ("image:10M", "image:10M"),
        (f"{tmp_path}", "."),
    ):
        one.tier("add", added)
        one.tier("remove", removed)
        assert list(one.tiers()) == ["ram"]
    one.tier("add", "image", "--name", "first")
    one.tier("add", tmp_path, "--name", "image")
    one.tier("remove", "image")
    assert list(one.tiers()) == ["ram", "first"]
    said = one.tier("remove", "nothing", status=1)
    assert "there is no disk tier nothing;" in said


def test_of_two_removals_at_once_one_is_told(start: Any, folders: list[Path]) -> None:
    one = start("--disk", str(folders[0]), "--disk", str(folders[1]))
    one.wait_filled()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(
            lambda _: one.run("tier", "remove", "--pid", one.pid, "disk1", "-v"), range(2)
        )
    done, refused = sorted((first, second), key=lambda result: int(result.returncode))
    assert (done.returncode, refused.returncode) == (0, 1)
    assert re.match(
        r"disk1 removed: .* moved \(.* original\) in .*, .*/s; its space was ", done.stdout
    )
    assert refused.stderr in (
        "uffdswap: disk tier disk1 is being removed already\n",
        "uffdswap: there is no disk tier disk1; `uffdswap tier list` names them\n",
    )
    one.check()
    one.finish()


def test_removal_is_refused_before_anything_moves(start: Any, folders: list[Path]) -> None:
    one = start("--disk", str(folders[0]))
    one.wait_filled()
    before = one.status()["counters"]["promoted_segments"]
    said = one.tier("remove", folders[0], status=1)
    pattern = r"uffdswap: disk tier disk1 holds \d+ MiB, and what is left has room for \d+; "
    assert re.match(pattern + r"nothing was moved\. Raise --memory or add a tier first\n$", said)
    assert one.status()["counters"]["promoted_segments"] == before
    assert one.tiers()["disk1"]["state"] in ("active", "full")
    one.tier("add", f"{folders[1]}:4M")
    said = one.tier("remove", "disk1", status=1)
    assert "nothing was moved" in said
    one.command("set", one.pid, "--memory", "400M")
    one.tier("remove", "disk1")
    one.tier("remove", "disk2")
    assert list(one.tiers()) == ["ram"]
    one.check()
    assert one.finish().stats["tiers"]["disk"]["segments"] == 0


def test_what_makes_no_sense_is_said_in_one_sentence(start: Any, folders: list[Path]) -> None:
    one = start("--disk", str(folders[0]), size_mib=64)
    one.wait_filled()
    for words, status, text in (
        (("add", folders[0]), 1, f"{folders[0]} is a disk tier already; "),
        (("add", f"{folders[0]}/."), 1, f"{folders[0]} is a disk tier already; "),
        (("add", folders[1], "--name", "disk1"), 1, "there is a tier disk1 already; "),
        (("add", folders[1], "--name", "ram"), 1, "there is a tier ram already; "),
        (("add", "/nonexistent/folder"), 1, "cannot use /nonexistent/folder as a disk tier: "),
        (("add", folders[1], "--name", "a b"), 2, '--name: "a b" cannot be a name; '),
        (("add", f"{folders[1]}:1M"), 2, "PATH[:SIZE]: "),
        (("add", folders[1], "--priority", "-1"), 2, "Invalid value for '--priority'"),
        (("remove", "ram"), 1, "tier ram is the RAM of the session and stays; "),
        (("remove",), 2, "Missing argument 'NAME'"),
        (("list", "--pid", 1), 3, "no session has the process 1: "),
    ):
        said = one.tier(*words, status=status)
        assert said.startswith(f"uffdswap: {text}"), said
        assert said.count("\n") == 1
    assert list(one.tiers()) == ["ram", "disk1"]
    one.check()
    one.finish()


# --- When every tier is full ---------------------------------------------------------------------


def wait_for_full(one: Tiered) -> None:
    one.session.wait_for_error("every tier is full")
    assert "filled" not in one.session.output()
    # Before it stands still the program goes on by a page now and then.
    wait_until(lambda: one.status()["waits_for_room"] is True, "it waits")


@pytest.mark.parametrize("options", [(), ("--on-full", "wait")], ids=["default", "wait"])
def test_program_waits_and_a_new_tier_rescues_it(
    options: tuple[str, ...], start: Any, folders: list[Path]
) -> None:
    one = start("--disk", f"{folders[0]}:16M", *options)
    wait_for_full(one)
    status = one.status()
    assert status["swap_share"] > 0.9
    remedy = f"give it some: uffdswap tier add --pid {status['launcher_pid']} PATH, or uffdswap set"
    assert remedy in one.session.errors()
    one.command("tier", "add", "--pid", status["launcher_pid"], folders[1])
    one.wait_filled()
    wait_until(lambda: not one.status()["waits_for_room"], "the wait is over")
    one.check()
    outcome = one.finish()
    assert outcome.stderr.count("every tier is full") == 1
    assert outcome.stderr.count("there is room again: the program goes on") == 1


def test_program_waits_and_a_larger_budget_rescues_it(start: Any, folders: list[Path]) -> None:
    one = start("--disk", f"{folders[0]}:16M")
    wait_for_full(one)
    one.command("set", one.pid, "--memory", "200M")
    one.wait_filled()
    wait_until(lambda: not one.status()["waits_for_room"], "the wait is over")
    one.check()
    assert "there is room again" in one.finish().stderr


def test_waiting_program_can_be_ended(start: Any, folders: list[Path]) -> None:
    one = start("--disk", f"{folders[0]}:16M")
    wait_for_full(one)
    os.kill(one.pid, signal.SIGTERM)
    outcome = one.session.finish()
    assert outcome.returncode == -signal.SIGTERM, outcome.describe()
    assert not outcome.left_over


def test_full_tiers_kill_the_program_if_that_is_wanted(
    start_session: StartFunction, folders: list[Path]
) -> None:
    options = ("--disk", f"{folders[0]}:16M", "--on-full", "kill")
    outcome = start_session(GLUTTON, memory=BUDGET, options=options).finish()
    assert outcome.returncode == 125, outcome.describe()
    assert "the budget of 48 MiB cannot hold this program, and every disk tier is full" in (
        outcome.stderr
    )
    assert 14 * MIB < outcome.stats["peak"]["disk_bytes"] <= 16 * MIB


def test_without_a_disk_waiting_must_be_asked_for(start: Any, folders: list[Path]) -> None:
    one = start("--no-disk", "--on-full", "wait")
    wait_for_full(one)
    one.tier("add", folders[0])
    one.wait_filled()
    one.check()
    one.finish()


def test_budget_that_no_disk_can_help_is_not_waited_for(
    start_session: StartFunction, folders: list[Path]
) -> None:
    program = (
        "import ctypes, mmap\n"
        "m = mmap.mmap(-1, 40 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(40 << 20)):\n"
        "    print('mlock is not allowed here'); raise SystemExit(77)\n"
        "import time; time.sleep(60)\n"
    )
    command = [sys.executable, "-I", "-c", program]
    options = ("--disk", f"{folders[0]}:16M")
    with start_session(command, memory="24M", options=options) as session:
        outcome = session.finish()
    if outcome.returncode == 77:
        pytest.skip(outcome.stdout.strip())
    assert outcome.returncode == 125, outcome.describe()
    assert "the budget of 24 MiB cannot hold this program: " in outcome.stderr


def test_budget_below_what_is_stored_needs_room_on_disks(start: Any, folders: list[Path]) -> None:
    one = start("--no-disk", size_mib=48, memory="80M")
    one.wait_filled()
    one.command("reclaim", one.pid, "48M")

    def ram_bytes() -> int:
        bytes_now = one.tiers()["ram"]["stored_bytes"]
        assert isinstance(bytes_now, int)
        return bytes_now

    wait_until(lambda: ram_bytes() > 40 * MIB, "more is kept in RAM than the budget will be")
    assert "a budget of 24.0 MiB is too small" in one.command(
        *("set", one.pid, "--memory", "24M"), status=1
    )
    one.tier("add", folders[0])
    one.command("set", one.pid, "--memory", "24M")
    wait_until(lambda: ram_bytes() < 10 * MIB, "it went down")
    one.check()
    one.finish()


# --- Accounts ------------------------------------------------------------------------------------


def test_accounts_tell_tiers_apart_and_count_faults_from_disks(
    start: Any, folders: list[Path]
) -> None:
    one = start("--disk", str(folders[0]))
    one.wait_filled()
    one.check()
    status = one.status()
    (target,) = status["targets"]
    counters = status["counters"]
    assert counters["faults_disk"] > 0
    sources = ("zero", "same", "standby", "ram", "disk")
    assert target["faults"] == sum(counters[f"faults_{source}"] for source in sources)
    assert target["refaults"] <= target["faults"] == status["faults"]
    pages = target["evicted_pages"]
    original = target["original_bytes"]
    assert original["standby"] == pages["standby"] * 4096
    assert original["ram"] + original["disk"] == pages["object"] * 4096
    assert original["disk"] > 20 * MIB
    stored = target["stored_bytes"]
    assert 0.9 * original["disk"] < stored["disk"] <= original["disk"]
    # A session's account has kept copies of pages that are back, too.
    assert status["original_bytes"]["disk"] >= original["disk"]
    (disk,) = [tier for tier in status["tiers"] if tier["name"] == "disk1"]
    assert disk["stored_bytes"] <= counters["disk_peak_bytes"]
    assert 0 < status["swap_share"] < 0.5
    peak = counters["disk_peak_bytes"]
    outcome = one.finish()
    assert outcome.stats["peak"]["disk_bytes"] >= peak
    assert outcome.stats["tiers"]["disk"] == dict.fromkeys(
        ("pages", "original_bytes", "stored_bytes", "segments"), 0
    )


def test_place_that_does_not_answer_is_refused_and_holds_up_nobody(
    start: Any, tmp_path: Path
) -> None:
    with silent_file_system(tmp_path) as place:
        one = start(size_mib=8)
        for path in (place, place / "file"):
            said = one.tier("add", path, status=1)
            assert said.startswith(f"uffdswap: cannot use {path} as a disk tier: its file system")
        assert list(one.tiers()) == ["ram", "disk1"]
        one.session.finish().require_ok()
