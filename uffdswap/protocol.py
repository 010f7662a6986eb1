# SPDX-License-Identifier: MIT
"""What the launcher and the agent say to each other on their channel.

The channel is a SOCK_SEQPACKET socket pair: one datagram is one message, a JSON object with the
protocol version, the type and exactly the fields of the class below, and any descriptors that go
with it. Whatever is not that is refused as a whole. The shim's handshake is another protocol, in
native/shim/wire.h.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence

from .errors import ProtocolError
from .record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = (
    "CONTROL_FD",
    "FDS_MAX",
    "MESSAGE_BYTES_MAX",
    "VERSION",
    "Configure",
    "Fatal",
    "Finish",
    "Gone",
    "Killed",
    "Message",
    "Peer",
    "Ready",
    "Refused",
    "Started",
    "Statistics",
    "Target",
    "Warn",
    "close_all",
    "decode",
    "encode",
    "fate_of",
    "is_own",
    "peer_of",
    "receive",
    "receive_packet",
    "send",
)

VERSION = 1
MESSAGE_BYTES_MAX = 65536
FDS_MAX = 64
CONTROL_FD = 3
"""Where the agent finds its end of the channel."""


class Message(Record):
    """Base of all messages. A field's annotation is also its check, see `_CHECKS`."""


# --- Launcher to agent ---------------------------------------------------------------------------


class Configure(Message):
    """Start the session; carries the listening socket. Limits are None for none."""

    memory_bytes: int | None
    resident_bytes: int | None
    stress_pages_per_second: int
    folder: str
    disks: list[dict[str, str | int | None]]  # from the start: `path` and `cap_bytes` of each
    disks_are_required: bool  # without them the session is refused; else it goes without
    disk_is_encrypted: bool
    on_full: str | None


class Started(Message):
    """The program runs; it hands itself in as this process."""

    pid: int


class Finish(Message):
    """The program has ended: send the statistics, and go when no target is left.

    The orphans are its living descendants that came to the launcher; some may not have handed
    themselves in yet.
    """

    orphans: list[int]


# --- Agent to launcher ---------------------------------------------------------------------------


class Ready(Message):
    """Targets are welcome; carries the session's memfds.

    `new_disks` are the places in `Configure.disks` where nothing was, so that a file was made.
    """

    new_disks: list[int]


class Refused(Message):
    """No session (pid 0), or no welcome for a process.

    A process that has given up has said so itself, at its start: it will run without a limit.
    """

    pid: int
    text: str
    has_given_up: bool = False


class Target(Message):
    """A process is managed; carries duplicates of its descriptors, a pidfd among them."""

    id: int
    pid: int


class Gone(Message):
    """A target has ended or has been replaced by its next image."""

    id: int


class Killed(Message):
    """The agent had to kill a target, for the reason in the text.

    A target that is another user's by now may be out of its reach, and goes on. A pid of 0 is that
    of a forked child that has not handed itself in.
    """

    pid: int
    text: str
    goes_on: bool = False


class Fatal(Message):
    """The session is over, and every target has been killed."""

    kind: str
    text: str


class Warn(Message):
    """Something the user should know. Data that was lost is serious."""

    text: str
    serious: bool


class Statistics(Message):
    """Answer to `Finish`: the data plane's counters by name, and what the agent adds to them.

    `remaining` counts the targets that outlive the program; the agent stays for them.
    """

    counters: dict[str, int]
    handshakes_refused: int
    user_seconds: float
    system_seconds: float
    remaining: int


_TYPES: dict[str, type[Message]] = {
    kind.__name__.lower(): kind
    for kind in (
        Configure,
        Started,
        Finish,
        Ready,
        Refused,
        Target,
        Gone,
        Killed,
        Fatal,
        Warn,
        Statistics,
    )
}


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _is_text(value: object) -> bool:
    """Tell whether C takes it: no byte of 0, and surrogates for bytes that are no text alone."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_counters(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _is_cells(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return all(
        one is None or isinstance(one, bool) or _is_text(one) or _is_count(one)
        for one in value.values()
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "int": _is_count,
    "int | None": lambda value: value is None or _is_count(value),
    "str": _is_text,
    "str | None": lambda value: value is None or _is_text(value),
    "bool": lambda value: isinstance(value, bool),
    "float": lambda value: type(value) in (int, float) and value >= 0,
    "dict[str, int]": _is_counters,
    "list[int]": _is_counts,
    "list[dict[str, str | int | None]]": lambda value: (
        isinstance(value, list) and all(map(_is_cells, value))
    ),
    "list[dict[str, int]]": lambda value: isinstance(value, list) and all(map(_is_counters, value)),
}


def encode(message: Message) -> bytes:
    """Return the message as a datagram. Raises `ProtocolError` if it is too long.

    >>> encode(Gone(id=7))
    b'{"v":1,"type":"gone","id":7}'
    """
    body = {"v": VERSION, "type": type(message).__name__.lower(), **message.as_dict()}
    data = json.dumps(body, separators=(",", ":")).encode()
    if len(data) > MESSAGE_BYTES_MAX:
        raise ProtocolError("a control message is too long", cause=f"{len(data)} bytes")
    return data


def decode(data: bytes, kinds: Mapping[str, type[Message]] = _TYPES) -> Message:
    """Return the message that a datagram holds.

    `kinds` are the messages that are expected, by the names of their types. Raises `ProtocolError`
    for anything else, be it bytes, JSON of another shape, another version or a field with a value
    it cannot have.

    >>> decode(b'{"v":1,"type":"gone","id":7}')
    Gone(id=7)
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a control message is not JSON", cause=str(error)) from error
    if not isinstance(body, dict):
        raise ProtocolError("a control message is not an object")
    if body.pop("v", None) != VERSION:
        raise ProtocolError("a control message is of another version")
    name = body.pop("type", None)
    kind: type[Message] | None = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError("a control message is of no known type")
    _check_fields(kind, body)
    return kind(**body)


def _check_fields(kind: type[Message], body: dict[str, Any]) -> None:
    if body.keys() != kind.__annotations__.keys():
        raise ProtocolError(f"a {kind.__name__} message has the wrong fields")
    for name, annotation in kind.__annotations__.items():
        if not _CHECKS[annotation](body[name]):
            raise ProtocolError(f"a {kind.__name__} message has a wrong {name}")


def fate_of(killed: Killed) -> str:
    """Say what has become of a target that had to be killed, for people.

    >>> fate_of(Killed(pid=7, text="its pages are lost"))
    'process 7 was killed: its pages are lost'
    >>> fate_of(Killed(pid=7, text="its pages are lost", goes_on=True))
    'process 7 has to be killed: its pages are lost; as root: kill -KILL 7'
    """
    if not killed.goes_on:
        return f"process {killed.pid} was killed: {killed.text}"
    if not killed.pid:
        return f"a forked child that has not handed itself in has to be killed: {killed.text}"
    remedy = f"as root: kill -KILL {killed.pid}"
    return f"process {killed.pid} has to be killed: {killed.text}; {remedy}"


def send(channel: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send a message and duplicates of some descriptors. Raises what the socket raises."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([encode(message)], ancillary, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """Receive one message and the descriptors with it, or None when the other side is gone.

    The caller owns the descriptors; they close on exec. There are none if this process has no
    room for all of them. Raises `BlockingIOError` if there is
    nothing on a channel that does not block, `ProtocolError` for garbage.
    """
    try:
        data, fds, truncated = receive_packet(channel, MESSAGE_BYTES_MAX, FDS_MAX)
    except ConnectionError:
        return None
    if not data and not fds:
        return None
    try:
        if truncated & socket.MSG_TRUNC:
            raise ProtocolError("a control message is too long")
        message = decode(data)
    except ProtocolError:
        close_all(fds)
        raise
    if truncated:  # this process is out of descriptors: all of them or none
        close_all(fds)
        fds = []
    return message, fds


def receive_packet(
    channel: socket.socket, bytes_max: int, fds_max: int
) -> tuple[bytes, list[int], int]:
    """Receive one datagram of anything; the last value tells how it was cut short, if it was.

    It holds MSG_TRUNC for data and MSG_CTRUNC for descriptors that did not fit, or for which this
    process had no room; the kernel has closed those. The ones returned are the caller's.
    """
    fds = array.array("i")
    space = socket.CMSG_SPACE(fds_max * fds.itemsize)
    data, ancillary, flags, _address = channel.recvmsg(bytes_max, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
    return data, fds.tolist(), flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)


class Peer(Record):
    """Who is at the other end of a socket, by the kernel's word. A pid of 0 is not visible here."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel who is at the other end."""
    size = struct.calcsize("iII")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _gid = struct.unpack("iII", data)
    return Peer(pid=max(pid, 0), uid=uid)


def is_own(connection: socket.socket) -> bool:
    """Tell whether a process of this user is at the other end: nobody else is listened to."""
    return peer_of(connection).uid == os.geteuid()


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that are of no use."""
    for fd in fds:
        os.close(fd)
