# SPDX-License-Identifier: MIT
# Goal: connections are taken when they can be, and a loop that cannot take one does not spin.
# Method: a real socket and selector; no room, no descriptor, and time that the test moves.
"""The listener that rests."""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uffdswap import listener as module
from uffdswap.listener import Listener


class Clock:
    """The listener's time."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Rig:
    """A listener, what it has taken, and clients that knock."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "socket")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(self.path)
        self.socket.listen()
        self.selector = selectors.DefaultSelector()
        self.taken: list[socket.socket] = []
        self.clients: list[socket.socket] = []
        self.lacks: list[OSError] = []
        self.room = 10
        self.listener = Listener(
            self.socket,
            self.selector,
            self.taken.append,
            has_room=lambda: len(self.taken) < self.room,
            on_lack=self.lacks.append,
        )

    def knock(self) -> None:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.clients.append(client)
        client.connect(self.path)

    def turn(self) -> int:
        """Do what is ready, and return how much that was."""
        ready = self.selector.select(0)
        for key, _events in ready:
            key.data()
        self.listener.tick()
        return len(ready)

    def turn_failing(self, error: OSError) -> None:
        """Do what is ready while accept() fails."""

        def fail(*_arguments: Any) -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket.socket, "accept", fail)
            self.turn()

    def close(self) -> None:
        self.listener.close()
        self.selector.close()
        for one in (*self.taken, *self.clients):
            one.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def rig(tmp_path: Path, clock: Clock) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_connections_are_taken_and_do_not_block(rig: Rig) -> None:
    assert rig.turn() == 0
    rig.knock()
    rig.knock()
    rig.turn()
    rig.turn()
    assert len(rig.taken) == 2
    assert not any(one.getblocking() for one in rig.taken)
    assert rig.listener.deadline() is None


def test_without_room_it_rests_and_comes_back(rig: Rig, clock: Clock) -> None:
    rig.room = 1
    rig.knock()
    rig.knock()
    rig.turn()
    rig.turn()
    assert len(rig.taken) == 1
    again = rig.listener.deadline()
    assert again is not None and again > clock.now
    assert rig.turn() == 0, "the socket is not looked at while it rests"
    rig.room = 2
    assert rig.turn() == 0, "nor a moment too early"
    clock.now = again
    rig.turn()
    assert rig.listener.deadline() is None
    rig.turn()
    assert len(rig.taken) == 2


def test_without_descriptors_it_says_so_and_rests(rig: Rig, clock: Clock) -> None:
    rig.knock()
    rig.turn_failing(OSError(errno.EMFILE, "too many open files"))
    assert [error.errno for error in rig.lacks] == [errno.EMFILE]
    assert not rig.taken
    assert rig.turn() == 0
    clock.now += 1
    rig.turn()
    rig.turn()
    assert len(rig.taken) == 1


def test_a_client_that_has_gone_is_no_lack(rig: Rig) -> None:
    rig.knock()
    rig.turn_failing(ConnectionAbortedError())
    assert not rig.lacks
    assert rig.listener.deadline() is None


def test_it_closes_once_also_while_it_rests(rig: Rig) -> None:
    rig.room = 0
    rig.knock()
    rig.turn()
    rig.listener.close()
    rig.listener.close()
    with pytest.raises(ConnectionRefusedError):
        rig.knock()
