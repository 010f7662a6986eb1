# SPDX-License-Identifier: MIT
# Goal: huge pages of hugetlbfs, which cannot leave, are as without us where growth waits.
# Method: some are reserved for the test; a program at its limit maps, fills and forks with them.
"""Huge pages of hugetlbfs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .fixtures import RunFunction

RESERVED = Path("/proc/sys/vm/nr_hugepages")
WANTED = 8
PROGRAM = """
import mmap, os, sys
HUGETLB = 0x40000
def map_huge(kind):
    return mmap.mmap(-1, 8 << 20, flags=kind | mmap.MAP_ANONYMOUS | HUGETLB)
cold = bytearray(os.urandom(1 << 16)) * (48 << 4)
for kind in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
    huge = map_huge(kind)
    for at in range(0, len(huge), 4096):
        assert huge[at] == 0
        huge[at] = 1 + at % 251
    assert all(huge[at] == 1 + at % 251 for at in range(0, len(huge), 4096))
    huge.close()
    child = os.fork()
    if child == 0:
        huge = map_huge(kind)
        huge[:] = b"x" * len(huge)
        os._exit(huge[-1] != ord("x"))
    assert os.waitpid(child, 0)[1] == 0
assert cold == cold[: 1 << 16] * (48 << 4)
"""


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Have some huge pages reserved, and put back what was."""
    before = RESERVED.read_text() if RESERVED.exists() else ""
    if not before or os.geteuid() != 0:
        pytest.skip("needs root and hugetlbfs, to reserve huge pages")
    # It reads until nobody is left who could write, so that it comes to its end in any case.
    undo = subprocess.Popen(
        ["sh", "-c", f"cat; echo {int(before)} > {RESERVED}"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    with undo:
        RESERVED.write_text(str(int(before) + WANTED))
        if int(RESERVED.read_text()) < int(before) + WANTED:
            pytest.skip("the machine has no memory for huge pages in one piece")
        yield


@pytest.mark.usefixtures("huge_pages")
def test_huge_pages_are_filled_where_growth_waits(uffdswap_run: RunFunction) -> None:
    outcome = uffdswap_run([sys.executable, "-S", "-E", "-c", PROGRAM], resident="24M", timeout=30)
    outcome.require_ok(paged=True)
