# SPDX-License-Identifier: MIT
# Goal: what is managed and what is not is told apart as the data plane does.
# Method: recorded mappings, and this process with memory of each kind that the test has made.
"""Kinds of memory, from smaps."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys

import pytest

from uffdswap.smaps import UNMANAGED_KINDS, managed_mappings, unmanaged, unmanaged_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("line", "managed"),
    [
        ("1000-3000 rw-p 00000000 00:00 0 ", True),
        ("1000-3000 rw-p 00000000 00:00 0                          [heap]", True),
        ("1000-3000 rw-p 00000000 00:00 0                          [anon:a name]", True),
        ("1000-3000 rw-p 00000000 00:00 0                          [stack]", False),
        ("1000-3000 rw-s 00000000 00:00 0 ", False),
        ("1000-3000 rwxp 00000000 00:00 0 ", False),
        ("1000-3000 r--p 00000000 00:00 0 ", False),
        ("1000-3000 rw-p 00001000 08:01 1234                       /usr/lib/libc.so.6", False),
        ("1000-3000 rw-s 00000000 00:01 99                         /memfd:x (deleted)", False),
    ],
)
def test_what_would_be_managed(line: str, managed: bool) -> None:
    assert bool(list(managed_mappings([line]))) == managed


def mapping(header: str, rss_kib: int, flags: str = "rd wr", **more: int) -> list[str]:
    fields = [f"{name}: {kib:>8} kB\n" for name, kib in {"Rss": rss_kib, **more}.items()]
    return [header + "\n", "Size:  100 kB\n", *fields, f"VmFlags: {flags} \n"]


def keyed(lines: list[str], key: int) -> list[str]:
    return [*lines[:-1], f"ProtectionKey:  {key:>7}\n", lines[-1]]


@pytest.mark.parametrize(
    ("lines", "kind", "kib"),
    [
        (mapping("1000-3000 rw-p 0 00:00 0 ", 8), None, 0),
        (mapping("1000-3000 rw-p 0 00:00 0    [heap]", 8), None, 0),
        (mapping("1000-3000 rw-p 0 00:00 0    [anon:pool of mine]", 8), None, 0),
        (mapping("1000-3000 rw-p 0 00:00 0 ", 8, "rd wr lo"), "locked", 8),
        (mapping("1000-3000 r-xp 0 fe:00 123  /bin/a program", 8), "file", 8),
        (mapping("1000-3000 rw-p 0 fe:00 123  /lib/x.so (deleted)", 4, "rd wr lo"), "file", 4),
        (mapping("1000-3000 rw-s 0 00:01 123  /dev/zero (deleted)", 8), "shared", 8),
        (mapping("1000-3000 rw-s 0 00:01 123  /memfd:uffdswap-area (deleted)", 8), None, 0),
        (mapping("1000-3000 rw-p 0 00:00 0    [stack]", 12), "other", 12),
        (mapping("1000-3000 rwxp 0 00:00 0 ", 4), "other", 4),
        (mapping("1000-3000 r--p 0 00:00 0 ", 4), "other", 4),
        (keyed(mapping("1000-3000 rw-p 0 00:00 0 ", 8), 0), None, 0),
        (keyed(mapping("1000-3000 rw-p 0 00:00 0 ", 8), 1), "other", 8),
        (
            mapping(
                "1000-3000 rw-p 0 00:0f 1  /anon_hugepage (deleted)",
                0,
                "rd wr ht",
                Private_Hugetlb=2048,
            ),
            "huge",
            2048,
        ),
    ],
)
def test_each_mapping_is_of_one_kind(lines: list[str], kind: str | None, kib: int) -> None:
    found = unmanaged(lines)
    assert found is not None
    assert found["total"] == kib * 1024
    assert {name for name in UNMANAGED_KINDS if found[name]} == ({kind} if kind else set())


def test_mappings_add_up() -> None:
    lines = [
        *mapping("1000-3000 r-xp 0 fe:00 123  /bin/true", 8),
        *mapping("3000-5000 rw-p 0 00:00 0 ", 8),
        *mapping("5000-7000 rw-p 0 00:00 0    [stack]", 4),
    ]
    expected = {"total": 12288, "file": 8192, "shared": 0, "locked": 0, "huge": 0, "other": 4096}
    assert unmanaged(lines) == expected


def test_no_mappings_are_not_known() -> None:
    assert unmanaged([]) is None
    assert unmanaged_bytes(2**22 + 1) is None


def test_own_shared_and_private_memory_is_told_apart() -> None:
    before = unmanaged_bytes(os.getpid())
    with mmap.mmap(-1, 8 * MIB) as shared, mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE) as own:
        for memory in (shared, own):
            memory[:] = b"x" * len(memory)
        after = unmanaged_bytes(os.getpid())
    assert before is not None
    assert after is not None
    assert after["shared"] - before["shared"] == 8 * MIB
    assert after["total"] - before["total"] < 12 * MIB
    assert after["file"] > 0


def test_locked_memory_is_counted() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, 8 * 4096, flags=mmap.MAP_PRIVATE) as memory:
        anchor = ctypes.c_char.from_buffer(memory)
        address = ctypes.c_void_p(ctypes.addressof(anchor))
        try:
            if libc.mlock(address, ctypes.c_size_t(8 * 4096)):
                pytest.skip(f"mlock: {os.strerror(ctypes.get_errno())}")
            found = unmanaged_bytes(os.getpid())
        finally:
            del anchor
    assert found is not None
    assert found["locked"] >= 8 * 4096


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_process_that_may_not_be_looked_at_is_not_known() -> None:
    script = (
        "import os\nfrom uffdswap.smaps import unmanaged_bytes\nos.setresuid(65534, 65534, 65534)\n"
        f"print(unmanaged_bytes({os.getpid()}))\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "None\n"
