# SPDX-License-Identifier: MIT
# Goal: an estimate is right about a process that is known, and changes nothing about it.
# Method: a child whose memory the test has made up; recorded lines of maps files.
"""Estimates of what swapping would save."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from uffdswap.errors import UffdswapError, UsageError
from uffdswap.estimate import Estimate, Sample, document, estimate, text
from uffdswap.estimate import _why_denied as why_denied

PAGE = 4096
MIB = 1 << 20
NOBODY = 65534

# 16 MiB each of zeros, of a repeated word, of bytes that LZ4 halves, and of noise.
PROGRAM = f"""
import mmap, random, sys
pages = 4096
memory = mmap.mmap(-1, 4 * pages * {PAGE}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(pages):
    half = random.Random(i).randbytes({PAGE // 2})
    noise = random.Random(-1 - i).randbytes({PAGE})
    for kind, page in enumerate((bytes({PAGE}), b"repeated" * {PAGE // 8}, half + half, noise)):
        at = (kind * pages + i) * {PAGE}
        memory[at : at + {PAGE}] = page
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def known() -> Iterator[int]:
    command = [sys.executable, "-S", "-E", "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def test_known_process_is_estimated_right(known: int) -> None:
    found = estimate(known)
    sample = found.sample
    assert sample.pages == 4096
    # 64 MiB of which a fourth each is known, and some MiB of interpreter: five standard errors.
    assert 64 * MIB <= found.managed_bytes <= 80 * MIB
    assert found.managed_bytes <= found.anonymous_bytes
    for count in (sample.zero, sample.same, sample.incompressible):
        assert abs(count / sample.pages - 16 * MIB / found.managed_bytes) < 0.05
    assert 24 * MIB - 4 * MIB < found.stored_bytes < 24 * MIB + 12 * MIB
    assert found.saved_bytes == found.managed_bytes - found.stored_bytes


def test_whole_process_leaves_no_error_of_sampling(known: int) -> None:
    found = estimate(known, 1 << 20)
    assert found.sample.zero >= 4096
    assert found.sample.same >= 4096
    assert found.sample.incompressible >= 4096
    assert found.error_bytes == 0
    few = estimate(known, 100)
    assert few.sample.pages == 100
    assert few.error_bytes > 0
    assert abs(few.stored_bytes - found.stored_bytes) < 2.5 * few.error_bytes


def test_nothing_is_changed(known: int) -> None:
    def look() -> list[str]:
        lines = Path(f"/proc/{known}/smaps").read_text().splitlines()
        return [line for line in lines if line.startswith(("Rss:", "Swap:", "Anonymous:"))]

    before = look()
    estimate(known)
    assert look() == before
    assert Path(f"/proc/{known}/stat").read_text().split(") ")[1][0] == "S"


def test_command_prints_for_people_and_machines(known: int) -> None:
    command = [sys.executable, "-m", "uffdswap", "estimate", str(known)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert f"process {known} (python" in done.stdout
    assert "saved, if all of it left" in done.stdout
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    report = json.loads(done.stdout)
    assert report["schema"] == "uffdswap.estimate/1"
    assert report["pid"] == known


def test_no_such_process_is_said() -> None:
    with pytest.raises(UffdswapError, match="there is no process 4194305"):
        estimate(2**22 + 1)
    with pytest.raises(UsageError, match="-5 is not a process"):
        estimate(-5)


def test_part_of_the_kernel_has_nothing_to_swap() -> None:
    if Path("/proc/2/comm").read_text() != "kthreadd\n":
        pytest.skip("needs a view of kernel threads (not in a PID namespace)")
    with pytest.raises(UffdswapError, match="no memory that could be swapped"):
        estimate(2)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_process_of_another_user_is_refused_with_the_reason() -> None:
    script = (
        f"import os\nfrom uffdswap import estimate\nos.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "try:\n    estimate.estimate(1)\n"
        "except estimate.UffdswapError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("may not look at process 1: it belongs to user 0, and you are")


def test_equal_pages_are_counted_and_not_subtracted() -> None:
    sample = Sample()
    page = bytes(range(256)) * 16
    for _ in range(3):
        sample.add(page)
    assert (sample.pages, sample.equal, sample.compressed) == (3, 2, 3)
    found = Estimate(
        pid=1, command="x", anonymous_bytes=3 * PAGE, managed_bytes=3 * PAGE, sample=sample
    )
    assert document(found)["sample"]["equal"] == 2
    assert found.stored_bytes > 0
    assert "66.7%" in text(found)


def test_process_with_nothing_there_is_no_division_by_zero() -> None:
    found = Estimate(pid=1, command="x", anonymous_bytes=0, managed_bytes=0, sample=Sample())
    assert found.saved_bytes == 0
    assert "nothing of it is there now" in text(found)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which lacks a right")
def test_root_is_not_told_to_try_as_root() -> None:
    cause, remedy = why_denied(os.getpid())
    assert "CAP_SYS_PTRACE" in cause
    assert "as root" not in remedy
