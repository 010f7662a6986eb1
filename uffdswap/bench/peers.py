# SPDX-License-Identifier: MIT
"""What uffdswap is compared with: the kernel's swap devices, and no limit at all.

A peer is set up for one measurement and undone after it, by the guardian; so only one is ever on.
All of them are refused while other swap is on, since the kernel would use that as well.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .._lib import probe
from ..doctor import required_failures
from ..errors import SetupFailed, UsageError
from .group import Group, find_hierarchy

if TYPE_CHECKING:
    from .guardian import Guardian

__all__ = (
    "PEERS",
    "Job",
    "NoLimit",
    "Peer",
    "Task",
    "Uffdswap",
    "find_peer",
    "require_no_swap",
    "require_rights",
)

_ZSWAP = Path("/sys/module/zswap/parameters")


@dataclass(frozen=True, slots=True)
class Task:
    """A command, the memory it needs, and how much of that may be resident."""

    command: list[str]
    size_bytes: int
    limit_bytes: int
    memory_bytes: int | None = None
    """For uffdswap alone: a budget of RAM for everything, instead of the limit."""
    may_use_disk: bool = True
    stats_path: str = ""
    """Where uffdswap writes its statistics."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command under a peer's limit: how to start it, and where the peer keeps its figures."""

    command: list[str]
    group: Group | None = None
    zram: str = ""
    is_ours: bool = False


class Peer(Protocol):
    """One contender."""

    @property
    def name(self) -> str:
        """Return the name, as in `--against`."""

    def check(self) -> None:
        """Raise `SetupFailed` if it cannot be set up here. Changes nothing."""

    @property
    def uses_disk(self) -> bool:
        """Return whether pages that are out may be on a disk."""

    def set_up(self, guardian: Guardian, task: Task) -> Job:
        """Set up for one command."""


@dataclass(frozen=True, slots=True)
class Uffdswap:
    """The program of this package.

    It gets a limit on resident memory alone, as the others do, or a budget for what is resident and
    what is stored together.
    """

    name: str = "uffdswap"
    uses_disk: bool = False

    def check(self) -> None:
        """Ask what `doctor` and every session ask, and say what `uffdswap run` would say."""
        for finding in required_failures(probe()):
            raise SetupFailed("cannot start a session", cause=str(finding))

    def set_up(self, guardian: Guardian, task: Task) -> Job:
        """Nothing to set up."""
        words = [sys.executable, "-P", "-m", "uffdswap", "run", "--quiet"]
        if task.memory_bytes is None:
            words += ["--resident", str(task.limit_bytes)]
        else:
            words += ["--memory", str(task.memory_bytes)]
            words += [] if task.may_use_disk else ["--no-disk"]
        if task.stats_path:
            words += ["--stats", task.stats_path]
        return Job([*words, "--", *task.command], is_ours=True)


@dataclass(frozen=True, slots=True)
class NoLimit:
    """The command as it is: what any limit costs."""

    name: str = "none"
    uses_disk: bool = False

    def check(self) -> None:
        """Nothing can be missing."""

    def set_up(self, guardian: Guardian, task: Task) -> Job:
        """Nothing to set up."""
        return Job(task.command)


@dataclass(frozen=True, slots=True)
class Zram:
    """A compressed block device in RAM, as swap."""

    name: str
    algorithm: str
    uses_disk: bool = False

    def check(self) -> None:
        """Look for the device, the algorithm, and what every kernel peer needs."""
        _check_kernel_peer(self.name)
        if not Path("/sys/block/zram0").exists() and not Path("/sys/class/zram-control").exists():
            remedy = "load the module: modprobe zram"
            raise SetupFailed(f"cannot compare with {self.name}", cause="no zram", remedy=remedy)

    def set_up(self, guardian: Guardian, task: Task) -> Job:
        """Take a device that is not in use, or a new one."""
        device = _unused_zram(guardian)
        folder = Path("/sys/block") / device
        path = f"/dev/{device}"
        old = _chosen((folder / "comp_algorithm").read_text())
        guardian.note("reset-zram", device=device, algorithm=old)
        try:
            (folder / "comp_algorithm").write_text(self.algorithm)
        except OSError as error:
            cause = f"this kernel's zram has no {self.algorithm}"
            raise SetupFailed(f"cannot compare with {self.name}", cause=cause) from error
        (folder / "disksize").write_text(str(2 * task.size_bytes))
        _turn_on(guardian, path)
        group = Group(guardian, _group_name(), task.limit_bytes)
        return Job(group.enter_command(task.command), group=group, zram=device)


@dataclass(frozen=True, slots=True)
class SwapFile:
    """A file as swap, with zswap before it or without."""

    name: str
    zswap: bool
    uses_disk: bool = True

    def check(self) -> None:
        """Look for zswap, and what every kernel peer needs."""
        _check_kernel_peer(self.name)
        if self.zswap and not _ZSWAP.exists():
            cause = "this kernel has no zswap"
            raise SetupFailed(f"cannot compare with {self.name}", cause=cause)

    def set_up(self, guardian: Guardian, task: Task) -> Job:
        """Make the file, and turn zswap on or off for it."""
        if _ZSWAP.exists():
            _set(guardian, _ZSWAP / "enabled", "Y" if self.zswap else "N")
        path = Path("/var/tmp") / f"{_group_name()}.swap"  # on a disk, unlike /tmp
        guardian.note("unlink", path=str(path))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(fd, 0, 2 * task.size_bytes)
        finally:
            os.close(fd)
        _turn_on(guardian, str(path))
        group = Group(guardian, _group_name(), task.limit_bytes)
        return Job(group.enter_command(task.command), group=group)


PEERS: tuple[Peer, ...] = (
    Zram("zram-lz4", "lz4"),
    Zram("zram-lzo-rle", "lzo-rle"),
    SwapFile("zswap", zswap=True),
    SwapFile("swapfile", zswap=False),
    NoLimit(),
)


def find_peer(name: str) -> Peer:
    """Return a peer by its name. Raises `UsageError`."""
    for peer in PEERS:
        if peer.name == name:
            return peer
    names = ", ".join(peer.name for peer in PEERS)
    raise UsageError(f'there is nothing named "{name}" to compare with', remedy=f"take {names}")


def require_no_swap(swaps: Path = Path("/proc/swaps")) -> None:
    """Refuse while swap is on: the kernel would use it beside the peer's, or instead."""
    names = [line.split()[0] for line in swaps.read_text().splitlines()[1:]]
    if names:
        cause = f"swap is on: {', '.join(names)}"
        raise SetupFailed(
            "cannot compare with the kernel's swap",
            cause=cause,
            remedy="turn it off for the time being: swapoff -a; or compare with none",
        )


def require_rights() -> None:
    """Refuse without the rights to set swap up."""
    if os.geteuid() != 0:
        cause = "setting up swap and a cgroup needs root"
        remedy = "run it with sudo, or compare with none"
        raise SetupFailed("cannot compare with the kernel's swap", cause=cause, remedy=remedy)


# --- Steps that several peers share --------------------------------------------------------------


def _check_kernel_peer(name: str) -> None:
    require_rights()
    require_no_swap()
    find_hierarchy()
    if _find_tool("mkswap") is None:
        remedy = "install util-linux"
        raise SetupFailed(f"cannot compare with {name}", cause="there is no mkswap", remedy=remedy)


def _find_tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _group_name() -> str:
    return f"uffdswap-bench-{os.getpid()}"


def _chosen(text: str) -> str:
    """Return what a file of alternatives marks as chosen.

    >>> _chosen("lzo [lzo-rle] lz4")
    'lzo-rle'
    """
    return text.partition("[")[2].partition("]")[0]


def _set(guardian: Guardian, path: Path, text: str) -> None:
    guardian.note("write", path=str(path), text=path.read_text().strip())
    path.write_text(text)


def _unused_zram(guardian: Guardian) -> str:
    for folder in sorted(Path("/sys/block").glob("zram*")):
        if (folder / "disksize").read_text().strip() == "0":
            return folder.name
    number = Path("/sys/class/zram-control/hot_add").read_text().strip()
    guardian.note("remove-zram", device=f"zram{number}")
    return f"zram{number}"


def _turn_on(guardian: Guardian, path: str) -> None:
    mkswap = _find_tool("mkswap")
    assert mkswap is not None, "checked before"
    done = subprocess.run([mkswap, path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupFailed(f"mkswap {path} failed", cause=done.stderr.strip())
    guardian.note("swapoff", path=path)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.swapon(os.fsencode(path), 0) != 0:
        cause = os.strerror(ctypes.get_errno())
        raise SetupFailed(f"cannot use {path} as swap", cause=cause)
