# SPDX-License-Identifier: MIT
# Goal: the control socket answers right, waits for nobody, and forgets no request.
# Method: the real server on a selector of the test's own, with a data plane that does as told.
"""The control socket's messages, server and client."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from uffdswap import control, control_server, listener, protocol
from uffdswap._lib import Statistics, TargetFigures, Tier
from uffdswap.cli import main
from uffdswap.control_server import ControlServer, Roll
from uffdswap.errors import NoSuchSession, ProtocolError, UffdswapError, UsageError
from uffdswap.runtime import listen_for_control, session_folders
from uffdswap.status import session_document, table, tier_table

LAUNCHER = 77


def figures(number: int) -> TargetFigures:
    values = dict.fromkeys(TargetFigures.field_names(), 1)
    return TargetFigures(**{**values, "id": number, "pid": 1000 + number})


def tier(number: int, **changes: Any) -> Tier:
    values = {
        **dict.fromkeys(Tier.field_names(), 0),
        "id": number,
        "name": f"disk{number}",
        "kind": "folder",
        "path": f"/srv/{number}",
        "state": "active",
        "is_encrypted": True,
        "cap_bytes": None,
        "free_bytes": 1 << 30,
        "original_bytes": 4096 * number,
        "stored_bytes": 1000 * number,
    }
    return Tier(**{**values, **changes})


class FakeSession:
    """A data plane whose requests end when the test says so."""

    def __init__(self) -> None:
        self.ram = tier(0, name="ram", kind="ram", path="", cap_bytes=1 << 30)
        self.disks = [tier(1), tier(2)]
        self.target_ids = [1, 2, 3]
        self.asked: list[tuple[Any, ...]] = []
        self.results: dict[int, int | None] = {}
        self.limits: dict[str, int | None] = {}
        self.busy = False
        self.own_bytes = 0

    def _request(self, *what: Any) -> int:
        if self.busy:
            raise OSError(errno.EBUSY, "busy")
        self.asked.append(what)
        self.results[len(self.asked)] = None
        return len(self.asked)

    def targets(self, after_id: int, count_max: int) -> list[TargetFigures]:
        return [figures(one) for one in self.target_ids if one > after_id][:count_max]

    def statistics(self) -> Statistics:
        values = dict.fromkeys(Statistics.field_names(), 7)
        stored_bytes = self.ram.stored_bytes or 1 << 20
        ram_bytes = stored_bytes + self.own_bytes
        return Statistics(
            **{
                **values,
                "ram_stored_bytes": stored_bytes,
                "ram_bytes": ram_bytes,
                "metadata_bytes": 0,
            }
        )

    def reclaim(self, target_id: int, pages: int) -> int:
        return self._request("reclaim", target_id, pages)

    def park(self, target_id: int) -> int:
        return self._request("park", target_id)

    def restore(self, target_id: int) -> int:
        return self._request("restore", target_id)

    def result(self, request: int) -> int | None:
        pages = self.results[request]
        if pages is not None:
            del self.results[request]
        if pages == -1:
            raise OSError(errno.ESRCH, "gone")
        return pages

    def set_limits(self, **limits: int | None) -> None:
        self.limits = limits

    def tiers(self) -> list[Tier]:
        return [self.ram, *self.disks]

    def add_tier(self, path: str, *, name: str | None, cap_bytes: int | None, priority: int) -> int:
        if path == "/bad":
            raise OSError(errno.EACCES, "cannot use /bad")
        added = tier(7, name=name or "disk7", path=path, cap_bytes=cap_bytes, priority=priority)
        self.disks.append(added)
        return 7

    def remove_tier(self, name: str) -> int:
        for i, one in enumerate(self.disks):
            if one.name == name:
                if one.state == "removing":
                    raise OSError(errno.EALREADY, f"{name} is being removed already")
                self.disks[i] = one.replaced(state="removing")
                return one.id
        raise OSError(errno.ENOENT, f"there is no disk tier {name}")


class Rig:
    """A server whose loop the test turns, and clients."""

    def __init__(self, folder: Path) -> None:
        self.session = FakeSession()
        self.selector = selectors.DefaultSelector()
        self.path = str(folder / "ctrl")
        self.clients: list[socket.socket] = []
        self.server = ControlServer(
            listen_for_control(str(folder)),
            self.selector,
            self.session,  # type: ignore[arg-type] # the fake data plane
            self._roll,
            (1 << 30, None),
        )

    def _roll(self) -> Roll:
        targets = {one: 1000 + one for one in self.session.target_ids}
        return Roll(targets=targets, launcher_pid=LAUNCHER, program_pid=1001)

    def turn(self) -> None:
        while ready := self.selector.select(0):
            for key, _events in ready:
                key.data()
        self.server.tick()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(self.path)
        client.settimeout(5)
        self.clients.append(client)
        return client

    def answer(self, client: socket.socket) -> protocol.Message:
        return protocol.decode(client.recv(protocol.MESSAGE_BYTES_MAX), control.REPLIES)

    def ask(self, request: protocol.Message) -> protocol.Message:
        client = self.connect()
        client.send(protocol.encode(request))
        self.turn()
        return self.answer(client)

    def close(self) -> None:
        self.server.close()
        self.selector.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


REQUESTS: list[protocol.Message] = [
    control.Status(after_id=0),
    control.SetLimits(memory=True, memory_bytes=None, resident=False, resident_bytes=None),
    control.Reclaim(pid=1, size_bytes=2),
    control.Park(pid=1),
    control.Restore(pid=1),
    control.TierList(),
    control.TierAdd(path="/srv", cap_bytes=None, name=None, priority=0),
    control.TierAdd(path="/srv", cap_bytes=1, name="fast", priority=5),
    control.TierRemove(name="fast"),
    control.TierFollow(id=3),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: type(one).__name__)
def test_request_survives_the_way(request_: protocol.Message) -> None:
    assert protocol.decode(protocol.encode(request_), control.REQUESTS) == request_


def test_request_is_no_message_of_the_launcher_and_no_reply() -> None:
    data = protocol.encode(control.Park(pid=1))
    with pytest.raises(ProtocolError, match="no known type"):
        protocol.decode(data)
    with pytest.raises(ProtocolError, match="no known type"):
        protocol.decode(data, control.REPLIES)


# --- Server --------------------------------------------------------------------------------------


def test_status_comes_in_parts_that_fit_a_message(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "_TARGETS_PER_MESSAGE", 2)
    first = rig.ask(control.Status(after_id=0))
    assert isinstance(first, control.State)
    assert [one["id"] for one in first.targets] == [1, 2]
    assert first.more
    rest = rig.ask(control.Status(after_id=2))
    assert isinstance(rest, control.State)
    assert [one["id"] for one in rest.targets] == [3]
    assert not rest.more


def test_full_status_message_is_not_too_long(rig: Rig) -> None:
    most = 2**64 - 1
    count = control_server._TARGETS_PER_MESSAGE
    target = dict.fromkeys(TargetFigures.field_names(), most)
    state = rig.ask(control.Status(after_id=0))
    assert isinstance(state, control.State)
    counters = dict.fromkeys(state.counters, most)
    protocol.encode(state.replaced(targets=[target] * count, counters=counters))


def test_launcher_means_all_and_a_target_itself(rig: Rig) -> None:
    for pid in (LAUNCHER, os.getpid(), 1002):
        rig.connect().send(protocol.encode(control.Park(pid=pid)))
    rig.connect().send(protocol.encode(control.Reclaim(pid=LAUNCHER, size_bytes=4097)))
    rig.connect().send(protocol.encode(control.Restore(pid=1003)))
    rig.turn()
    every = [("park", 1), ("park", 2), ("park", 3)]
    assert rig.session.asked == [
        *every,
        *every,
        ("park", 2),
        ("reclaim", 0, 2),
        ("restore", 3),
    ]


def test_reply_comes_when_the_last_request_has_ended(rig: Rig) -> None:
    client = rig.connect()
    client.send(protocol.encode(control.Park(pid=LAUNCHER)))
    rig.turn()
    rig.session.results |= {1: 10, 3: 30}
    rig.turn()
    assert rig.server.deadline() is not None  # the announcement of an end can be lost
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    rig.session.results[2] = -1  # this one has ended
    rig.turn()
    client.settimeout(5)
    assert rig.answer(client) == control.Moved(targets=2, moved_bytes=40 * 4096)


def test_target_that_ends_is_told(rig: Rig) -> None:
    client = rig.connect()
    client.send(protocol.encode(control.Restore(pid=1001)))
    rig.turn()
    rig.session.results[1] = -1
    rig.turn()
    reply = rig.answer(client)
    assert isinstance(reply, control.Failed)
    assert reply.kind == "target"


def test_request_of_a_client_that_left_is_not_leaked(rig: Rig) -> None:
    client = rig.connect()
    client.send(protocol.encode(control.Park(pid=1001)))
    rig.turn()
    client.close()
    rig.turn()
    assert rig.session.results == {1: None}
    rig.session.results[1] = 5
    rig.turn()
    assert rig.session.results == {}  # taken, so that its place is free again


def test_second_request_before_the_reply_is_out_of_turn(rig: Rig) -> None:
    client = rig.connect()
    client.send(protocol.encode(control.Park(pid=1001)))
    client.send(protocol.encode(control.Restore(pid=1001)))
    rig.turn()
    assert client.recv(1) == b""
    assert rig.session.asked == [("park", 1)]


def test_process_that_is_no_target_is_refused(rig: Rig) -> None:
    reply = rig.ask(control.Park(pid=5))
    assert isinstance(reply, control.Failed)
    assert "process 5 is no target" in reply.text


def test_too_much_at_once_is_told(rig: Rig) -> None:
    rig.session.busy = True
    reply = rig.ask(control.Park(pid=LAUNCHER))
    assert isinstance(reply, control.Failed)
    assert reply.kind == "busy"


def test_one_limit_is_changed_and_the_other_kept(rig: Rig) -> None:
    change = control.SetLimits(
        memory=False, memory_bytes=None, resident=True, resident_bytes=1 << 29
    )
    assert rig.ask(change) == control.Changed(memory_bytes=1 << 30, resident_bytes=1 << 29)
    assert rig.session.limits == {
        "memory_limit_bytes": 1 << 30,
        "resident_limit_bytes": 1 << 29,
    }
    none = change.replaced(memory=True, resident=False)
    assert rig.ask(none) == control.Changed(memory_bytes=None, resident_bytes=1 << 29)
    assert rig.session.limits["memory_limit_bytes"] is None


def test_budget_below_what_is_stored_is_refused(rig: Rig) -> None:
    small = control.SetLimits(
        memory=True, memory_bytes=1 << 20, resident=False, resident_bytes=None
    )
    reply = rig.ask(small)
    assert isinstance(reply, control.Failed)
    assert reply.kind == "usage"
    assert reply.text == (
        "a budget of 1.00 MiB is too small: 1.00 MiB are kept in RAM for what has left already "
        "and for uffdswap itself, and that must fit; give at least 2M, or first make room on a "
        "disk: uffdswap tier add"
    )
    assert rig.session.limits == {}


def test_budget_that_is_told_is_one_that_is_taken(rig: Rig) -> None:
    mib = 1 << 20
    rig.session.ram = rig.session.ram.replaced(segments=50, stored_bytes=50 * mib)
    rig.session.own_bytes = 11 * mib
    rig.session.disks = []
    change = control.SetLimits(
        memory=True, memory_bytes=61 * mib, resident=False, resident_bytes=None
    )
    reply = rig.ask(change)
    assert isinstance(reply, control.Failed)
    assert "61.0 MiB are kept" in reply.text
    assert "give at least 62M" in reply.text
    assert isinstance(rig.ask(change.replaced(memory_bytes=62 * mib)), control.Changed)


def test_budget_counts_on_what_disks_can_take(rig: Rig) -> None:
    mib = 1 << 20
    change = control.SetLimits(
        memory=True, memory_bytes=5 * mib, resident=False, resident_bytes=None
    )
    rig.session.ram = rig.session.ram.replaced(segments=10, stored_bytes=10 * mib)
    slot_bytes = mib + (32 << 10)
    for disks in (
        [tier(1, free_bytes=6 * slot_bytes)],
        [tier(1, free_bytes=3 * slot_bytes), tier(2, free_bytes=4 * slot_bytes - 1)],
        [tier(1), tier(2, state="failing")],
    ):
        rig.session.disks = disks
        assert isinstance(rig.ask(change), control.Changed)
    for disks in (
        [],
        [tier(1, free_bytes=5 * slot_bytes)],
        [tier(1, free_bytes=4 * slot_bytes), tier(2, free_bytes=2 * slot_bytes - 1)],
        [tier(1, state="failing"), tier(2, state="removing"), tier(3, state="full")],
    ):
        rig.session.disks = disks
        reply = rig.ask(change)
        assert isinstance(reply, control.Failed)
        assert "a budget of 5.00 MiB is too small" in reply.text
    rig.session.disks = [tier(1)]  # the segment that is being filled stays
    assert isinstance(rig.ask(change.replaced(memory_bytes=mib)), control.Failed)


def test_silent_client_is_hung_up_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "_IDLE_SECONDS", 0.0)
    client = rig.connect()
    rig.turn()
    assert client.recv(1) == b""
    assert rig.server.deadline() is None


def test_crowd_waits_for_its_turn(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "_CLIENTS_MAX", 2)
    monkeypatch.setattr(listener, "_PAUSE_SECONDS", 0.0)
    clients = [rig.connect() for _ in range(3)]
    for client in clients:
        client.send(protocol.encode(control.Status(after_id=0)))
    rig.turn()
    assert isinstance(rig.answer(clients[0]), control.State)
    clients[0].close()
    rig.turn()
    rig.turn()
    assert isinstance(rig.answer(clients[2]), control.State)


# --- Tiers ---------------------------------------------------------------------------------------


def test_tiers_are_listed_ram_first(rig: Rig) -> None:
    reply = rig.ask(control.TierList())
    assert isinstance(reply, control.Tiers)
    ram, first, second = reply.tiers
    assert (ram["name"], ram["path"], ram["priority"]) == ("ram", None, None)
    assert (ram["cap_bytes"], first["cap_bytes"]) == (1 << 30, None)
    assert (second["name"], second["stored_bytes"]) == ("disk2", 2000)


def test_tier_is_added_and_shown_alone(rig: Rig) -> None:
    reply = rig.ask(control.TierAdd(path="/x", cap_bytes=5 << 20, name="fast", priority=3))
    assert isinstance(reply, control.Tiers)
    (row,) = reply.tiers
    assert (row["name"], row["path"], row["cap_bytes"], row["priority"]) == (
        *("fast", "/x"),
        *(5 << 20, 3),
    )
    assert row["is_new"]
    refused = rig.ask(control.TierAdd(path="/bad", cap_bytes=None, name=None, priority=0))
    assert refused == control.Failed(kind="tier", text="cannot use /bad")


def test_removal_is_followed_to_its_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    client = rig.connect()
    client.send(protocol.encode(control.TierRemove(name="disk2")))
    rig.turn()
    going = control.Leaving(id=2, name="disk2", stored_bytes=2000, left_bytes=2000)
    assert rig.answer(client) == going
    again = rig.ask(control.TierRemove(name="disk2"))
    assert again == control.Failed(kind="tier", text="disk2 is being removed already")

    client.send(protocol.encode(control.TierFollow(id=2)))
    rig.turn()
    client.setblocking(False)
    with pytest.raises(BlockingIOError):  # nothing has happened, and half a second is not over
        client.recv(1)
    assert rig.server.deadline() is not None
    client.settimeout(5)
    rig.session.disks[1] = rig.session.disks[1].replaced(stored_bytes=500)
    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", lambda: 1e12)
        rig.turn()
    assert rig.answer(client) == going.replaced(left_bytes=500)

    client.send(protocol.encode(control.TierFollow(id=2)))
    rig.turn()
    rig.server.empty_tier(2)
    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", lambda: 1e12)
        del rig.session.disks[1]
        rig.server.end_removal(2, "")
        rig.turn()
    reply = rig.answer(client)
    assert isinstance(reply, control.Removed)
    assert reply.moved_seconds < 1e9 < reply.seconds
    assert (reply.name, reply.original_bytes, reply.stored_bytes) == ("disk2", 8192, 2000)
    gone = rig.ask(control.TierRemove(name="disk2"))
    assert gone == control.Failed(kind="tier", text="there is no disk tier disk2")


@pytest.mark.parametrize("is_lost", [False, True], ids=["told", "lost"])
def test_removal_that_is_given_up_says_why(rig: Rig, is_lost: bool) -> None:
    rig.ask(control.TierRemove(name="disk1"))
    rig.session.disks[0] = tier(1)
    if not is_lost:
        rig.server.end_removal(1, "it stays, for this reason")
    reply = rig.ask(control.TierFollow(id=1))
    assert isinstance(reply, control.Failed)
    assert reply.text == ("the disk tier stays" if is_lost else "it stays, for this reason")


def test_removal_nobody_asked_for_is_not_waited_for(rig: Rig) -> None:
    reply = rig.ask(control.TierFollow(id=99))
    assert isinstance(reply, control.Failed)


def test_client_that_follows_and_talks_is_out_of_turn(rig: Rig) -> None:
    client = rig.connect()
    client.send(protocol.encode(control.TierRemove(name="disk1")))
    rig.turn()
    rig.answer(client)
    client.send(protocol.encode(control.TierFollow(id=1)))
    client.send(protocol.encode(control.TierList()))
    rig.turn()
    assert client.recv(1) == b""
    assert rig.session.disks[0].state == "removing"  # it goes on all the same


def test_many_removals_do_not_pile_up(rig: Rig) -> None:
    client = rig.connect()
    for number in range(1, 100):
        rig.session.disks = [tier(number, name="one")]
        client.send(protocol.encode(control.TierRemove(name="one")))
        rig.turn()
        assert isinstance(rig.answer(client), control.Leaving)
        rig.server.end_removal(number, "")
    assert len(rig.server._tiers._removals) <= 32
    assert isinstance(rig.ask(control.TierFollow(id=99)), control.Removed)


# --- Client --------------------------------------------------------------------------------------


def test_no_session_is_said_with_the_reason(tmp_path: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with pytest.raises(NoSuchSession, match="it runs, but not under uffdswap") as caught:
        control.connect(1, environment)
    assert caught.value.exit_status == 3
    with pytest.raises(NoSuchSession, match="there is no such process"):
        control.connect(2**22 + 1, environment)


def test_folder_that_others_may_enter_is_not_looked_into(tmp_path: Path) -> None:
    base = tmp_path / "uffdswap"
    (base / f"{os.getpid()}-0").mkdir(parents=True)
    base.chmod(0o755)
    found = [path for _pid, path in session_folders({"XDG_RUNTIME_DIR": str(tmp_path)})]
    assert not [path for path in found if path.startswith(str(tmp_path))]
    assert (base / f"{os.getpid()}-0").exists()


def test_table_and_document_are_of_the_same_session(rig: Rig) -> None:
    state = rig.ask(control.Status(after_id=0))
    assert isinstance(state, control.State)
    targets = [control.Target(**one) for one in state.targets]
    tiers = rig.ask(control.TierList())
    assert isinstance(tiers, control.Tiers)
    report = session_document(state, targets, tiers.tiers)
    assert report["evicted_bytes"] == 3 * 4096
    assert report["used_share"] == 0.001  # a MiB of a GiB
    lines = table([report], exact=True).splitlines()
    assert len(lines) == 5
    assert lines[1].split()[:3] == [str(LAUNCHER), "session", str(1 << 30)]
    figures = ["1001", "?", "1", "4096", "4098", "1.0x", "1", "-", "1", "1"]
    assert lines[2].split() == figures
    assert report["targets"][0]["original_bytes"] == dict.fromkeys(("standby", "ram", "disk"), 4096)
    assert report["swap_share"] == round(((1 << 20) + 3000) / (3 * 2**30 + 3000), 4)
    assert report["waits_for_room"] is True
    assert report["tiers"] == tiers.tiers


def test_narrow_table_has_less_to_say(rig: Rig) -> None:
    state = rig.ask(control.Status(after_id=0))
    assert isinstance(state, control.State)
    report = session_document(state, [control.Target(**one) for one in state.targets], [])
    whole = table([report])
    width = max(map(len, whole.splitlines()))
    assert table([report], width=width) == whole
    header, *_rows = less = table([report], width=width - 1).splitlines()
    assert max(map(len, less)) < width
    assert set(whole.split()) - set(header.split()) >= {"REFAULTS"}
    least = table([report], width=1).splitlines()[0].split()
    assert least == ["PID", "COMMAND", "LIMIT", "RESIDENT", "COLD", "STORED", "SWAP"]


def test_tier_table_has_a_row_a_tier(rig: Rig) -> None:
    rig.session.disks[0] = tier(1, path="/s\udcff", state="full", cap_bytes=5000)
    reply = rig.ask(control.TierList())
    assert isinstance(reply, control.Tiers)
    _header, ram, first, second = tier_table(reply.tiers, exact=True).splitlines()
    assert ram.split()[:5] == ["ram", "ram", "-", "-", "active"]
    assert first.split() == [
        *("disk1", "folder", "/s\\xff", "0", "full"),
        *("4096", "1000", "5000", str(1 << 30)),
    ]
    assert second.split()[-2] == "none"


def test_without_a_pid_the_only_session_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class One:
        def __init__(self, pid: int, launcher_pid: int) -> None:
            self.pid = pid
            self._launcher_pid = launcher_pid

        def state(self) -> tuple[SimpleNamespace, list[control.Target]]:
            if not self._launcher_pid:
                raise UffdswapError("it does not answer")
            return SimpleNamespace(launcher_pid=self._launcher_pid), []

        def close(self) -> None:
            """Hang up."""

    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    found: list[Any] = []
    monkeypatch.setattr(control, "sessions", lambda _environment: list(found))
    with pytest.raises(NoSuchSession, match="no session is running") as none:
        control.choose(None, environment)
    assert none.value.exit_status == 3
    found.append(One(5, 4))
    assert control.choose(None, environment) is found[0]
    found += [One(7, 7), One(9, 0)]
    with pytest.raises(UsageError, match="3 sessions are running: their PIDs are 4, 7, 9; give"):
        control.choose(None, environment)


def test_a_session_that_cannot_be_asked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        pid = 7
        folder = "7-1"

        def state(self) -> None:
            raise UffdswapError("the session of process 7 does not answer", remedy="is it stopped?")

        def close(self) -> None:
            pass

    monkeypatch.setattr(control, "sessions", lambda _environment: [Stopped()])
    with pytest.raises(NoSuchSession, match="but the session of process 7 does not answer"):
        control.connect(os.getpid(), {})


def test_session_that_does_not_answer_is_told_and_is_not_no_session(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(_client: control.Client) -> None:
        raise UffdswapError("the session of process 7 does not answer", remedy="is it stopped?")

    def ended(_client: control.Client) -> None:
        raise NoSuchSession("the session of process 8 has ended")

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(b"\0test_session_that_does_not_answer")
    listener.listen()
    name = "\0test_session_that_does_not_answer"
    monkeypatch.setattr(control, "sessions", lambda _variables: [control.Client(name, 7)])
    monkeypatch.setattr(control.Client, "state", stopped)
    assert main(["status"]) == 1
    told = "uffdswap: the session of process 7 does not answer; is it stopped?\n"
    assert capfd.readouterr() == ("", told)
    monkeypatch.setattr(control.Client, "state", ended)
    assert main(["status"]) == 0
    assert capfd.readouterr() == ("no session is running\n", "")
    listener.close()


@pytest.fixture
def full_queue(tmp_path: Path) -> Iterator[socket.socket]:
    """Return a listening socket at tmp_path/ctrl that has as many connections as may wait."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listening.bind(str(tmp_path / "ctrl"))
        listening.listen(1)
        for _place in range(2):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            waiting.connect(str(tmp_path / "ctrl"))
        yield listening


@pytest.mark.usefixtures("full_queue")
def test_session_with_a_full_queue_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_ANSWER_SECONDS", 1.0)
    with (
        control.Client(str(tmp_path / "ctrl"), 7) as client,
        pytest.raises(UffdswapError, match="session of process 7 does not answer"),
    ):
        client.state()


def test_client_waits_for_its_place_in_the_queue(full_queue: socket.socket, tmp_path: Path) -> None:
    found: list[control.Client] = []
    asking = threading.Thread(
        target=lambda: found.append(control.Client(str(tmp_path / "ctrl"), 7))
    )
    asking.start()
    for _place in range(2):
        full_queue.accept()[0].close()
    asking.join(20)
    with found[0] as client, full_queue.accept()[0] as server:
        server.send(protocol.encode(control.Changed(memory_bytes=None, resident_bytes=None)))
        assert isinstance(client.ask(control.TierList()), control.Changed)
