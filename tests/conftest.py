# SPDX-License-Identifier: MIT
# Goal: every test runs against the installed package and leaves nothing behind.
# Method: mark this session's processes through their environment and look for the mark at the end.
"""Fixtures for all tests."""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from uffdswap._lib import Probe, probe, shim_path

REPOSITORY = Path(__file__).resolve().parent.parent
SESSION_MARK = "USW_TEST_SESSION"
LEFT_BEHIND_SECONDS = 10.0


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the session if a process or a runtime folder of its own outlives it."""
    mark = uuid.uuid4().hex
    runtime = Path(tempfile.mkdtemp(prefix="usw-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SESSION_MARK, mark)
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        patch.setenv("USW_SHIM", str(shim_path()))
        before = _runtime_entries(Path("/run/uffdswap"))
        yield
        left = _wait_until_gone(mark, runtime, before)
    shutil.rmtree(runtime, ignore_errors=True)
    assert not left, "left behind by the tests:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def kernel() -> Probe:
    """Return what the kernel offers, from the probe that ``doctor`` uses."""
    return probe()


def _wait_until_gone(mark: str, runtime: Path, before: set[Path]) -> list[str]:
    """Describe what is left, after giving it time to go: exits are not instantaneous."""
    deadline = time.monotonic() + LEFT_BEHIND_SECONDS
    while True:
        left = _marked_processes(mark)
        left += sorted(map(str, _runtime_entries(runtime / "uffdswap")))
        left += sorted(map(str, _stale_entries(Path("/run/uffdswap")) - before))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _marked_processes(mark: str) -> list[str]:
    """Describe every other process that has this session's mark in its environment."""
    wanted = f"{SESSION_MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        try:
            if wanted in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(f"process {folder.name}: {command}")
        except OSError:
            continue  # it has ended, or is not ours
    return found


def _runtime_entries(folder: Path) -> set[Path]:
    return set(folder.iterdir()) if folder.is_dir() else set()


def _stale_entries(folder: Path) -> set[Path]:
    """Return folders whose agent is dead; one that lives is somebody else's, or has the mark."""
    return {
        path
        for path in _runtime_entries(folder)
        if not Path("/proc", path.name.partition("-")[0]).exists()
    }
