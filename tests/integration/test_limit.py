# SPDX-License-Identifier: MIT
# Goal: a limit is one: not a byte above the bound, however fast a program grows, in whatever way.
# Method: sample the memory of all processes from outside every millisecond while it grows.
"""The limits on resident memory and on the whole budget."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from .fixtures import RunFunction, StartFunction
from .harness import MIB, PATIENCE, Outcome, Programs, Session
from .places import huge_memfds

RESIDENT_BYTES = 64 * MIB
# A machine shared with others delays the agent by more than a program needs to fill the bounds.
NOISE = min(PATIENCE, 3)
RESIDENT_SLACK_BYTES = int(16 * MIB * NOISE)
MEMORY_SLACK_BYTES = int(32 * MIB * NOISE)
# What a crowd grows by while registering it waits for the program's mmap lock: nothing in most
# runs, 27 MiB in one of 77.
CROWD_BYTES = 48 * MIB
SAMPLES_MIN = 50
SEEN_BYTES = 6 * MIB  # the lowest limit below is 8 MiB


def require_below(outcome: Outcome, most_bytes: int, bound_bytes: int) -> None:
    """Demand that the sampler saw a session at its limit, and never above the bound."""
    assert outcome.rss is not None
    assert outcome.rss.samples >= SAMPLES_MIN, outcome.describe()
    assert most_bytes > SEEN_BYTES, f"the sampler saw too little\n{outcome.describe()}"
    excess_mib = (most_bytes - bound_bytes) / MIB
    assert most_bytes <= bound_bytes, f"{excess_mib:.1f} MiB too much\n{outcome.describe()}"


@pytest.mark.parametrize("way", ["mmap", "brk", "arenas", "all", "zeros", "asleep"])
def test_growth_waits_at_the_limit(way: str, programs: Programs, uffdswap_run: RunFunction) -> None:
    crowd = way in ("arenas", "all")
    outcome = uffdswap_run(
        [programs("limit_growth"), way, "512M" if crowd else "256M"],
        resident=str(RESIDENT_BYTES),
        sample_rss=True,
    )
    outcome.require_ok(paged=True)
    assert outcome.rss
    slack_bytes = RESIDENT_SLACK_BYTES + (CROWD_BYTES if crowd else 0)
    require_below(outcome, outcome.rss.targets_bytes, RESIDENT_BYTES + slack_bytes)


def test_processes_of_a_session_share_one_limit(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    grow = programs("limit_growth")
    script = f"{grow} mmap 96M & a=$!; {grow} brk 96M & b=$!; wait $a && wait $b"
    outcome = uffdswap_run(["sh", "-c", script], resident=str(RESIDENT_BYTES), sample_rss=True)
    outcome.require_ok(paged=True)
    assert outcome.rss
    assert outcome.rss.targets >= 3, outcome.describe()
    require_below(outcome, outcome.rss.targets_bytes, RESIDENT_BYTES + RESIDENT_SLACK_BYTES)


def test_forked_children_stay_within_the_limit(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run(
        [programs("lifecycle_fork"), "fork_tree", "8M"], resident="8M", sample_rss=True
    )
    outcome.require_ok(paged=True)
    assert outcome.rss
    require_below(outcome, outcome.rss.targets_bytes, 8 * MIB + RESIDENT_SLACK_BYTES)


@pytest.mark.parametrize("way", ["mmap", "arenas"])
def test_budget_covers_what_is_kept_for_the_program(
    way: str, programs: Programs, uffdswap_run: RunFunction
) -> None:
    memory_bytes = 128 * MIB
    outcome = uffdswap_run(
        [programs("limit_growth"), way, "640M" if way == "arenas" else "384M"],
        memory=str(memory_bytes),
        sample_rss=True,
    )
    outcome.require_ok(paged=True)
    assert outcome.rss
    bound_bytes = memory_bytes + MEMORY_SLACK_BYTES + (CROWD_BYTES if way == "arenas" else 0)
    require_below(outcome, outcome.rss.total_bytes, bound_bytes)


def test_budget_holds_with_content_that_compresses_little(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    memory_bytes = 160 * MIB
    outcome = uffdswap_run(
        [programs("rewrite"), "192M", "20000", "2"], memory=str(memory_bytes), sample_rss=True
    )
    outcome.require_ok(paged=True)
    assert outcome.rss
    require_below(outcome, outcome.rss.total_bytes, memory_bytes + MEMORY_SLACK_BYTES)


def test_queues_of_many_processes_leave_the_budget_to_their_memory(
    programs: Programs, uffdswap_run: RunFunction, tmp_path: Path
) -> None:
    rewrite = f"{programs('rewrite')} 4M 20000"
    script = (
        f'for i in $(seq 10); do {rewrite} & p="$p $!"; done; for i in $p; do wait $i || exit; done'
    )
    memory_bytes = 28 * MIB
    outcome = uffdswap_run(
        ["sh", "-c", script], memory=str(memory_bytes), options=("--disk", str(tmp_path))
    )
    outcome.require_ok(paged=True)
    # By what is kept in standby alone it was once over the budget, up to where all is squeezed out.
    kept_bytes = outcome.stats["peak"]["ram_bytes"]
    assert kept_bytes <= memory_bytes + 2 * MIB, outcome.describe()


def test_budget_holds_where_memfds_are_of_huge_pages(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    with huge_memfds():
        test_budget_holds_with_content_that_compresses_little(programs, uffdswap_run)


def test_budget_that_cannot_be_met_ends_the_program_with_a_message(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run(
        [programs("rewrite"), "320M", "0", "1", "noise"], memory="96M", options=("--no-disk",)
    )
    assert not outcome.timed_out, outcome.describe()
    assert outcome.returncode == 125, outcome.describe()
    assert "uffdswap: " in outcome.stderr, outcome.describe()
    assert not outcome.left_over, outcome.describe()


@pytest.mark.parametrize("threads", [1, 4])
def test_limit_far_below_the_working_set_is_slow_but_right(
    threads: int, programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run(
        [programs("rewrite"), "12M", "6000", str(threads)], resident="512K", timeout=100
    )
    outcome.require_ok(paged=True)


def test_statistics_agree_with_what_was_seen_from_outside(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run(
        [programs("rewrite"), "128M", "20000"], resident=str(RESIDENT_BYTES), sample_rss=True
    )
    outcome.require_ok(paged=True)
    assert outcome.rss
    stats = outcome.stats
    assert stats["limits"] == {"memory_bytes": None, "resident_bytes": RESIDENT_BYTES}
    assert stats["peak"]["resident_bytes"] > RESIDENT_BYTES // 2
    assert stats["peak"]["resident_bytes"] <= RESIDENT_BYTES + RESIDENT_SLACK_BYTES
    faults = stats["faults"]
    answered = ("hole", "standby", "zero", "same", "ram", "disk")
    assert faults["total"] >= sum(faults[kind] for kind in answered) - faults["prefetched_pages"]
    assert faults["zero"] > 0, "an all-zero page in 16 must show up"
    assert faults["same"] > 0, "two pages of one repeated word in 16 must show up"
    assert faults["ram"] + faults["standby"] > 0
    assert stats["evictions"]["incompressible"] > 0, "noise in 3 pages of 16 must show up"
    assert stats["integrity"]["verified_pages"] > 0
    assert stats["targets"] == 1


SMALL_BESIDE_LARGE = """
import resource, subprocess, sys, time
page, own = 4096, bytearray(256 * 4096)
for at in range(0, len(own), page):
    own[at] = at // page % 251 + 1
large = subprocess.Popen(sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
while large.poll() is None:
    assert all(own[at] == at // page % 251 + 1 for at in range(0, len(own), page))
    time.sleep(0.001)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(large.returncode, faults, resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt)
"""


def test_small_program_beside_a_large_one_gives_its_share(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    """It has a few in a hundred of the memory and used to give every second page."""
    large = [programs("rewrite"), "96M", "100000", "2"]
    outcome = uffdswap_run(
        [sys.executable, "-I", "-S", "-c", SMALL_BESIDE_LARGE, *large], resident="48M"
    )
    outcome.require_ok(paged=True)
    status, own_faults, large_faults = map(int, outcome.stdout.split()[-3:])
    assert status == 0
    assert own_faults * 20 < large_faults, outcome.describe()


HOLDING = """
import ctypes, mmap, select, struct, sys
def reserved(mib):
    return mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def filled(mib):
    pages = reserved(mib)
    for page in range(0, mib << 20, 4096):
        pages[page : page + 8] = struct.pack("q", page)
    return pages
def address_of(pages):
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))
def hold(how, refusal):
    if refusal:
        print(how, "is not allowed here", flush=True); raise SystemExit(77)
    print("held", flush=True)
def lock(pages):
    size = ctypes.c_size_t(len(pages))
    hold("mlock", ctypes.CDLL(None).mlock(ctypes.c_void_p(address_of(pages)), size))
"""


@contextmanager
def holding(start_session: StartFunction, program: str, **options: Any) -> Iterator[Session]:
    """Start a program, and wait until it holds memory that cannot leave."""
    command = [sys.executable, "-I", "-c", HOLDING + program]
    with start_session(command, resident="24M", **options) as session:
        session.wait_for_output("\n")
        if "is not allowed" in session.output():
            pytest.skip(session.output().strip())
        yield session


LOCKED = """
pages = reserved(64)
lock(pages)
sys.stdin.readline()
"""


def test_what_cannot_leave_is_not_looked_at_without_end(start_session: StartFunction) -> None:
    """An idle program over its limit by locked memory costs little, and it is told of."""
    with holding(start_session, LOCKED) as session:
        session.wait_for_error("cannot leave")
        agent = psutil.Process(session.agent().pid)
        began, before = time.monotonic(), sum(agent.cpu_times()[:2])
        time.sleep(2)
        used = sum(agent.cpu_times()[:2]) - before
        share = used / (time.monotonic() - began)
        session.send_line()
        session.finish().require_ok()
    assert share < 0.5, f"the agent used {share:.0%} of a processor"


PINNED = """
pinned = filled(24)
libc = ctypes.CDLL(None)
ring = libc.syscall(425, 4, (ctypes.c_char * 120)())  # io_uring_setup
vector = struct.pack("QQ", address_of(pinned), 24 << 20)
hold("registering 24 MiB of buffers", libc.syscall(427, ring, 0, vector, 1))  # io_uring_register
others = filled(8)
while not select.select([sys.stdin], [], [], 0)[0]:
    for page in range(0, 8 << 20, 4096):
        if struct.unpack_from("q", others, page)[0] != page:
            raise SystemExit(1)
        if page % (256 << 10) == 0 and select.select([sys.stdin], [], [], 0)[0]:
            break
"""


@pytest.mark.parametrize("freeze_ms", [0, 200])
def test_a_limit_full_of_pinned_memory_is_told_of(
    start_session: StartFunction, freeze_ms: int
) -> None:
    """It is passed by next to nothing, and what is let in leaves at once: the program crawls.

    Where sweeps give nothing it goes on without waiting, and has gone far by the time a reclaim
    thread comes back that could not work: that is not more than can leave.
    """
    late = {"freeze_ms": freeze_ms, "freeze_only": "uffdswap-reclai"}
    with holding(start_session, PINNED, **late) as session:
        session.wait_for_error("the program crawls")
        assert session.errors().count("cannot leave") == 1, session.errors()
        assert "full of what cannot leave" in session.errors(), session.errors()
        assert "below what cannot leave" not in session.errors(), session.errors()
        session.send_line()
        session.finish().require_ok(paged=True)


LOCKED_FULL = """
locked = filled(24)
lock(locked)
others = filled(8)
page = 0
while not select.select([sys.stdin], [], [], 0.05)[0]:
    page = (page + 4096) % (8 << 20)
    others[page] += 1
"""


def test_a_limit_full_of_locked_memory_is_told_of(start_session: StartFunction) -> None:
    """What is locked is not even tried, so that nothing is met that is pinned."""
    with holding(start_session, LOCKED_FULL) as session:
        session.wait_for_error("the program crawls")
        session.send_line()
        session.finish().require_ok(paged=True)
