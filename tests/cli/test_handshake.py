# SPDX-License-Identifier: MIT
# Goal: nobody who talks to the session's socket can harm the session, and nobody else can talk.
# Method: garbage, half a handshake, silence and floods from beside a running program.
"""Hostile and broken handshakes."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from integration.harness import wait_until

from uffdswap.wire import HELLO, MAGIC, WIRE_VERSION

from .launching import LIMIT, Launch, error_lines, is_running, python, uffdswap
from .test_session import count_fds

NOBODY = 65534

# Runs a child for every line, which needs a handshake that works.
PARENT = """
import subprocess, sys
print("ready", flush=True)
for line in sys.stdin:
    subprocess.run(["true"], check=True)
    print("served", flush=True)
"""


class Victim:
    """A session under attack."""

    def __init__(self, launch: Launch, stats: Path) -> None:
        self.launch = launch
        self._stats = stats
        assert launch.line() == "ready"
        self.path = launch.socket_path()
        self.agent = launch.agent().pid
        self.require_service()
        wait_until(self._is_at_rest, "the first child is gone")
        self._fds = count_fds(self.agent)

    def _is_at_rest(self) -> bool:
        """Tell whether the program is the only target: the agent holds one pidfd."""
        links = []
        for fd in Path(f"/proc/{self.agent}/fd").iterdir():
            with suppress(OSError):
                links.append(str(fd.readlink()))
        return sum("pidfd" in link for link in links) <= 1

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.path)  # waits while the queue is full, as the shim does
        connection.settimeout(30)
        return connection

    def require_service(self) -> None:
        """Demand that another target is taken, now."""
        self.launch.send_line()
        assert self.launch.line() == "served"

    def require_no_harm(self, *, refused_at_least: int) -> None:
        """Demand that the agent lives, has kept nothing, serves, and has counted."""
        self.require_service()
        wait_until(lambda: count_fds(self.agent) <= self._fds, "the agent has closed everything")
        assert is_running(self.agent)
        status, _stdout, stderr = self.launch.finish()
        assert status == 0, stderr.decode()
        report = json.loads(self._stats.read_text())
        assert report["handshakes"]["refused"] >= refused_at_least


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    stats = tmp_path / "stats.json"
    with Launch(python(PARENT), options=(*LIMIT, "--stats", str(stats))) as launch:
        yield Victim(launch, stats)


def is_closed(connection: socket.socket) -> bool:
    """Wait for the agent's answer; a refusal counts as closed once the end follows."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize(
    "hello",
    [
        b"x",
        b"\0" * HELLO.size,
        random.Random(7).randbytes(HELLO.size),
        b"x" * (HELLO.size - 1),
        b"x" * 4096,
        HELLO.pack(MAGIC, WIRE_VERSION + 1, 1, 0, 0, 0, 0),
        HELLO.pack(MAGIC, WIRE_VERSION, 1, 0, 0, 0, 0),
        HELLO.pack(MAGIC, WIRE_VERSION, 2, 0, 12345, 0, 0),
        HELLO.pack(MAGIC, WIRE_VERSION, 99, 0, 0, 0, 0),
        HELLO.pack(MAGIC, WIRE_VERSION, 1, 0, 0, 2**64 - 1, 2**64 - 1),
        HELLO.pack(MAGIC, WIRE_VERSION, 1, 0, 0, 0, 0) + b"\0",
    ],
    ids=[
        *("one-byte", "zeros", "noise", "short", "long", "other-version", "no-descriptors"),
        *("unknown-fork", "unknown-kind", "wild-addresses", "one-too-many"),
    ],
)
def test_garbage_is_refused(victim: Victim, hello: bytes) -> None:
    with victim.connect() as connection:
        connection.send(hello)
        assert is_closed(connection)
    victim.require_no_harm(refused_at_least=1)


@pytest.mark.parametrize("who", ["program", "child"])
def test_garbage_of_the_program_itself_costs_it_nothing(tmp_path: Path, who: str) -> None:
    code = """
import os, socket, sys
if sys.argv[1] == "child" and (pid := os.fork()):
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
for hello in (b"garbage", b"", b"x" * 4096):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.connect(os.environ["_UFFDSWAP_SOCKET"])
        s.send(hello)
        try:
            while s.recv(4096): pass
        except ConnectionResetError: pass
sys.exit(7)
"""
    stats = tmp_path / "stats.json"
    done = uffdswap("run", *LIMIT, "--stats", str(stats), "--", *python(code, who))
    (line,) = error_lines(done.stderr)
    assert done.returncode == 7, line
    assert "something that is no hello" in line
    assert json.loads(stats.read_text())["handshakes"]["refused"] >= 2


@pytest.mark.parametrize("count", [1, 4, 5, 6, 9, 200])
def test_wrong_descriptors_are_refused_and_closed(victim: Victim, count: int) -> None:
    hello = HELLO.pack(MAGIC, WIRE_VERSION, 1, 0, 0, 1 << 30, 1 << 20)
    with victim.connect() as connection, Path(os.devnull).open("rb") as file:
        socket.send_fds(connection, [hello], [file.fileno()] * count)
        assert is_closed(connection)
    victim.require_no_harm(refused_at_least=1)


def test_descriptors_without_a_word_are_closed(victim: Victim) -> None:
    with victim.connect() as connection:
        socket.send_fds(connection, [b"?"], [0, 1, 2])
        assert is_closed(connection)
    victim.require_no_harm(refused_at_least=1)


def test_connection_that_ends_at_once_is_forgotten(victim: Victim) -> None:
    for _ in range(50):
        victim.connect().close()
    victim.require_no_harm(refused_at_least=50)


def test_silent_connection_is_closed_in_time(victim: Victim) -> None:
    with victim.connect() as connection:
        assert is_closed(connection)
    victim.require_no_harm(refused_at_least=1)


def test_silent_crowd_does_not_keep_others_out_for_long(victim: Victim) -> None:
    """More than the agent waits for, and more than the socket's queue holds beside them."""
    with ExitStack() as stack:
        for _ in range(128 + 100):
            stack.enter_context(victim.connect())
        victim.require_service()
    victim.require_no_harm(refused_at_least=200)


def test_many_at_once_do_no_harm(victim: Victim) -> None:
    noise = random.Random(11)
    for _ in range(300):
        with victim.connect() as connection:
            connection.send(noise.randbytes(noise.randrange(1, 64)))
    victim.require_no_harm(refused_at_least=300)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_other_users_are_refused(victim: Victim) -> None:
    """The folder keeps them out; here somebody has opened it."""
    socket_path = Path(victim.path)
    opened = [socket_path, *list(socket_path.parents)[:3]]
    modes = [path.stat().st_mode for path in opened]
    code = f"""
import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(30)
s.connect({victim.path!r})
try:
    s.send(b"x" * {HELLO.size})
    print(len(s.recv(100)))
except OSError:
    print(0)
"""
    try:
        for path in opened:
            path.chmod(0o777)
        command = ["/usr/bin/python3", "-I", "-S", "-c", code]
        done = subprocess.run(
            command,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            timeout=60,
            check=False,
            cwd="/",
        )
    finally:
        for path, mode in zip(opened, modes, strict=True):
            path.chmod(mode & 0o7777)
    assert (done.returncode, done.stdout) == (0, b"0\n"), done.stderr
    victim.require_no_harm(refused_at_least=1)


def test_socket_and_folder_are_closed_to_others(victim: Victim) -> None:
    path = Path(victim.path)
    modes = [entry.stat().st_mode & 0o777 for entry in (path, path.parent, path.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]
    victim.require_no_harm(refused_at_least=0)
