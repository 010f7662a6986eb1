# SPDX-License-Identifier: MIT
"""The agent's side of the control socket.

Lives in the agent's one loop and never waits: a request is one datagram, its reply is sent if the
client takes it at once, and a client that does not is dropped. Reclaim, park and restore outlast
a turn of the loop; the data plane carries them out and announces their end.

Who is at the other end is asked of the kernel: nobody but the agent's own user is listened to.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time

from . import protocol
from .control import (
    REQUESTS,
    Changed,
    Failed,
    Leaving,
    Moved,
    Park,
    Reclaim,
    Restore,
    SetLimits,
    State,
    Status,
    TierAdd,
    TierFollow,
    TierList,
    TierRemove,
)
from .errors import ProtocolError
from .listener import Listener
from .record import Record
from .tier_desk import TierDesk
from .units import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._lib import NativeSession

__all__ = ("ControlServer", "Roll")

_CLIENTS_MAX = 64
_PAUSE_SECONDS = 0.1
_IDLE_SECONDS = 10.0
_FOLLOW_SECONDS = 0.5
_TARGETS_PER_MESSAGE = 100  # of less than 600 bytes each
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# A program needs some pages at once to make progress: what the data plane's floor is.
_FLOOR_BYTES = 256 * _PAGE_BYTES


class Roll(Record):
    """Who belongs to the session at this moment: targets' pids by ID, and the pids around them."""

    targets: Mapping[int, int]
    launcher_pid: int
    program_pid: int


class _Client:
    """A connection, and the requests of the data plane it waits for."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.deadline = time.monotonic() + _IDLE_SECONDS
        self.waits_for: list[int] = []
        self.follows: int | None = None  # the removal of a tier, until `deadline`
        self.targets = 0
        self.ended = 0
        self.moved_pages = 0


class ControlServer:
    """Serves one session's control socket with the loop's selector."""

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        session: NativeSession,
        roll: Callable[[], Roll],
        limits: tuple[int | None, int | None],
    ) -> None:
        self._selector = selector
        self._session = session
        self._roll = roll
        self._memory_bytes, self._resident_bytes = limits
        self._tiers = TierDesk(session)
        self._clients: dict[int, _Client] = {}
        self._abandoned: list[int] = []  # requests whose client has gone
        self._listener = Listener(
            listener,
            selector,
            self._on_connection,
            has_room=lambda: len(self._clients) < _CLIENTS_MAX,
        )

    def empty_tier(self, tier_id: int) -> None:
        """Take note that all has moved that a tier held."""
        self._tiers.empty(tier_id)

    def end_removal(self, tier_id: int, why_kept: str) -> None:
        """Take note that a tier is gone, or why it stays. `tick` tells who waits for it."""
        self._tiers.end(tier_id, why_kept)

    def close(self) -> None:
        """Hang up on everybody."""
        for fd in list(self._clients):
            self._drop(fd)
        self._listener.close()

    # --- The loop's pieces -----------------------------------------------------------------------

    def deadline(self) -> float | None:
        """Return when `tick` has something to do at the latest; None if never."""
        now = time.monotonic()
        deadlines = [client.deadline for client in self._clients.values() if not client.waits_for]
        if (again := self._listener.deadline()) is not None:
            deadlines.append(again)
        if self._abandoned or any(client.waits_for for client in self._clients.values()):
            deadlines.append(now + _PAUSE_SECONDS)  # the news of an end can be lost
        return min(deadlines, default=None)

    def tick(self) -> None:
        """Answer those whose requests have ended, and drop those who say nothing."""
        now = time.monotonic()
        for fd, client in list(self._clients.items()):
            if client.waits_for:
                self._advance(fd, client)
            elif client.follows is not None:
                self._follow(fd, client, now)
            elif client.deadline <= now:
                self._drop(fd)
        self._abandoned = [number for number in self._abandoned if self._goes_on(number)]
        self._listener.tick()

    def _on_connection(self, connection: socket.socket) -> None:
        if not protocol.is_own(connection):
            connection.close()
            return
        fd = connection.fileno()
        self._clients[fd] = _Client(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._on_client(fd))

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._abandoned += client.waits_for  # they are carried out all the same
        self._selector.unregister(client.connection)
        client.connection.close()

    # --- One client ------------------------------------------------------------------------------

    def _on_client(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            data, fds, truncated = protocol.receive_packet(
                client.connection, protocol.MESSAGE_BYTES_MAX, 1
            )
        except BlockingIOError:
            return
        except OSError:
            self._drop(fd)
            return
        protocol.close_all(fds)
        if not data or client.waits_for or client.follows is not None:  # gone, or out of turn
            self._drop(fd)
            return
        try:
            if truncated or fds:
                raise ProtocolError("a control message is too long")
            reply = self._carry_out(client, protocol.decode(data, REQUESTS))
        except ProtocolError as error:
            self._send(fd, Failed(kind="protocol", text=str(error)))
            if fd in self._clients:
                self._drop(fd)
            return
        if reply is not None:
            self._send(fd, reply)

    def _send(self, fd: int, message: protocol.Message) -> None:
        client = self._clients[fd]
        client.deadline = time.monotonic() + _IDLE_SECONDS
        try:
            protocol.send(client.connection, message)
        except OSError:  # gone, or not reading: neither may hold anything up
            self._drop(fd)

    def _carry_out(self, client: _Client, request: protocol.Message) -> protocol.Message | None:
        """Return the reply, or None if it comes later."""
        if isinstance(request, Status):
            return self._state(request.after_id)
        if isinstance(request, SetLimits):
            return self._set(request)
        if isinstance(request, TierList):
            return self._tiers.tiers()
        if isinstance(request, TierAdd):
            return self._tiers.add(request)
        if isinstance(request, TierRemove):
            return self._tiers.remove(request)
        if isinstance(request, TierFollow):
            client.follows = request.id
            client.deadline = time.monotonic() + _FOLLOW_SECONDS
            return None
        try:
            return self._start(client, request)
        except OSError as error:
            if error.errno == errno.EBUSY:
                text = "the session has too much to do already; try again later"
                return Failed(kind="busy", text=text)
            return Failed(kind="target", text="the process has just ended")

    def _state(self, after_id: int) -> State:
        roll = self._roll()
        figures = self._session.targets(min(after_id, 2**32 - 1), _TARGETS_PER_MESSAGE)
        return State(
            agent_pid=os.getpid(),
            launcher_pid=roll.launcher_pid,
            program_pid=roll.program_pid,
            memory_bytes=self._memory_bytes,
            resident_bytes=self._resident_bytes,
            counters=self._session.statistics().as_dict(),
            targets=[one.as_dict() for one in figures],
            more=len(figures) == _TARGETS_PER_MESSAGE,
        )

    def _follow(self, fd: int, client: _Client, now: float) -> None:
        """Answer when a removal has ended, or it is time to say how far it is."""
        assert client.follows is not None
        reply = self._tiers.follow(client.follows)
        if isinstance(reply, Leaving) and now < client.deadline:
            return
        client.follows = None
        self._send(fd, reply)

    # --- Limits ----------------------------------------------------------------------------------

    def _set(self, request: SetLimits) -> protocol.Message:
        memory = request.memory_bytes if request.memory else self._memory_bytes
        resident = request.resident_bytes if request.resident else self._resident_bytes
        counters = self._session.statistics()
        movable_bytes = min(self._tiers.movable_bytes(), counters.ram_stored_bytes)
        stays_bytes = counters.ram_bytes - movable_bytes
        if request.memory and memory is not None and memory < stays_bytes + _FLOOR_BYTES:
            least_mib = -(-(stays_bytes + _FLOOR_BYTES) >> 20)
            text = (
                f"a budget of {format_size(memory)} is too small: {format_size(stays_bytes)} are "
                "kept in RAM for what has left already and for uffdswap itself, and that must "
                "fit; give at least "
                f"{least_mib}M, or first make room on a disk: uffdswap tier add"
            )
            return Failed(kind="usage", text=text)
        self._memory_bytes, self._resident_bytes = memory, resident
        self._session.set_limits(memory_limit_bytes=memory, resident_limit_bytes=resident)
        return Changed(memory_bytes=memory, resident_bytes=resident)

    # --- Reclaim, park, restore ------------------------------------------------------------------

    def _start(self, client: _Client, request: protocol.Message) -> protocol.Message | None:
        assert isinstance(request, Reclaim | Park | Restore)
        roll = self._roll()
        whole = request.pid in (os.getpid(), roll.launcher_pid)
        ids = [number for number, pid in roll.targets.items() if whole or pid == request.pid]
        if not ids:
            return Failed(kind="target", text=f"process {request.pid} is no target here")
        if not whole:
            ids = [max(ids)]  # the image before an exec may still be there
        client.targets, client.ended, client.moved_pages = len(ids), 0, 0
        if isinstance(request, Reclaim):
            pages = -(-request.size_bytes // _PAGE_BYTES)
            client.waits_for = [self._session.reclaim(0 if whole else ids[0], pages)]
            return None
        ask = self._session.park if isinstance(request, Park) else self._session.restore
        for number in ids:
            try:
                client.waits_for.append(ask(number))
            except OSError as error:
                if error.errno != errno.ESRCH or len(ids) == 1:
                    self._abandoned += client.waits_for
                    client.waits_for = []
                    raise
                client.ended += 1
        return None if client.waits_for else Moved(targets=0, moved_bytes=0)

    def _advance(self, fd: int, client: _Client) -> None:
        """Take the results there are, and answer with the last."""
        client.waits_for = [number for number in client.waits_for if self._goes_on(number, client)]
        if client.waits_for:
            return
        if client.ended == client.targets:
            self._send(fd, Failed(kind="target", text="the process ended before it was done"))
            return
        moved_bytes = client.moved_pages * _PAGE_BYTES
        self._send(fd, Moved(targets=client.targets - client.ended, moved_bytes=moved_bytes))

    def _goes_on(self, number: int, client: _Client | None = None) -> bool:
        try:
            pages = self._session.result(number)
        except OSError:
            if client is not None:
                client.ended += 1
            return False
        if pages is None:
            return True
        if client is not None:
            client.moved_pages += pages
        return False
