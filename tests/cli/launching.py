# SPDX-License-Identifier: MIT
"""Start `uffdswap run` as users do, and talk to the program inside.

Every wait has a limit. A launch is a context manager that kills the launcher at its end; a session
whose launcher is killed ends by itself, which the fixture over all tests checks.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from integration.harness import Process, processes_below

__all__ = (
    "UFFDSWAP",
    "Launch",
    "error_lines",
    "is_running",
    "python",
    "run",
    "script",
    "uffdswap",
)

UFFDSWAP = (sys.executable, "-P", "-m", "uffdswap")
LIMIT = ("--memory", "1G")
TIMEOUT_SECONDS = 60.0


def uffdswap(
    *arguments: str, input: bytes = b"", **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    return subprocess.run(
        [*UFFDSWAP, *arguments],
        input=input,
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        **options,
    )


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a program under a limit that it never reaches."""
    return uffdswap("run", *LIMIT, "--", *command, **options)


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs some Python as the program."""
    return (sys.executable, "-I", "-S", "-c", code, *arguments)


def script(path: Path, text: str, mode: int = 0o755) -> str:
    """Write an executable file and return its path."""
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def error_lines(stderr: bytes) -> list[str]:
    """Return our lines without their prefix, and demand that there are no others."""
    lines = stderr.decode().splitlines()
    assert all(line.startswith("uffdswap: ") for line in lines), stderr.decode()
    return [line.removeprefix("uffdswap: ") for line in lines]


def is_running(pid: int) -> bool:
    """Tell whether a process is there and has not ended; one that nobody has reaped has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[0]
    except OSError:
        return False
    return state != b"Z"


class Launch:
    """A program that runs under `uffdswap run`, with pipes to it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        options: Sequence[str] = LIMIT,
        launcher: Sequence[str] = (*UFFDSWAP, "run"),
        environment: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> None:
        self._unread = b""
        self.process = subprocess.Popen(
            [*launcher, *options, "--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            **popen,
        )

    def __enter__(self) -> Launch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=TIMEOUT_SECONDS)

    @property
    def pid(self) -> int:
        """Return the launcher's process."""
        return self.process.pid

    def line(self, seconds: float = 60.0) -> str:
        """Return the next line that the program prints."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            fd = self.process.stdout.fileno()
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(fd, 65536) if ready else b""
            if not data:
                why = "it has ended" if ready else f"nothing came in {seconds:g} s"
                pytest.fail(f"no line from the program: {why}; so far {self._unread!r}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def send_line(self, line: str = "") -> None:
        """Write a line to the program's stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def finish(self) -> tuple[int, bytes, bytes]:
        """Close stdin, wait for the end, and return status, rest of stdout, and stderr."""
        stdout, stderr = self.process.communicate(timeout=TIMEOUT_SECONDS)
        return self.process.returncode, self._unread + stdout, stderr

    def end(self) -> tuple[int, bytes, bytes]:
        """Like `finish()`, for an end that comes without the program reading its stdin's."""
        self.process.wait(TIMEOUT_SECONDS)
        return self.finish()

    def agent(self) -> Process:
        """Return the session's agent. The program must have spoken, so that there is one."""
        return next(process for process in processes_below(self.pid) if process.is_agent)

    def socket_path(self) -> str:
        """Return the session's socket, as the program sees it."""
        for process in processes_below(self.pid):
            variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            for variable in variables:
                name, _, value = variable.partition(b"=")
                if name == b"_UFFDSWAP_SOCKET":
                    return value.decode()
        pytest.fail("no program of the session has a socket in its environment")
