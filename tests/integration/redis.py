# SPDX-License-Identifier: MIT
"""A redis server of a test's own, and as much of its protocol as the test speaks.

Not a client library: one would be a dependency for ten lines of protocol.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ("Client", "Redis", "require_program")

_BATCH = 1000
_VALUE_BYTES = 1000
_START_SECONDS = 30.0
_REPLY_SECONDS = 120.0


def require_program(name: str) -> str:
    """Return a program's path, or skip the test."""
    path = shutil.which(name)
    return path or pytest.skip(f"{name} is not installed")


def _value(number: int) -> bytes:
    """Return a key's value, which nobody needs to remember: half noise, half text."""
    noise = hashlib.sha256(b"%d" % number).hexdigest().encode() * 8
    return (b"value %d " % number + noise)[: _VALUE_BYTES // 2].ljust(_VALUE_BYTES, b".")


class Client:
    """One connection: commands in batches, replies checked."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._replies = connection.makefile("rb")

    def close(self) -> None:
        self._replies.close()
        self._connection.close()

    def _send(self, commands: list[tuple[bytes, ...]]) -> None:
        parts = []
        for command in commands:
            parts.append(b"*%d\r\n" % len(command))
            parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in command]
        self._connection.sendall(b"".join(parts))

    def _reply(self) -> bytes:
        line = self._replies.readline().rstrip()
        assert line[:1] in {b"+", b":", b"$"}, f"redis answered {line!r}"
        if line[:1] != b"$":
            return line[1:]
        length = int(line[1:])
        assert length >= 0, "redis has no such key"
        return self._replies.read(length + 2)[:-2]

    def command(self, *words: str, reply: bool = True) -> bytes:
        """Send one command; return its reply."""
        self._send([tuple(word.encode() for word in words)])
        return self._reply() if reply else b""

    def fill(self, count: int) -> None:
        """Set keys 0 to count."""
        for first in range(0, count, _BATCH):
            numbers = range(first, min(first + _BATCH, count))
            self._send([(b"SET", b"key:%d" % number, _value(number)) for number in numbers])
            assert all(self._reply() == b"OK" for _number in numbers)

    def check(self, first: int, end: int) -> None:
        """Get keys first to end and compare each value."""
        for start in range(first, end, _BATCH):
            numbers = range(start, min(start + _BATCH, end))
            self._send([(b"GET", b"key:%d" % number) for number in numbers])
            for number in numbers:
                assert self._reply() == _value(number), f"key:{number} has a wrong value"

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO."""
        lines = self.command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def save_has_ended(self) -> bool:
        return self.info("persistence")["rdb_bgsave_in_progress"] == "0"


class Redis:
    """Where the server lives: a socket and a dump file in the test's folder, no port, no config."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # A path in the test's folder may be longer than a socket's address can be.
        self.socket_path = Path(f"/tmp/usw-redis-{folder.stat().st_ino}.sock")

    def command(self) -> list[str]:
        """Return the server's command line."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "dir": str(self._folder),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "loglevel": "warning",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [require_program("redis-server"), *words]

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """Connect as soon as the server listens."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_REPLY_SECONDS)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                connection.connect(str(self.socket_path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "redis does not listen"
                time.sleep(0.02)
        client = Client(connection)
        try:
            yield client
        finally:
            client.close()
            self.socket_path.unlink(missing_ok=True)
