# SPDX-License-Identifier: MIT
# Goal: 100% is what the machine or its cgroup allows, whichever is less, on every kind of machine.
# Method: recorded trees of /proc and /sys/fs/cgroup, written by the tests.
"""How much memory there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from uffdswap.errors import SetupFailed
from uffdswap.machine import available_memory_bytes

GIB = 1 << 30
V2 = "31 23 0:28 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V1_CPU = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"


def write_tree(
    root: Path, *, groups: str = "", mounts: str = "", files: Mapping[str, object] | None = None
) -> Path:
    contents = {
        "proc/meminfo": f"MemTotal:       {8 * GIB // 1024} kB\nMemFree:  12 kB\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": mounts,
        **(files or {}),
    }
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_without_cgroups_it_is_the_machines(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2048 kB\n")
    assert available_memory_bytes(tmp_path) == 2048 * 1024


def test_limit_of_the_own_group_counts(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/b/memory.max": GIB, "sys/fs/cgroup/a/memory.max": "max"}
    write_tree(tmp_path, groups="0::/a/b", mounts=V2.format(root="/"), files=files)
    assert available_memory_bytes(tmp_path) == GIB


def test_limit_of_an_ancestor_counts(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": 2 * GIB}
    write_tree(tmp_path, groups="0::/a/b", mounts=V2.format(root="/"), files=files)
    assert available_memory_bytes(tmp_path) == 2 * GIB


def test_limit_above_the_machine_does_not_count(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory.max": 100 * GIB}
    write_tree(tmp_path, groups="0::/", mounts=V2.format(root="/"), files=files)
    assert available_memory_bytes(tmp_path) == 8 * GIB


def test_group_of_another_branch_does_not_count(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/memory.max": "max", "sys/fs/cgroup/z/memory.max": GIB}
    write_tree(tmp_path, groups="0::/a", mounts=V2.format(root="/"), files=files)
    assert available_memory_bytes(tmp_path) == 8 * GIB


def test_version_1_counts_its_memory_controller(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": 3 * GIB,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
    }
    groups = "9:cpu:/\n4:memory:/job\n0::/"
    write_tree(tmp_path, groups=groups, mounts=f"{V1_CPU}\n{V1.format(root='/')}", files=files)
    assert available_memory_bytes(tmp_path) == 3 * GIB


def test_both_versions_side_by_side_count(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": 3 * GIB,
        "sys/fs/cgroup/u/memory.max": GIB,
    }
    mounts = f"{V1.format(root='/')}\n{V2.format(root='/')}"
    write_tree(tmp_path, groups="4:memory:/job\n0::/u", mounts=mounts, files=files)
    assert available_memory_bytes(tmp_path) == GIB


def test_container_sees_its_group_as_the_root_of_the_mount(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": GIB}
    write_tree(
        tmp_path,
        groups="4:memory:/docker/abc",
        mounts=V1.format(root="/docker/abc"),
        files=files,
    )
    assert available_memory_bytes(tmp_path) == GIB


def test_container_without_its_group_in_the_mount_takes_the_root(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory.max": GIB}
    write_tree(tmp_path, groups="0::/../../other", mounts=V2.format(root="/"), files=files)
    assert available_memory_bytes(tmp_path) == GIB


@pytest.mark.parametrize("text", ["", "MemFree: 1 kB\n", "MemTotal: lots\n", "MemTotal:\n"])
def test_unreadable_machine_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(text)
    with pytest.raises(SetupFailed, match="how much memory"):
        available_memory_bytes(tmp_path)


def test_this_machine_has_some() -> None:
    assert (
        0
        < available_memory_bytes()
        <= int(
            next(
                line.split()[1]
                for line in Path("/proc/meminfo").read_text().splitlines()
                if line.startswith("MemTotal:")
            )
        )
        * 1024
    )
