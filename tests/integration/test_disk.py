# SPDX-License-Identifier: MIT
# Goal: a program that needs more than its budget holds, even compressed, gets every byte back.
# Method: programs of random pages that check themselves, disks that are good, small, or damaged.
"""The disk tier of a session, from the outside."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from uffdswap.bench.counters import workload_path

from .fixtures import RunFunction, StartFunction
from .harness import GLUTTON, MIB

PAGES = 24 * 1024  # 96 MiB that do not compress, in a budget of 48
PROGRAM = f"""
import random, sys
N = {PAGES}
data = bytearray(N * 4096)
def page(i, version):
    return random.Random(i * 1000 + version).randbytes(4096)
versions = [0] * N
for i in range(N):
    data[i * 4096 : (i + 1) * 4096] = page(i, 0)
print("filled", flush=True)
if "wait" in sys.argv:
    sys.stdin.readline()
order = random.Random(1)
for _ in range(N // 4):
    i = order.randrange(N)
    assert data[i * 4096 : (i + 1) * 4096] == page(i, versions[i]), i
    if i % 3 == 0:
        versions[i] += 1
        data[i * 4096 : (i + 1) * 4096] = page(i, versions[i])
for i in range(N):
    assert data[i * 4096 : (i + 1) * 4096] == page(i, versions[i]), i
"""
COMMAND = [sys.executable, "-I", "-c", PROGRAM]
BUDGET = "48M"


@pytest.mark.parametrize("options", [(), ("--no-disk-encryption",)], ids=["sealed", "plain"])
def test_what_the_budget_does_not_hold_is_on_the_disk(
    options: tuple[str, ...], uffdswap_run: RunFunction, tmp_path: Path
) -> None:
    folder = tmp_path / "tier"
    folder.mkdir()
    options = ("--disk", str(folder), *options)
    outcome = uffdswap_run(COMMAND, memory=BUDGET, options=options)
    outcome.require_ok(paged=True)
    stats = outcome.stats
    assert stats["faults"]["disk"] > 0, outcome.describe()
    assert stats["swap"]["demoted_segments"] > 0
    assert stats["peak"]["disk_bytes"] > 30 * MIB
    assert stats["disk"]["encrypted"] == ("--no-disk-encryption" not in options)
    assert list(folder.iterdir()) == []


def test_without_a_disk_nothing_is_written(uffdswap_run: RunFunction) -> None:
    outcome = uffdswap_run(GLUTTON, memory=BUDGET, options=("--no-disk",))
    assert outcome.returncode == 125, outcome.describe()
    assert "the budget of 48 MiB cannot hold this program" in outcome.stderr
    assert outcome.stats["peak"]["disk_bytes"] == 0


def test_a_full_disk_ends_as_none_does_and_keeps_its_cap(
    uffdswap_run: RunFunction, tmp_path: Path
) -> None:
    options = ("--disk", f"{tmp_path}:8M", "--on-full", "kill")
    outcome = uffdswap_run(GLUTTON, memory=BUDGET, options=options)
    assert outcome.returncode == 125, outcome.describe()
    assert "cannot hold this program, and every disk tier is full" in outcome.stderr
    assert 0 < outcome.stats["peak"]["disk_bytes"] <= 8 * MIB


def test_a_walk_in_strides_is_followed_ahead(uffdswap_run: RunFunction, tmp_path: Path) -> None:
    """A page that is touched while it is on its way from the disk was foretold, not missed."""
    words = "--pattern strided --size 128M --accesses 60000 --warmup 0 --no-audit"
    outcome = uffdswap_run(
        [workload_path(), *words.split()], memory="64M", options=("--disk", str(tmp_path))
    )
    outcome.require_ok(paged=True)
    faults = outcome.stats["faults"]
    assert faults["disk"] > 0, outcome.describe()
    assert faults["prefetch_proven_pages"] > faults["prefetched_pages"] * 3 // 4, outcome.describe()


def test_damage_on_the_disk_is_told_and_never_handed_over(
    start_session: StartFunction, tmp_path: Path
) -> None:
    file = tmp_path / "tier"
    file.touch()
    command = [*COMMAND, "wait"]
    with start_session(command, memory=BUDGET, options=("--disk", str(file))) as session:
        session.wait_for_output("filled")
        fd = os.open(file, os.O_RDWR)
        for offset in range(100, os.fstat(fd).st_size, 2048):
            byte = os.pread(fd, 1, offset)
            os.pwrite(fd, bytes([byte[0] ^ 16]), offset)
        os.close(fd)
        session.send_line()
        outcome = session.finish()
    assert outcome.returncode == -signal.SIGBUS, outcome.describe()
    assert "disk tier disk1" in outcome.stderr, outcome.describe()
    assert outcome.stats["integrity"]["poisoned_pages"] > 0
    assert "AssertionError" not in outcome.stderr, outcome.describe()
