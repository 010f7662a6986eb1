# SPDX-License-Identifier: MIT
"""Load a redis server with keys that are all asked for as often: `redis_gets.py BYTES`.

The server is a child of this program, with a socket in a folder of its own and without persistence.
Each value follows from its key's number and is compared whole.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BYTES_A_KEY = 820
VALUE_BYTES = 700
GETS_A_KEY = 1.5
BATCH = 16
START_SECONDS = 30.0
FACTOR = 3**1211  # about as long as the tokens: any multiple has digits without a pattern
SERVER = ("redis-server", "--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no")


def value(number: int) -> bytes:
    """Return a key's value: a record as programs cache them, two thirds of it tokens like noise."""
    tokens = f"{(number + 1) * FACTOR % (1 << 1920):0480x}"
    text = f'{{"user": {number}, "name": "user-{number * 7919 % 100_003}", "token": "{tokens}", '
    text += f'"visits": {number % 977}, "page": "/shop/{number % 89}/item/{number % 7919}"}}'
    return text.encode().ljust(VALUE_BYTES, b".")


class Client:
    """One connection; as much of the protocol as is needed."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._replies = connection.makefile("rb")

    def send(self, commands: list[tuple[bytes, ...]]) -> None:
        """Send some commands at once."""
        parts = []
        for command in commands:
            parts.append(b"*%d\r\n" % len(command))
            parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in command]
        self._connection.sendall(b"".join(parts))

    def reply(self) -> bytes:
        """Return one reply."""
        line = self._replies.readline().rstrip()
        if line[:1] != b"$":
            return line
        length = int(line[1:])
        return self._replies.read(length + 2)[:-2] if length >= 0 else b""


def connect(path: Path) -> Client:
    """Wait until the server listens."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return Client(connection)


def fill(client: Client, count: int) -> int:
    """Set all keys; return how many were refused."""
    wrong = 0
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        client.send([(b"SET", b"key:%d" % number, value(number)) for number in numbers])
        wrong += sum(client.reply() != b"+OK" for _number in numbers)
    return wrong


def ask(client: Client, count: int) -> int:
    """Get keys, each as likely as any other; return how many values were wrong."""
    draw = random.Random(1).randrange
    wrong = 0
    for _batch in range(int(count * GETS_A_KEY / BATCH)):
        numbers = [draw(count) for _ in range(BATCH)]
        client.send([(b"GET", b"key:%d" % number) for number in numbers])
        wrong += sum(client.reply() != value(number) for number in numbers)
    return wrong


def main() -> int:
    """Start, fill, ask."""
    count = int(sys.argv[1]) // BYTES_A_KEY
    with tempfile.TemporaryDirectory(prefix="uffdswap-bench-redis-") as folder:
        os.chdir(folder)  # the path of a socket has to be short
        with subprocess.Popen(
            [*SERVER, "--unixsocket", "socket"], stdout=subprocess.DEVNULL
        ) as server:
            try:
                client = connect(Path("socket"))
                wrong = fill(client, count) + ask(client, count)
            finally:
                server.kill()
    if not wrong:
        return 0
    print(f"redis: {wrong} replies are WRONG", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
