# SPDX-License-Identifier: MIT
# Goal: the control loop passes on what it must, stays as long as it must, and kills when it must.
# Method: the real loop in a thread, with a data plane that does what the test says.
"""The agent's control loop."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from uffdswap import agent as agent_module
from uffdswap import protocol, wire
from uffdswap._lib import Event, EventKind, Statistics
from uffdswap.agent import Agent

HELLO = b"a hello"
SECONDS = 20.0


class FakeSession:
    """A data plane that accepts every `HELLO` and tells what it was asked to do."""

    def __init__(self, **limits: Any) -> None:
        self.limits = limits
        self.events: list[Event] = []
        self.killed: list[str] = []
        self.closed = False
        self.targets = 0
        self.alive: set[int] = set()
        self.unnamed = 0
        self.tiers: list[tuple[str, int | None]] = []
        self._readable, self._writable = os.pipe()

    def tell(self, kind: EventKind, target_id: int = 0, pid: int = 0, text: str = "") -> None:
        if kind is EventKind.TARGET_ADDED:
            self.alive.add(target_id)
        elif kind is EventKind.TARGET_GONE:
            self.alive.discard(target_id)
        self.events.append(Event(kind=kind, target_id=target_id, pid=pid, text=text))
        os.write(self._writable, b"!")

    def add_tier(self, path: str, cap_bytes: int | None) -> None:
        if path.startswith("/nonexistent"):
            raise OSError(2, f"cannot use {path}")
        self.tiers.append((path, cap_bytes))

    def event_fd(self) -> int:
        return self._readable

    def next_event(self) -> Event | None:
        if not self.events:
            return None
        os.read(self._readable, 1)
        return self.events.pop(0)

    def fds(self) -> list[int]:
        return [self._readable]

    def target_fds(self, _target_id: int) -> list[int]:
        return [os.dup(self._readable)]

    def add_target(
        self, connection: int, pidfd: int, pid: int, hello: bytes, fds: list[int]
    ) -> bool:
        for fd in (connection, pidfd, *fds):
            os.close(fd)
        if hello != HELLO:
            raise OSError(71, "garbage")
        self.targets += 1
        self.tell(EventKind.TARGET_ADDED, self.targets, pid)
        return False

    def statistics(self) -> Statistics:
        values = dict.fromkeys(Statistics.field_names(), 7)
        return Statistics(**{**values, "targets_now": len(self.alive) + self.unnamed})

    def kill_all(self, why: str) -> None:
        self.killed.append(why)
        for target_id in sorted(self.alive):
            self.tell(EventKind.TARGET_GONE, target_id)

    def close(self) -> None:
        self.closed = True
        os.close(self._readable)
        os.close(self._writable)


class Harness:
    """An agent in a thread, and the launcher's end of its channel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "1-1"
        self.folder.mkdir()
        self.session: FakeSession | None = None
        self.error: BaseException | None = None
        self.refusal: OSError | None = None
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(SECONDS)
        self.path = str(self.folder / "socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._agent = Agent(theirs, self._open)  # type: ignore[arg-type] # the fake data plane
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _open(self, **limits: int) -> FakeSession:
        if self.refusal:
            raise self.refusal
        self.session = FakeSession(**limits)
        return self.session

    def _serve(self) -> None:
        try:
            self._agent.serve()
        except Exception as error:  # looked at by the test
            self.error = error

    def configure(self, **changes: Any) -> None:
        message = protocol.Configure(
            memory_bytes=1 << 30,
            resident_bytes=None,
            stress_pages_per_second=0,
            folder=str(self.folder),
            disks=[],
            disks_are_required=False,
            disk_is_encrypted=True,
            on_full=None,
        )
        protocol.send(self.control, message.replaced(**changes), [self._listener.fileno()])

    def start(self) -> FakeSession:
        self.configure()
        assert self.receive() == protocol.Ready(new_disks=[])
        assert self.session is not None
        return self.session

    def receive(self) -> protocol.Message | None:
        received = protocol.receive(self.control)
        if received is None:
            return None
        message, fds = received
        protocol.close_all(fds)
        return message

    def connect(self, hello: bytes = HELLO) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(self.path)
            connection.send(hello)

    def join(self) -> None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the agent does not end"

    def require_running(self) -> None:
        assert self._thread.is_alive()

    def close(self) -> None:
        self.control.close()
        self.join()
        self._listener.close()


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    monkeypatch.setattr(agent_module, "_leave_terminal", lambda: None)
    monkeypatch.setattr(agent_module, "_HANDSHAKE_SECONDS", 0.5)
    harness = Harness(tmp_path)
    yield harness
    harness.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


# --- Starting ------------------------------------------------------------------------------------


def test_limits_reach_the_data_plane(harness: Harness) -> None:
    session = harness.start()
    assert session.limits == {
        "memory_limit_bytes": 1 << 30,
        "resident_limit_bytes": None,
        "stress_pages_per_second": 0,
        "disk_is_encrypted": True,
        "on_full": None,
    }
    assert session.tiers == []


def test_disk_tiers_are_there_from_the_start(harness: Harness) -> None:
    disks = [{"path": "/var/tmp", "cap_bytes": 1 << 30}, {"path": "/srv", "cap_bytes": None}]
    harness.configure(disks=disks, disk_is_encrypted=False, on_full="kill")
    assert harness.receive() == protocol.Ready(new_disks=[])
    assert harness.session is not None
    assert harness.session.tiers == [("/var/tmp", 1 << 30), ("/srv", None)]
    assert harness.session.limits["disk_is_encrypted"] is False
    assert harness.session.limits["on_full"] == "kill"


def test_disk_tier_that_was_asked_for_is_needed(harness: Harness) -> None:
    disks = [{"path": "/nonexistent", "cap_bytes": None}]
    harness.configure(disks=disks, disks_are_required=True)
    assert harness.receive() == protocol.Refused(pid=0, text="cannot use /nonexistent")


def test_disk_tier_nobody_asked_for_may_be_missing(harness: Harness) -> None:
    harness.configure(disks=[{"path": "/nonexistent", "cap_bytes": None}])
    expected = "going without a disk tier: cannot use /nonexistent"
    assert harness.receive() == protocol.Warn(text=expected, serious=False)
    assert harness.receive() == protocol.Ready(new_disks=[])


def test_refusal_of_the_data_plane_is_passed_on(harness: Harness) -> None:
    harness.refusal = OSError(1, "no permission, and this is why")
    harness.configure()
    expected = protocol.Refused(pid=0, text="no permission, and this is why")
    assert harness.receive() == expected


def test_launcher_that_leaves_before_the_start_is_no_event(harness: Harness) -> None:
    harness.control.close()
    harness.join()
    assert harness.error is None


def test_garbage_from_the_launcher_ends_the_session_with_its_targets(harness: Harness) -> None:
    session = harness.start()
    harness.control.send(b"garbage")
    message = harness.receive()
    assert isinstance(message, protocol.Fatal)
    assert message.kind == "internal"
    harness.join()
    assert session.killed
    assert session.closed


def test_second_configuration_is_out_of_turn(harness: Harness) -> None:
    harness.start()
    harness.configure()
    assert isinstance(harness.receive(), protocol.Fatal)
    harness.join()
    assert "out of turn" in str(harness.error)


# --- Serving -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ((EventKind.TARGET_ADDED, 3, 42), protocol.Target(id=3, pid=42)),
        ((EventKind.TARGET_ADDED, 3, -1), protocol.Target(id=3, pid=0)),
        ((EventKind.TARGET_GONE, 3, 42), protocol.Gone(id=3)),
        ((EventKind.TARGET_KILLED, 3, 42, "why"), protocol.Killed(pid=42, text="why")),
        (
            (EventKind.NOT_KILLED, 3, 42, "why"),
            protocol.Killed(pid=42, text="why", goes_on=True),
        ),
        (
            (EventKind.OUT_OF_MEMORY, 0, 0, "why"),
            protocol.Fatal(kind="out_of_memory", text="why"),
        ),
        ((EventKind.POISONED, 3, 42, "page"), protocol.Warn(text="page", serious=True)),
        ((EventKind.WARNING, 0, 0, "note"), protocol.Warn(text="note", serious=False)),
        ((EventKind.ALONE, 3, 0, "alone"), protocol.Warn(text="alone", serious=False)),
        ((EventKind.ROOM, 0, 0, "room"), protocol.Warn(text="room", serious=False)),
        ((EventKind.TIER_KEPT, 1, 0, "stays"), protocol.Warn(text="stays", serious=False)),
    ],
)
def test_events_are_told(
    harness: Harness, event: tuple[Any, ...], message: protocol.Message
) -> None:
    harness.start().tell(*event)
    assert harness.receive() == message


def test_handshake_makes_a_target(harness: Harness) -> None:
    harness.start()
    harness.connect()
    assert harness.receive() == protocol.Target(id=1, pid=os.getpid())


def test_refused_handshake_is_told_and_counted(harness: Harness) -> None:
    harness.start()
    harness.connect(b"something else")
    assert harness.receive() == protocol.Refused(pid=os.getpid(), text="garbage")
    protocol.send(harness.control, protocol.Finish(orphans=[]))
    message = harness.receive()
    assert isinstance(message, protocol.Statistics)
    assert message.handshakes_refused == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errno.EMFILE, ("Too many open files", "ulimit -n")),
        (errno.EPERM, ("Operation not permitted",)),
        (errno.ENOSYS, ("Function not implemented", "valgrind", "seccomp")),
        (0, ("Protocol error",)),
        (2**64 - 1, ("Protocol error",)),
    ],
)
def test_process_that_gives_up_is_told_with_the_reason(
    harness: Harness, error: int, words: tuple[str, ...]
) -> None:
    harness.start()
    harness.connect(
        wire.HELLO.pack(wire.MAGIC, wire.WIRE_VERSION, wire.HELLO_GIVE_UP, 0, error, 0, 0)
    )
    message = harness.receive()
    assert isinstance(message, protocol.Refused)
    assert message.has_given_up
    assert message.pid == os.getpid()
    assert all(word in message.text for word in words)


# Gives up, and tells whether it is let go.
GIVER = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
s.send(bytes.fromhex(sys.argv[2]))
s.settimeout(float(sys.argv[3]))
try:
    print("let go" if s.recv(1) == b"" else "an answer")
except TimeoutError:
    print("held")
"""


@pytest.mark.parametrize("is_program", [True, False])
def test_only_the_program_is_held_when_it_has_given_up(
    harness: Harness, sleeper: int, is_program: bool
) -> None:
    harness.start()
    if not is_program:  # without a word of it, the launcher's child is the program
        protocol.send(harness.control, protocol.Started(pid=sleeper))
    hello = wire.HELLO.pack(
        wire.MAGIC, wire.WIRE_VERSION, wire.HELLO_GIVE_UP, 0, errno.EMFILE, 0, 0
    ).hex()
    seconds = "0.3" if is_program else str(SECONDS)
    command = [sys.executable, "-I", "-S", "-c", GIVER, harness.path, hello, seconds]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True)
    assert done.stdout == ("held\n" if is_program else "let go\n")
    assert isinstance(harness.receive(), protocol.Refused)


def test_launcher_that_does_not_read_holds_nothing_up_and_misses_nothing(
    harness: Harness,
) -> None:
    session = harness.start()
    count = 1000
    for target in range(1, count + 1):
        session.tell(EventKind.TARGET_ADDED, target, 1)
        session.tell(EventKind.TARGET_GONE, target, 1)
    wait_until(lambda: not session.events)  # taken, although nobody reads
    told = [harness.receive() for _ in range(2 * count)]
    for target in range(1, count + 1):
        came = told.index(protocol.Target(id=target, pid=1))
        assert told.index(protocol.Gone(id=target)) > came


def test_process_that_does_not_finish_its_handshake_is_told(harness: Harness) -> None:
    harness.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(harness.path)
        message = harness.receive()
    assert isinstance(message, protocol.Refused)
    assert message.pid == os.getpid()
    assert "too long" in message.text


def test_idle_agent_sleeps(harness: Harness) -> None:
    harness.start()
    wait_until(lambda: harness._agent._timeout() is None)


# --- The end -------------------------------------------------------------------------------------


def test_statistics_are_the_answer_to_the_end(harness: Harness) -> None:
    session = harness.start()
    protocol.send(harness.control, protocol.Finish(orphans=[]))
    message = harness.receive()
    assert isinstance(message, protocol.Statistics)
    assert message.counters == session.statistics().as_dict()
    assert message.remaining == 0
    harness.join()
    assert harness.receive() is None
    assert (session.closed, session.killed) == (True, [])
    assert not harness.folder.exists()


def test_what_happened_before_is_told_before_the_statistics(harness: Harness) -> None:
    session = harness.start()
    session.events.append(Event(kind=EventKind.TARGET_KILLED, target_id=1, pid=5, text="why"))
    os.write(session._writable, b"!")
    protocol.send(harness.control, protocol.Finish(orphans=[]))
    assert harness.receive() == protocol.Killed(pid=5, text="why")
    assert isinstance(harness.receive(), protocol.Statistics)


def test_program_itself_does_not_outlive_itself(harness: Harness) -> None:
    session = harness.start()
    protocol.send(harness.control, protocol.Started(pid=os.getpid()))
    session.tell(EventKind.TARGET_ADDED, 1, os.getpid())
    assert harness.receive() == protocol.Target(id=1, pid=os.getpid())
    protocol.send(harness.control, protocol.Finish(orphans=[]))
    message = harness.receive()
    assert isinstance(message, protocol.Statistics)
    assert message.remaining == 0
    harness.join()


def test_agent_stays_for_targets_without_a_launcher(harness: Harness, sleeper: int) -> None:
    session = harness.start()
    session.tell(EventKind.TARGET_ADDED, 1, sleeper)
    harness.receive()
    protocol.send(harness.control, protocol.Finish(orphans=[sleeper]))
    message = harness.receive()
    assert isinstance(message, protocol.Statistics)
    assert message.remaining == 1
    harness.control.close()
    harness.connect()  # a child of the target
    wait_until(lambda: session.targets == 1 and not session.events)
    harness.require_running()
    assert harness.folder.exists()
    session.tell(EventKind.TARGET_GONE, 1, sleeper)
    harness.join()
    assert (harness.error, session.killed) == (None, [])
    assert not harness.folder.exists()


def test_agent_waits_for_orphans_on_their_way(harness: Harness, sleeper: int) -> None:
    session = harness.start()
    protocol.send(harness.control, protocol.Finish(orphans=[sleeper]))
    message = harness.receive()
    assert isinstance(message, protocol.Statistics)
    assert message.remaining == 1
    harness.control.close()
    session.tell(EventKind.TARGET_ADDED, 1, sleeper)
    wait_until(lambda: not session.events)
    time.sleep(0.7)  # longer than it would wait for one that does not come
    harness.require_running()
    session.tell(EventKind.TARGET_GONE, 1, sleeper)
    harness.join()


def test_agent_does_not_wait_for_ever_for_an_orphan_that_is_no_target(
    harness: Harness, sleeper: int
) -> None:
    harness.start()
    protocol.send(harness.control, protocol.Finish(orphans=[sleeper]))
    assert isinstance(harness.receive(), protocol.Statistics)
    harness.join()


def test_agent_stays_for_forks_that_never_hand_themselves_in(
    harness: Harness, sleeper: int
) -> None:
    session = harness.start()
    session.unnamed = 1
    protocol.send(harness.control, protocol.Finish(orphans=[sleeper]))
    assert isinstance(harness.receive(), protocol.Statistics)
    time.sleep(0.7)  # longer than it would wait for one that is no target
    harness.require_running()
    session.unnamed = 0
    session.tell(EventKind.TARGET_GONE, 1, sleeper)
    harness.join()


def test_target_that_is_gone_before_it_is_announced_is_not_kept(harness: Harness) -> None:
    session = harness.start()
    session.events += [
        Event(kind=EventKind.TARGET_GONE, target_id=5, pid=1, text=""),
        Event(kind=EventKind.TARGET_ADDED, target_id=5, pid=1, text=""),
    ]
    os.write(session._writable, b"!!")
    assert harness.receive() == protocol.Target(id=5, pid=1)
    assert harness.receive() == protocol.Gone(id=5)
    assert not harness._agent._targets


def test_silent_connection_does_not_hold_up_the_end(harness: Harness) -> None:
    harness.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(harness.path)
        protocol.send(harness.control, protocol.Finish(orphans=[]))
        assert isinstance(harness.receive(), protocol.Statistics)
        harness.join()


def test_lost_launcher_means_that_everything_is_killed(
    harness: Harness, capfd: pytest.CaptureFixture[str]
) -> None:
    session = harness.start()
    harness.connect()
    harness.receive()
    harness.control.close()
    harness.join()
    assert len(session.killed) == 1
    assert session.closed
    assert not harness.folder.exists()
    assert capfd.readouterr().err.startswith("uffdswap: the standing agent is gone")


def test_child_on_its_way_is_killed_too_when_the_launcher_is_lost(harness: Harness) -> None:
    session = harness.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(harness.path)
        wait_until(lambda: bool(harness._agent._pending))
        harness.control.close()
        connection.send(HELLO)
        harness.join()
    assert session.targets == 1
    assert session.killed


def test_started_by_hand_it_says_how_it_is_started() -> None:
    command = [sys.executable, "-P", "-m", "uffdswap.agent"]
    done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    assert done.returncode == 2
    assert b"not by hand" in done.stderr


def test_look_at_processes_that_fails_does_not_end_the_session(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def look(*_arguments: object) -> float:
        looks.append(time.monotonic())
        raise OSError(errno.EMFILE, "no descriptor left")

    monkeypatch.setattr(agent_module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr("uffdswap.unmanaged.Lookout.look", look)
    session = harness.start()
    session.tell(EventKind.TARGET_ADDED, 1, os.getpid())
    assert isinstance(harness.receive(), protocol.Target)
    deadline = time.monotonic() + SECONDS
    while len(looks) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    session.tell(EventKind.WARNING, 0, 0, "still here")
    assert harness.receive() == protocol.Warn(text="still here", serious=False)
