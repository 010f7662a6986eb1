# SPDX-License-Identifier: MIT
# Goal: the benchmark's cgroup is right on machines with version 1, version 2, and both.
# Method: trees as recorded on such machines, in a temporary folder; a guardian that only notes.
"""The memory cgroup of `uffdswap bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from uffdswap.bench.group import Group, Hierarchy, StatReader, find_hierarchy
from uffdswap.bench.guardian import Guardian
from uffdswap.errors import SetupFailed

V1_MOUNTS = """\
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,nosuid,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid,nsdelegate 0 0
"""
V2_MOUNTS = """\
proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0
cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime,nsdelegate,memory_recursiveprot 0 0
"""
V2_CONTROLLERS = "cpuset cpu io memory hugetlb pids rdma misc\n"
V2_EVENTS = "low 0\nhigh 0\nmax 5182\noom 2\noom_kill 1\noom_group_kill 0\n"
V1_OOM_CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"


class NotingGuardian(Guardian):
    """Takes notes and starts no process."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, dict[str, str | int]]] = []

    def note(self, step: str, **values: str | int) -> None:
        self.notes.append((step, values))


def machine(root: Path, mounts: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/mounts": mounts, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_1(root: Path) -> Path:
    root = machine(root, V1_MOUNTS, {"sys/fs/cgroup/unified/cgroup.controllers": "\n"})
    (root / "sys/fs/cgroup/memory").mkdir()
    return root


def version_2(root: Path, enabled: str) -> Path:
    files = {"cgroup.controllers": V2_CONTROLLERS, "cgroup.subtree_control": enabled}
    return machine(root, V2_MOUNTS, {f"sys/fs/cgroup/{k}": v for k, v in files.items()})


def test_version_1_is_found_beside_a_version_2_without_memory(tmp_path: Path) -> None:
    expected = Hierarchy(tmp_path / "sys/fs/cgroup/memory", 1)
    assert find_hierarchy(version_1(tmp_path)) == expected


def test_version_2_is_found(tmp_path: Path) -> None:
    assert find_hierarchy(version_2(tmp_path, "")) == Hierarchy(tmp_path / "sys/fs/cgroup", 2)


@pytest.mark.parametrize(
    ("mounts", "controllers"),
    [("proc /proc proc rw 0 0\n", V2_CONTROLLERS), (V2_MOUNTS, "cpuset cpu io pids\n")],
    ids=["not mounted", "without memory"],
)
def test_a_machine_without_a_memory_group_is_refused(
    tmp_path: Path, mounts: str, controllers: str
) -> None:
    machine(tmp_path, mounts, {"sys/fs/cgroup/cgroup.controllers": controllers})
    with pytest.raises(SetupFailed, match="no memory cgroup"):
        find_hierarchy(tmp_path)


@pytest.mark.parametrize("enabled", ["cpu pids\n", "cpu memory pids\n"])
def test_version_2_gets_its_controller_enabled_and_that_undone(
    tmp_path: Path, enabled: str
) -> None:
    guardian = NotingGuardian()
    hierarchy = find_hierarchy(version_2(tmp_path, enabled))
    group = Group(guardian, "bench", 4096, hierarchy)
    assert (group.folder / "memory.max").read_text() == "4096"
    control = hierarchy.folder / "cgroup.subtree_control"
    switch = ("write", {"path": str(control), "text": "-memory"})
    remove = ("remove-group", {"path": str(group.folder)})
    if "memory" in enabled:
        assert guardian.notes == [remove]
        assert control.read_text() == enabled
    else:
        assert guardian.notes == [switch, remove]
        assert control.read_text() == "+memory"


def test_version_1_gets_its_limit(tmp_path: Path) -> None:
    guardian = NotingGuardian()
    group = Group(guardian, "bench", 4096, find_hierarchy(version_1(tmp_path)))
    assert (group.folder / "memory.limit_in_bytes").read_text() == "4096"
    assert guardian.notes == [("remove-group", {"path": str(group.folder)})]


def test_kills_are_counted_in_both_versions(tmp_path: Path) -> None:
    one = Group(NotingGuardian(), "bench", 1, find_hierarchy(version_1(tmp_path / "1")))
    (one.folder / "memory.oom_control").write_text(V1_OOM_CONTROL)
    assert one.oom_kills() == 3
    two = Group(NotingGuardian(), "bench", 1, find_hierarchy(version_2(tmp_path / "2", "")))
    (two.folder / "memory.events").write_text(V2_EVENTS)
    assert two.oom_kills() == 1


def test_a_group_that_cannot_be_made_is_an_error_with_advice(tmp_path: Path) -> None:
    hierarchy = find_hierarchy(version_1(tmp_path))
    (hierarchy.folder / "bench").mkdir()
    with pytest.raises(SetupFailed, match="run the benchmark as root"):
        Group(NotingGuardian(), "bench", 1, hierarchy)


def test_the_reader_reads_and_stops_when_the_group_has_gone(tmp_path: Path) -> None:
    group = Group(NotingGuardian(), "bench", 1, find_hierarchy(version_1(tmp_path)))
    (group.folder / "memory.stat").write_text("cache 0\nrss 4096\n")
    calls: list[int] = []
    with StatReader(group, also=lambda: calls.append(1)) as reader:
        while not calls:
            pass
        (group.folder / "memory.stat").unlink()
        reader._thread.join(30)
        assert not reader._thread.is_alive()
