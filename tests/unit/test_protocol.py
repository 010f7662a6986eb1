# SPDX-License-Identifier: MIT
# Goal: what is sent arrives as it was; anything else is refused whole, and leaks no descriptor.
# Method: hypothesis makes messages and garbage; real socket pairs carry them.
"""Messages between launcher and agent."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdswap import protocol
from uffdswap.errors import ProtocolError

COUNTS = st.integers(0, 2**64 - 1)
# What C takes: no byte of 0, and no surrogates but those that stand for bytes that are no text.
TEXTS = st.text(
    st.characters(min_codepoint=1, exclude_categories=["Cs"]) | st.just("\udcff"), max_size=50
)
VALUES: dict[str, st.SearchStrategy[object]] = {
    "int": COUNTS,
    "int | None": st.none() | COUNTS,
    "str": TEXTS,
    "str | None": st.none() | TEXTS,
    "bool": st.booleans(),
    "float": st.floats(0, 1e12),
    "list[int]": st.lists(COUNTS, max_size=5),
    "dict[str, int]": st.dictionaries(TEXTS, COUNTS, max_size=5),
    "list[dict[str, str | int | None]]": st.lists(
        st.dictionaries(TEXTS, st.none() | TEXTS | COUNTS | st.booleans(), max_size=5), max_size=3
    ),
}
KINDS = list(protocol._TYPES.values())


@st.composite
def messages(draw: st.DrawFn) -> protocol.Message:
    kind = draw(st.sampled_from(KINDS))
    return kind(**{n: draw(VALUES[annotation]) for n, annotation in kind.__annotations__.items()})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.settimeout(10)
        yield ours, theirs


def open_fds() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@given(messages())
def test_message_comes_back_as_it_was(message: protocol.Message) -> None:
    assert protocol.decode(protocol.encode(message)) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(data)


@given(messages(), st.data())
def test_message_with_one_wrong_field_is_refused(
    message: protocol.Message, data: st.DataObject
) -> None:
    body = json.loads(protocol.encode(message))
    change = data.draw(st.sampled_from(["drop", "add", "replace"]))
    name = data.draw(st.sampled_from(sorted(body)))
    if change == "drop":
        del body[name]
    elif change == "add":
        body["surplus"] = data.draw(JSON_VALUES)
    else:
        body[name] = data.draw(st.sampled_from([[], -1, "\x00", 1.5e400, {"a": None}, 2**64]))
    try:
        again = protocol.decode(json.dumps(body).encode())
    except ProtocolError:
        return
    assert change == "replace"  # with a value that this field may have
    assert protocol.decode(protocol.encode(again)) == again


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '"gone"',
        '{"v":1,"type":"gone"}',
        '{"v":2,"type":"gone","id":7}',
        '{"type":"gone","id":7}',
        '{"v":1,"type":"nothing"}',
        '{"v":1,"type":["gone"],"id":7}',
        '{"v":1,"type":"gone","id":-7}',
        '{"v":1,"type":"gone","id":true}',
        '{"v":1,"type":"gone","id":7.0}',
        '{"v":1,"type":"gone","id":7,"pid":7}',
        '{"v":1,"type":"message"}',
        "[" * 100_000,
    ],
)
def test_almost_a_message_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(text.encode())


def test_too_long_a_message_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="too long"):
        protocol.encode(protocol.Warn(text="x" * protocol.MESSAGE_BYTES_MAX, serious=False))


def test_descriptors_arrive_and_close_on_exec(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with Path(os.devnull).open("rb") as file:
        protocol.send(ours, protocol.Target(id=1, pid=2), [file.fileno(), file.fileno()])
        received = protocol.receive(theirs)
        assert received is not None
        message, fds = received
        assert message == protocol.Target(id=1, pid=2)
        assert len(fds) == 2
        assert all(os.path.sameopenfile(fd, file.fileno()) for fd in fds)
        assert not any(os.get_inheritable(fd) for fd in fds)
    protocol.close_all(fds)


def test_end_of_the_other_side_is_none(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    protocol.send(ours, protocol.Finish(orphans=[]))
    ours.close()
    assert protocol.receive(theirs) == (protocol.Finish(orphans=[]), [])
    assert protocol.receive(theirs) is None
    with pytest.raises(OSError, match="Broken pipe"):
        protocol.send(theirs, protocol.Finish(orphans=[]))


@pytest.mark.parametrize(
    "data",
    [b"garbage", b"{", b"x" * (protocol.MESSAGE_BYTES_MAX + 1)],
    ids=["text", "half", "long"],
)
def test_descriptors_with_garbage_are_closed(
    pair: tuple[socket.socket, socket.socket], data: bytes
) -> None:
    ours, theirs = pair
    before = open_fds()
    socket.send_fds(ours, [data], [0, 1, 2])
    with pytest.raises(ProtocolError):
        protocol.receive(theirs)
    assert open_fds() == before


def test_more_descriptors_than_expected_are_told_and_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    before = open_fds()
    socket.send_fds(ours, [b"hello"], [0] * 9)
    data, fds, truncated = protocol.receive_packet(theirs, 64, 8)
    assert (data, truncated) == (b"hello", socket.MSG_CTRUNC)
    protocol.close_all(fds)
    assert open_fds() == before
