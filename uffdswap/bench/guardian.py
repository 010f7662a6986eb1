# SPDX-License-Identifier: MIT
"""Put the machine back as it was, whatever becomes of the benchmark.

A peer is set up by a handful of changes to the machine: a swap device, a cgroup, a setting. Before
each of them the benchmark tells a second process, the guardian, how to undo it, and waits for its
word. The guardian undoes them in reverse when asked to, and also when its pipe closes, which the
kernel does however the benchmark ends. So there is one way back and it is the same after an error,
Ctrl-C, SIGTERM and SIGKILL.

The guardian ignores what a terminal sends, in a session of its own; only killing it as well leaves
the machine changed. Steps may find their work done already and are content with that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SetupFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

__all__ = ("Guardian", "serve")

_PATIENCE_SECONDS = 20.0
_PAUSE_SECONDS = 0.02


class Guardian:
    """The benchmark's side: note a step, do it, and have all of them undone.

    >>> with Guardian() as guardian:
    ...     guardian.note("unlink", path="/nonexistent/file")
    ...     guardian.undo()
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "uffdswap.bench.guardian"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def note(self, step: str, **values: str | int) -> None:
        """Say how to undo what comes next; returns when that is known."""
        self._ask({"step": step, **values})

    def undo(self) -> None:
        """Undo all steps, the last one first. Raises `SetupFailed` naming those that failed."""
        failures = self._ask({"step": "undo"})
        if failures:
            what = "the machine could not be put back as it was"
            raise SetupFailed(what, cause="; ".join(failures), remedy="undo these steps by hand")

    def close(self) -> None:
        """Have everything undone and end the guardian."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, message: dict[str, Any]) -> list[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise SetupFailed("the process that would undo the set-up has died")
        failures: list[str] = json.loads(answer)["failures"]
        return failures


# --- The guardian's side -------------------------------------------------------------------------


def serve() -> int:
    """Keep the steps until told to undo them, or until there is nobody who could tell."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    steps: list[dict[str, Any]] = []
    for line in sys.stdin:
        message = json.loads(line)
        failures = []
        if message["step"] == "undo":
            failures = _undo(steps)
        else:
            steps.append(message)
        print(json.dumps({"failures": failures}), flush=True)
    return 1 if _undo(steps) else 0


def _undo(steps: list[dict[str, Any]]) -> list[str]:
    """Undo every step even if one fails; return what failed and why."""
    failures = []
    while steps:
        step = steps.pop()
        name = step.pop("step")
        try:
            _STEPS[name](**step)
        except OSError as error:
            failures.append(f"{name} {' '.join(map(str, step.values()))}: {error.strerror}")
    return failures


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _remove_folder(path: str) -> None:
    """Remove the files of a run, unless they have been moved to where they are kept.

    What was killed a moment ago may make a file while the folder is emptied.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while Path(path).exists():
        try:
            shutil.rmtree(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)


def _swapoff(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.swapoff(os.fsencode(path)) != 0:
        code = ctypes.get_errno()
        if code != errno.EINVAL:  # it is not on: the set-up did not come that far
            raise OSError(code, os.strerror(code))


def _reset_zram(device: str, algorithm: str) -> None:
    """Reset through sysfs: `zramctl --reset` would remove the device that was there before."""
    folder = Path("/sys/block") / device
    _until_not_busy(lambda: (folder / "reset").write_text("1"))
    (folder / "comp_algorithm").write_text(algorithm)


def _remove_zram(device: str) -> None:
    number = device.removeprefix("zram")
    _until_not_busy(lambda: Path("/sys/class/zram-control/hot_remove").write_text(number))


def _remove_group(path: str) -> None:
    """Kill what is left in a cgroup and remove it."""
    folder = Path(path)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while folder.exists():
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)


def _kill_session(pid: int) -> None:
    """Kill a process group that was started for a measurement, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _until_not_busy(act: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            act()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


_STEPS: dict[str, Callable[..., None]] = {
    "write": _write,
    "unlink": _unlink,
    "remove-folder": _remove_folder,
    "swapoff": _swapoff,
    "reset-zram": _reset_zram,
    "remove-zram": _remove_zram,
    "remove-group": _remove_group,
    "kill-session": _kill_session,
}


if __name__ == "__main__":
    raise SystemExit(serve())
