# SPDX-License-Identifier: MIT
"""Talking to a running session: the messages of its control socket, and the client's side.

The control socket is beside the one that programs hand themselves in at. One datagram is one
request or one reply, in the form of `uffdswap.protocol`; a reply ends its request, and a client may
then ask again. A session is named by any process of it: its launcher or its agent, which mean all
of it, or one of its targets, which means that process alone where an action has one.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from .errors import NoSuchSession, ProtocolError, UffdswapError, UsageError
from .procfs import children_of, stat_of
from .protocol import MESSAGE_BYTES_MAX, Message, decode, encode, receive_packet
from .record import Record
from .runtime import session_folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Any, Self, TypeVar

    Reply = TypeVar("Reply", bound=Message)

__all__ = (
    "REPLIES",
    "REQUESTS",
    "Changed",
    "Client",
    "Failed",
    "Leaving",
    "Moved",
    "Park",
    "Reclaim",
    "Removed",
    "Rest",
    "Restore",
    "SetLimits",
    "State",
    "Status",
    "Target",
    "TierAdd",
    "TierFollow",
    "TierList",
    "TierRemove",
    "Tiers",
    "choose",
    "connect",
    "connect_all",
    "expect",
    "sessions",
)

_ANSWER_SECONDS = 10.0
_PAGE_BYTES = 4096


# --- Requests ------------------------------------------------------------------------------------


class Status(Message):
    """Tell how the session is, and its targets with IDs above `after_id`."""

    after_id: int


class SetLimits(Message):
    """Change one limit or both; None is no limit."""

    memory: bool
    memory_bytes: int | None
    resident: bool
    resident_bytes: int | None


class Reclaim(Message):
    """Evict about so many bytes, the coldest first."""

    pid: int
    size_bytes: int


class Park(Message):
    """Evict everything, and make it as small as it can be."""

    pid: int


class Restore(Message):
    """Bring everything back, as far as the limits allow."""

    pid: int


class TierList(Message):
    """Tell which tiers there are."""


class TierAdd(Message):
    """Add a disk tier; without a name, it gets the next one."""

    path: str
    cap_bytes: int | None
    name: str | None
    priority: int


class TierRemove(Message):
    """Begin to remove a disk tier."""

    name: str


class TierFollow(Message):
    """Wait for the end of a removal, for half a second at most."""

    id: int


# --- Replies -------------------------------------------------------------------------------------


class State(Message):
    """How a session is; `more` if further targets are to be asked for."""

    agent_pid: int
    launcher_pid: int
    program_pid: int
    memory_bytes: int | None
    resident_bytes: int | None
    counters: dict[str, int]
    targets: list[dict[str, int]]
    more: bool


class Changed(Message):
    """The limits that are in force from now on."""

    memory_bytes: int | None
    resident_bytes: int | None


class Moved(Message):
    """A reclaim, park or restore has come to its end: so much went out or came in."""

    targets: int
    moved_bytes: int


class Tiers(Message):
    """Tiers, RAM first; or the one that was added."""

    tiers: list[dict[str, str | int | None]]


class Leaving(Message):
    """A removal goes on: what the tier held at its beginning, and what is left."""

    id: int
    name: str
    stored_bytes: int
    left_bytes: int


class Removed(Message):
    """A tier is gone, and with it what it held when its removal began.

    What it held has moved after `moved_seconds`, the file system has all of its space back after
    `seconds`.
    """

    name: str
    original_bytes: int
    stored_bytes: int
    moved_seconds: float
    seconds: float


class Failed(Message):
    """It cannot be done, and why. The kind is `usage`, `target`, `tier`, `busy` or `protocol`."""

    kind: str
    text: str


def _by_name(*kinds: type[Message]) -> dict[str, type[Message]]:
    return {kind.__name__.lower(): kind for kind in kinds}


REQUESTS = _by_name(
    *(Status, SetLimits, Reclaim, Park, Restore, TierList, TierAdd, TierRemove, TierFollow)
)
REPLIES = _by_name(State, Changed, Moved, Tiers, Leaving, Removed, Failed)


# --- The client ----------------------------------------------------------------------------------


class Target(Record):
    """One target of a session, as the data plane counts it; a pid of 0 is not known yet."""

    id: int
    pid: int
    resident_bytes: int
    evicted_pages: int
    zero_pages: int
    same_pages: int
    standby_pages: int
    object_pages: int
    ram_pages: int
    disk_pages: int
    ram_stored_bytes: int
    disk_stored_bytes: int
    faults: int
    refaults: int


class Rest(Record):
    """What is still out of a process or session, and the limits it is under."""

    evicted_bytes: int
    memory_bytes: int | None
    resident_bytes: int | None


class Client:
    """A connection to one session. Use as a context manager."""

    def __init__(self, path: str, pid: int) -> None:
        self.pid = pid
        self.folder = Path(path).parent.name
        self._agent_pid = pid
        self._is_connected = True
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Not by settimeout(), with which a full queue is an error at once.
            timeout = struct.pack("ll", int(_ANSWER_SECONDS), 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
            self._socket.connect(path)
        except BlockingIOError:  # so many wait already that there is no place for one more
            self._is_connected = False
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. What was asked for is done all the same."""
        self._socket.close()

    def ask(self, request: Message, seconds: float | None = _ANSWER_SECONDS) -> Message:
        """Send a request and return its reply; None is as long as it takes.

        Raises `UffdswapError` with what the session answers if it cannot be done, and if the
        session ends meanwhile.
        """
        what = f"the session of process {self.pid}"
        stopped = f"is it stopped? try: kill -CONT {self._agent_pid}"
        if not self._is_connected:
            raise UffdswapError(f"{what} does not answer", remedy=stopped)
        try:
            self._socket.settimeout(seconds)
            self._socket.send(encode(request))
            data, _fds, truncated = receive_packet(self._socket, MESSAGE_BYTES_MAX, 0)
        except TimeoutError as error:
            raise UffdswapError(f"{what} does not answer", remedy=stopped) from error
        except OSError as error:
            raise NoSuchSession(f"{what} has ended", cause=str(error.strerror)) from error
        if not data:
            raise NoSuchSession(f"{what} has ended")
        if truncated:
            raise ProtocolError(f"{what} sends more than this version understands")
        reply = decode(data, REPLIES)
        if isinstance(reply, Failed):
            raise UffdswapError(reply.text)
        return reply

    def state(self) -> tuple[State, list[Target]]:
        """Return how the session is, and all its targets."""
        targets: list[Target] = []
        while True:
            reply = expect(self.ask(Status(after_id=targets[-1].id if targets else 0)), State)
            if not all(map(_is_target, reply.targets)):
                raise ProtocolError("the session tells of its targets as another version does")
            targets += [Target(**figures) for figures in reply.targets]
            if not reply.more or not reply.targets:
                return reply, targets

    def still_out(self, pid: int) -> Rest:
        """Return what has left of the targets that a pid means, and not come back."""
        state, targets = self.state()
        if pid not in (state.agent_pid, state.launcher_pid):
            targets = [target for target in targets if target.pid == pid][-1:]
        return Rest(
            evicted_bytes=sum(target.evicted_pages for target in targets) * _PAGE_BYTES,
            memory_bytes=state.memory_bytes,
            resident_bytes=state.resident_bytes,
        )

    def tiers(self, request: TierList | TierAdd | None = None) -> list[dict[str, Any]]:
        """Return the session's tiers, RAM first, or the one that is added."""
        return expect(self.ask(request or TierList()), Tiers).tiers

    def remove_tier(self, name: str, on_progress: Callable[[Leaving], None]) -> Removed:
        """Remove a disk tier and wait until it is gone; it goes on if nobody waits."""
        reply = self.ask(TierRemove(name=name))
        while isinstance(reply, Leaving):
            on_progress(reply)
            reply = self.ask(TierFollow(id=reply.id))
        return expect(reply, Removed)


def expect(reply: Message, kind: type[Reply]) -> Reply:
    """Return a reply that is what was asked for. Raises `ProtocolError` if it is another."""
    if not isinstance(reply, kind):
        raise ProtocolError("the session answers a question that was not asked")
    return reply


def _is_target(figures: Mapping[str, int]) -> bool:
    return set(figures) == set(Target.field_names())


def sessions(environment: Mapping[str, str]) -> list[Client]:
    """Return connections to all living sessions of this user, for the caller to close."""
    found = []
    for pid, path in session_folders(environment):
        try:
            found.append(Client(path, pid))
        except OSError:
            continue  # it is beginning or ending
    return found


def connect(pid: int, environment: Mapping[str, str]) -> Client:
    """Return a connection to the session that a process belongs to; its `pid` is the target's.

    The helper task of a program means that. Raises `NoSuchSession` if it belongs to none, or to
    one of another user.
    """
    pid = _program_of(pid)
    chosen: Client | None = None
    silent: list[UffdswapError] = []
    certain: UffdswapError | None = None
    for client in sessions(environment):
        if chosen is None and certain is None and _has(client, pid, silent):
            chosen = client
            chosen.pid = pid
            continue
        if silent and certain is None and _began_with(client.folder, client.pid, pid):
            certain = silent[-1]
        client.close()
    if chosen is not None:
        return chosen
    if certain is not None:
        raise certain
    if Path(f"/proc/{pid}").exists():
        cause = "it runs, but not under uffdswap, or under that of another user"
        cause += f"; but {silent[0]}" if silent else ""
    else:
        cause = "there is no such process"
    raise NoSuchSession(
        f"no session has the process {pid}", cause=cause, remedy="see: uffdswap status"
    )


def connect_all(pids: Iterable[int], environment: Mapping[str, str]) -> list[Client]:
    """Return connections to the sessions that processes belong to, each once.

    Raises `NoSuchSession` if one of them belongs to none.
    """
    found: dict[str, Client] = {}
    for pid in pids:
        client = connect(pid, environment)
        if found.setdefault(client.folder, client) is not client:
            client.close()
    return list(found.values())


def _program_of(pid: int) -> int:
    """Return the program of a helper task, which tools list as another process of its name.

    They share the memory, and with it one mapping that no other process has there.
    """
    stat = stat_of(pid)
    if stat is None or not stat.is_hands:
        return pid
    own = _areas(pid)
    if not own:
        return pid
    siblings = sorted(children_of(stat.parent))
    others = (int(one.name) for one in Path("/proc").iterdir() if one.name.isdecimal())
    for other in (*siblings, *others):
        known = stat_of(other)
        if known is not None and not known.is_hands and _areas(other) == own:
            return other
    return pid


def _areas(pid: int) -> list[str]:
    """Return where a process has what it shares with its agent."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if "/memfd:uffdswap-area" in line]


def _began_with(folder: str, agent_pid: int, pid: int) -> bool:
    """Tell whether a process is surely of a session that cannot be asked.

    It is its agent, the launcher of that, or a program that was started with the session's socket.
    """
    stat = stat_of(agent_pid)
    if pid == agent_pid or (stat is not None and stat.parent == pid):
        return True
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return os.fsencode(f"/{folder}/") in variables


def choose(pid: int | None, environment: Mapping[str, str]) -> Client:
    """Return a connection to the session of a process; without one, to the only session there is.

    Raises `NoSuchSession` as `connect` does, and `UsageError` if several could be meant.
    """
    if pid is not None:
        return connect(pid, environment)
    found = sessions(environment)
    if len(found) == 1:
        return found[0]
    pids = [_shown_pid(client) for client in found]
    for client in found:
        client.close()
    if not found:
        raise NoSuchSession("no session is running", remedy="see: uffdswap status")
    raise UsageError(
        f"{len(found)} sessions are running",
        cause=f"their PIDs are {', '.join(map(str, pids))}",
        remedy="give --pid",
    )


def _shown_pid(client: Client) -> int:
    """Return the PID that `status` shows for a session; its agent's if that says nothing."""
    try:
        return client.state()[0].launcher_pid
    except UffdswapError:
        return client.pid


def _has(client: Client, pid: int, silent: list[UffdswapError]) -> bool:
    """Return whether a session has a process; one that cannot be asked is noted in `silent`."""
    try:
        state, targets = client.state()
    except NoSuchSession:  # it is ending
        return False
    except UffdswapError as error:  # it is stopped; another one may be meant
        silent.append(error)
        return False
    return pid in (state.agent_pid, state.launcher_pid) or pid in [t.pid for t in targets]
