# SPDX-License-Identifier: MIT
"""Places unlike others: disks that can be filled, slowed and broken, memfds of huge pages.

What is made here is undone by a guardian, a process of its own that waits for the end of a pipe: so
also when the test run is killed. All of it needs root; without, tests are skipped with the reason.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = (
    "LoopDevice",
    "fill_up",
    "huge_memfds",
    "loop_device",
    "silent_file_system",
    "small_file_system",
)

_SECONDS = 30.0
_THROTTLE = Path("/sys/fs/cgroup/blkio")


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        pytest.skip(f"{command[0]} is refused here: {done.stderr.strip()}")
    return done.stdout


def _require(*programs: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a disk of its own")
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"needs {program}")


@contextlib.contextmanager
def _guarded(undo: str) -> Iterator[None]:
    """Have a line of shell run when the block ends, or this process."""
    guardian = subprocess.Popen(
        ["sh", "-c", f"trap '' INT TERM HUP; cat; {undo}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert guardian.stdin
        guardian.stdin.close()
        guardian.wait(timeout=_SECONDS)


@contextlib.contextmanager
def small_file_system(folder: Path, size_mib: int, *, kind: str = "tmpfs") -> Iterator[Path]:
    """Mount a file system of so many MiB: tmpfs, or ext4 on a file in `folder`."""
    _require("mount", "umount", "mkfs.ext4")
    place = folder / f"small-{kind}"
    place.mkdir()
    with _guarded(f"umount --lazy {shlex.quote(str(place))}"):
        if kind == "tmpfs":
            _run("mount", "-t", "tmpfs", "-o", f"size={size_mib}M", "none", place)
        else:
            image = folder / "image"
            with image.open("wb") as file:
                file.truncate(size_mib << 20)
            _run("mkfs.ext4", "-q", "-m", "0", image)
            _run("mount", "-o", "loop", image, place)
        yield place


@contextlib.contextmanager
def silent_file_system(folder: Path) -> Iterator[Path]:
    """Mount a file system that never answers, until the block ends."""
    _require("mount", "umount")
    place = folder / "silent"
    place.mkdir()
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"needs /dev/fuse: {error.strerror}")
    try:
        with _guarded(f"umount --lazy {shlex.quote(str(place))}"):
            options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
            command = ("mount", "-i", "-t", "fuse", "-o", options, "none", str(place))
            if subprocess.run(command, pass_fds=[fuse], timeout=_SECONDS, check=False).returncode:
                pytest.skip("mount of FUSE is refused here")
            yield place
    finally:
        os.close(fuse)  # whoever waits gets an error


class LoopDevice:
    """A block device whose sectors are a file, which may be changed, cut or throttled."""

    def __init__(self, path: str, backing: Path) -> None:
        self.path = path
        self.backing = backing

    def cut(self, size_bytes: int = 0) -> None:
        """Make every read behind `size_bytes` an error; the device stays as large as it is."""
        os.truncate(self.backing, size_bytes)

    def throttle(self, bytes_per_second: int) -> None:
        """Let no more through in each direction; 0 ends it."""
        status = Path(self.path).stat()
        device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)} {bytes_per_second}\n"
        for direction in ("read", "write"):
            file = _THROTTLE / f"blkio.throttle.{direction}_bps_device"
            if not file.exists():
                pytest.skip(f"needs {file}, to slow a disk down")
            file.write_text(device)


@contextlib.contextmanager
def loop_device(folder: Path, size_mib: int) -> Iterator[LoopDevice]:
    """Attach a loop device to a sparse file in `folder`."""
    _require("losetup")
    backing = folder / "backing"
    with backing.open("wb") as file:
        file.truncate(size_mib << 20)
    # Found and attached in one call; the guardian finds it again by its file.
    quoted = shlex.quote(str(backing))
    forget = (
        f"for d in $(losetup --noheadings --output NAME --associated {quoted}); do "
        f"n=$(cat /sys/block/${{d#/dev/}}/dev); "
        f"for f in read write; do echo $n 0 > {_THROTTLE}/blkio.throttle.${{f}}_bps_device; done; "
        f"losetup --detach $d; done; rm -f {quoted}"
    )
    with _guarded(forget):
        path = _run("losetup", "--find", "--show", backing).strip()
        yield LoopDevice(path, backing)


@contextlib.contextmanager
def huge_memfds() -> Iterator[None]:
    """Have the machine make memfds of huge pages wherever it can."""
    switch = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if os.geteuid() != 0 or not os.access(switch, os.W_OK):
        pytest.skip(f"needs root and {switch}")
    before = switch.read_text().partition("[")[2].partition("]")[0]
    with _guarded(f"echo {before} > {switch}"):
        switch.write_text("always")
        yield


def fill_up(folder: Path) -> Path:
    """Write a file until its file system takes no more."""
    hog = folder / "hog"
    with hog.open("wb", buffering=0) as file:
        for length in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(length)) == length:
                    pass
    return hog
