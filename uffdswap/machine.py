# SPDX-License-Identifier: MIT
"""How much memory there is to be had: what `50%` is half of.

Reads /proc and the cgroup file systems below a root, so that tests can give it recorded ones. Both
cgroup versions are looked at, since a machine may mount the two side by side, and all ancestors of
the own group, since a limit of an ancestor holds too.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from .errors import SetupFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("available_memory_bytes",)

_LIMIT_FILES = {"cgroup2": "memory.max", "cgroup": "memory.limit_in_bytes"}


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Return the smaller of the machine's memory and what its cgroups allow this process.

    Raises `SetupFailed` if /proc/meminfo cannot be read.
    """
    return min([_total_bytes(root), *_cgroup_limits(root)])


def _total_bytes(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _colon, value = line.partition(":")
            if name == "MemTotal":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError) as error:
        raise SetupFailed("cannot find out how much memory there is", cause=str(error)) from error
    raise SetupFailed("cannot find out how much memory there is", cause="no MemTotal in meminfo")


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield every limit that holds for this process; none where there are no cgroups."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for kind, mounted_root, mount_point in _cgroup_mounts(mounts):
        group = _own_group(groups, kind)
        if group is not None:
            folder = root / mount_point.lstrip("/")
            yield from _limits_up_to(folder, _below(group, mounted_root), _LIMIT_FILES[kind])


def _cgroup_mounts(mounts: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield kind, root inside the file system, and mount point of the cgroup mounts with memory."""
    for line in mounts:
        fields, _dash, rest = line.partition(" - ")
        kind, _source, options = (*rest.split(" ", 2), "", "")[:3]
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            _id, _parent, _device, mounted_root, mount_point = fields.split()[:5]
            yield kind, mounted_root, mount_point.replace("\\040", " ")


def _own_group(groups: list[str], kind: str) -> str | None:
    for line in groups:
        number, controllers, path = line.split(":", 2)
        if kind == "cgroup2" and number == "0" and not controllers:
            return path
        if kind == "cgroup" and "memory" in controllers.split(","):
            return path
    return None


def _below(group: str, mounted_root: str) -> PurePosixPath:
    """Return the group's path inside a mount, which may show only a part of the hierarchy."""
    path = PurePosixPath(group)
    if path.is_relative_to(mounted_root):
        path = path.relative_to(mounted_root)
    return PurePosixPath(*(part for part in path.parts if part not in ("/", "..")))


def _limits_up_to(mount: Path, group: PurePosixPath, name: str) -> Iterator[int]:
    for folder in (group, *group.parents):
        try:
            text = (mount / folder / name).read_text().strip()
        except OSError:
            continue  # the group of a container is not visible from inside it
        if text.isdecimal():
            yield int(text)
