# SPDX-License-Identifier: MIT
"""The agent: accepts targets, and stands between the data plane and the launcher.

Runs as `python -m uffdswap.agent`, started by the launcher with one end of the control channel. One
thread, one loop over descriptors; faults are served by the data plane's own threads, which never
wait for this one. It imports little, because every start of a program waits for it and because its
memory is part of the budget.

Life: configured by the launcher, it serves until the launcher says that the program has ended
(`Finish`), and from then on until the last target is gone. If the launcher vanishes without having
said so, every target is killed: nobody would be left to tell what happened to them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import signal
import socket
import sys
import time

from . import limits, procfs, protocol
from .errors import ProtocolError
from .listener import Listener
from .runtime import listen_for_control, remove_session
from .wire import HELLO, HELLO_GIVE_UP, MAGIC, WIRE_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._lib import Event, NativeSession, Probe
    from .control_server import ControlServer
    from .unmanaged import Watch

__all__ = ("Agent", "main", "open_session")

_HANDSHAKE_SECONDS = 5.0
_PENDING_MAX = 128
_HELLO_BYTES_MAX = 256  # the data plane checks the exact length
_HELLO_FDS_MAX = 8
_PAUSE_SECONDS = 0.1
_KILL_WAIT_SECONDS = 5.0
# How long the last statistics wait for what is being given back; a target takes milliseconds.
_SETTLE_SECONDS = 0.5
_MOVES_SECONDS = 0.005
_LOOK_SECONDS = 3.0  # from the first target on; see unmanaged.py
_KNOWN_MAX = 4096
_SO_PEERPIDFD = 77  # since Linux 6.5
_IGNORED = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "PIPE", "TSTP", "TTIN", "TTOU")

_WHY_KILLED = "its {who} is gone, and nobody could tell what happens to it"


class _Pending:
    """A connection that has yet to say hello."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.deadline = time.monotonic() + _HANDSHAKE_SECONDS


class Agent:
    """One session's control loop. `serve()` returns when the session is over."""

    def __init__(self, control: socket.socket, open_session: Callable[..., NativeSession]) -> None:
        self._control = control
        self._open_session = open_session
        self._selector = selectors.DefaultSelector()
        self._outgoing: list[tuple[protocol.Message, list[int]]] = []
        self._pending: dict[int, _Pending] = {}
        self._held: list[socket.socket] = []  # of the program, which must not start: see _let_go
        self._targets: dict[int, int] = {}  # pid by target id
        self._refused = 0
        self._program_pid = 0
        self._expected: set[int] = set()  # orphans of the program that may yet hand themselves in
        self._expected_until = 0.0
        self._finished = False  # the program has ended; the rest is ours alone
        self._over = False
        self._folder = ""
        self._session: NativeSession | None = None
        self._listener: Listener | None = None
        self._desk: ControlServer | None = None
        self._launcher_pid = protocol.peer_of(control).pid
        self._watch: Watch | None = None
        self._look_at: float | None = None  # None also while a look is under way
        self._known: set[int] = set()  # that have told themselves that they are not managed

    def serve(self) -> None:
        """Run until the session is over."""
        self._control.setblocking(False)
        self._selector.register(self._control, selectors.EVENT_READ, self._on_control)
        try:
            while not self._over:
                for key, _events in self._selector.select(self._timeout()):
                    key.data()
                self._expire()
                if self._desk is not None:
                    self._desk.tick()
                self._look_out()
                self._flush()
        except Exception as error:
            if isinstance(error, OSError) and limits.behind(error.errno, here=True):
                self._fail(limits.in_words(error))  # nothing that a stack would explain
                return
            self._fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._close()

    def _fail(self, text: str) -> None:
        """End the session because the agent itself cannot go on."""
        if self._session is not None:
            self._session.kill_all(text)
        with contextlib.suppress(OSError):
            protocol.send(self._control, protocol.Fatal(kind="internal", text=text))

    # --- The loop's pieces -----------------------------------------------------------------------

    def _timeout(self) -> float | None:
        """Return how long there is nothing to do: for ever, where there is no target either."""
        deadlines = [pending.deadline for pending in self._pending.values()]
        if self._look_at is not None:
            deadlines.append(self._look_at)
        if self._listener is not None and (again := self._listener.deadline()) is not None:
            deadlines.append(again)
        if self._outgoing or self._expected:
            deadlines.append(time.monotonic() + _PAUSE_SECONDS)
        if self._desk is not None and (deadline := self._desk.deadline()) is not None:
            deadlines.append(deadline)
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _expire(self) -> None:
        now = time.monotonic()
        for fd, pending in list(self._pending.items()):
            if pending.deadline <= now:
                self._refuse(pending.connection, "its handshake took too long")
                self._drop(fd)
        if self._listener is not None:
            self._listener.tick()
        if self._finished:
            self._expect(now)

    def _expect(self, now: float) -> None:
        """Stay for targets, and a while for orphans that are still on their way here."""
        self._expected -= set(self._targets.values())
        self._expected = {pid for pid in self._expected if _is_alive(pid)}
        if now > self._expected_until:
            self._expected.clear()
        if not (self._targets or self._pending or self._expected or self._has_unnamed_targets()):
            self._over = True

    def _look_out(self) -> None:
        """Look for processes of the session that no limit holds for, while there is somebody to."""
        now = time.monotonic()
        if self._look_at is None or now < self._look_at:
            return
        self._look_at = None
        if self._finished:
            return
        try:
            self._begin_look()
        except (OSError, RuntimeError):  # no descriptor left, say, or no thread
            self._look_at = now + _LOOK_SECONDS

    def _begin_look(self) -> None:
        if self._watch is None:
            from .unmanaged import Watch  # noqa: PLC0415 # the program has started long ago

            self._watch = Watch(is_preloaded=self._program_pid > 0)
        managed = {pid for pid in self._targets.values() if pid > 0}
        joining = {protocol.peer_of(one.connection).pid for one in self._pending.values()}
        roots = set(managed)
        if self._program_pid:  # a launcher of its own, to which orphans come
            roots |= procfs.children_of(self._launcher_pid) - {os.getpid()}
        # Forks that are served without having handed themselves in are told of by the data plane.
        assert self._session is not None
        unnamed = self._session.statistics().targets_without_hands
        has_all = len(self._known) < _KNOWN_MAX and not unnamed
        fd = self._watch.begin(roots, managed, self._known | joining if has_all else None)
        self._selector.register(fd, selectors.EVENT_READ, lambda: self._on_look(fd))

    def _on_look(self, fd: int) -> None:
        """Tell what a look has found, and plan the next."""
        assert self._watch is not None
        self._selector.unregister(fd)
        texts, rest = self._watch.end(fd)
        if self._finished:
            return
        for text in texts:
            self._warn(text)
        self._look_at = time.monotonic() + (_LOOK_SECONDS if rest is None else rest)

    def _warn(self, text: str) -> None:
        self._tell(protocol.Warn(text=text, serious=False), text)

    def _has_unnamed_targets(self) -> bool:
        """Tell whether there are forks that are served without ever having handed themselves in."""
        return self._session is not None and self._session.statistics().targets_now > 0

    def _close(self) -> None:
        for fd in list(self._pending):
            self._drop(fd)
        for connection in self._held:
            connection.close()
        if self._listener is not None:
            self._listener.close()
        if self._desk is not None:
            self._desk.close()
        if self._session is not None:
            self._session.close()
        if self._finished and self._folder:
            remove_session(self._folder)
        self._selector.close()
        self._control.close()

    # --- The launcher ----------------------------------------------------------------------------

    def _send(self, message: protocol.Message, fds: list[int] | None = None) -> None:
        """Queue a message, and send what can be sent; its descriptors are closed afterwards."""
        if self._finished:
            protocol.close_all(fds or [])
            return
        self._outgoing.append((message, fds or []))
        self._flush()

    def _flush(self) -> None:
        """Send queued messages; the rest waits while the launcher is stopped and reads nothing."""
        while self._outgoing:
            message, fds = self._outgoing[0]
            try:
                protocol.send(self._control, message, fds)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:  # descriptors in flight: again next turn
                    self._drop_outgoing()  # the launcher is gone; its end is read, too
                return
            self._outgoing.pop(0)
            protocol.close_all(fds)

    def _drop_outgoing(self) -> None:
        for _message, fds in self._outgoing:
            protocol.close_all(fds)
        self._outgoing.clear()

    def _on_control(self) -> None:
        try:
            received = protocol.receive(self._control)
        except BlockingIOError:
            return
        if received is None:
            self._launcher_gone()
            return
        message, fds = received
        if isinstance(message, protocol.Configure) and self._session is None and len(fds) == 1:
            self._configure(message, fds[0])
            return
        protocol.close_all(fds)
        if isinstance(message, protocol.Started):
            self._program_pid = message.pid
        elif isinstance(message, protocol.Finish):
            self._finish(message)
        else:
            raise ProtocolError(f"the launcher sent a {type(message).__name__} message out of turn")

    def _configure(self, message: protocol.Configure, listener_fd: int) -> None:
        listener = socket.socket(fileno=listener_fd)
        self._folder = message.folder
        self._session = session = self._start_session(message)
        new_disks: list[int] = []
        if session is None or not self._add_disks(session, message, new_disks):
            listener.close()
            return
        self._selector.register(session.event_fd(), selectors.EVENT_READ, self._on_event)
        self._listener = Listener(
            listener,
            self._selector,
            self._on_connection,
            has_room=lambda: len(self._pending) < _PENDING_MAX,
        )
        self._open_desk(session, message)
        self._send(protocol.Ready(new_disks=new_disks), [os.dup(fd) for fd in session.fds()])

    def _start_session(self, message: protocol.Configure) -> NativeSession | None:
        try:
            return self._open_session(**_settings(message))
        except OSError as error:
            self._send(protocol.Refused(pid=0, text=limits.in_words(error)))
            return None

    def _add_disks(
        self, session: NativeSession, message: protocol.Configure, new_disks: list[int]
    ) -> bool:
        """Add the disk tiers of the start. What nobody asked for may fail; then tell why."""
        for place, disk in enumerate(message.disks):
            path, cap_bytes = disk["path"], disk["cap_bytes"]
            assert isinstance(path, str)
            assert not isinstance(cap_bytes, str)
            is_new = not os.path.exists(path)
            try:
                session.add_tier(path, cap_bytes=cap_bytes)
                new_disks += [place] if is_new else []
            except OSError as error:
                text = error.strerror or str(error)
                if message.disks_are_required:
                    self._send(protocol.Refused(pid=0, text=text))
                    return False
                self._send(protocol.Warn(text=f"going without a disk tier: {text}", serious=False))
        return True

    def _open_desk(self, session: NativeSession, message: protocol.Configure) -> None:
        """Let the session be controlled. It can do without."""
        from .control_server import ControlServer, Roll  # noqa: PLC0415 # with what it needs

        def roll() -> Roll:
            return Roll(
                targets=self._targets,
                launcher_pid=self._session_pid(),
                program_pid=self._program_pid,
            )

        try:
            listener = listen_for_control(message.folder)
        except OSError as error:
            text = f"this session cannot be controlled while it runs: {error}"
            self._send(protocol.Warn(text=text, serious=False))
            return
        start = (message.memory_bytes, message.resident_bytes)
        self._desk = ControlServer(listener, self._selector, session, roll, start)

    def _session_pid(self) -> int:
        """Return the process that means all of the session."""
        # A standing agent is the launcher of many: each session then goes by its own.
        return self._launcher_pid if self._program_pid else os.getpid()

    def _keeper(self) -> str:
        """Return what the other end of the control channel is called."""
        return "launcher" if self._program_pid else "standing agent"

    def _launcher_gone(self) -> None:
        self._selector.unregister(self._control)
        self._drop_outgoing()
        if self._finished:
            return
        self._finished = True  # the folder is ours to remove
        self._over = True
        if self._session is not None:
            if self._targets:
                _complain(f"the {self._keeper()} is gone; killing the targets of this session")
            self._kill_all(self._session)

    def _kill_all(self, session: NativeSession) -> None:
        """Kill every target and wait, so that none runs on after its pages are gone.

        Children on their way here are let in, to be killed with the others.
        """
        if self._program_pid and self._program_pid not in self._targets.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._program_pid, signal.SIGKILL)
        deadline = time.monotonic() + _KILL_WAIT_SECONDS
        known: set[int] = set()
        while (self._targets or self._pending) and time.monotonic() < deadline:
            if not self._targets.keys() <= known:
                known |= self._targets.keys()
                session.kill_all(_WHY_KILLED.format(who=self._keeper()))
            for key, _events in self._selector.select(_PAUSE_SECONDS):
                key.data()
            self._expire()

    def _finish(self, message: protocol.Finish) -> None:
        """Answer with the statistics; stay only if targets outlive the program."""
        assert self._session is not None
        outliving = self._settle()
        self._expected = set(message.orphans) - outliving
        self._expected_until = time.monotonic() + _HANDSHAKE_SECONDS
        remaining = len(outliving) + len(self._expected)
        counters = self._session.statistics().as_dict()
        times = os.times()
        self._send(
            protocol.Statistics(
                counters=counters,
                handshakes_refused=self._refused,
                user_seconds=times.user,
                system_seconds=times.system,
                remaining=remaining,
            )
        )
        self._finished = True
        self._over = not remaining
        if remaining:
            _leave_terminal()

    def _settle(self) -> set[int]:
        """Let the data plane give back what targets that have ended held; returns who goes on."""
        assert self._session is not None
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            self._on_event()
            outliving = {pid for pid in self._targets.values() if self._outlives(pid)}
            left = deadline - time.monotonic()
            gone = outliving.issuperset(self._targets.values())
            if left <= 0 or (gone and (outliving or not self._holds_disks())):
                return outliving
            # What is on its way to or from a disk ends without an event.
            wait = min(left, _MOVES_SECONDS) if gone else left
            select.select([self._session.event_fd()], [], [], wait)

    def _holds_disks(self) -> bool:
        """Tell whether something is left on disks. When nobody is left, that goes, too."""
        return self._session is not None and self._session.statistics().disk_segments > 0

    def _outlives(self, pid: int) -> bool:
        if pid == self._program_pid:
            return False
        if pid <= 0:
            return True  # a fork that has not introduced itself yet
        return _is_alive(pid)

    # --- The data plane --------------------------------------------------------------------------

    def _on_event(self) -> None:
        assert self._session is not None
        events = list(iter(self._session.next_event, None))
        # A target that ended at once may be gone before its arrival is announced.
        events.sort(key=lambda event: event.kind.name != "TARGET_ADDED")
        for event in events:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        assert self._session is not None
        kind = event.kind.name
        if kind == "TARGET_ADDED":
            self._targets[event.target_id] = event.pid
            if self._watch is None and self._look_at is None:
                self._look_at = time.monotonic() + _LOOK_SECONDS
            fds = self._session.target_fds(event.target_id)
            self._send(protocol.Target(id=event.target_id, pid=max(event.pid, 0)), fds)
        elif kind == "TARGET_GONE":
            self._targets.pop(event.target_id, None)
            self._send(protocol.Gone(id=event.target_id))
        elif kind in ("TARGET_KILLED", "NOT_KILLED"):
            goes_on = kind == "NOT_KILLED"
            killed = protocol.Killed(pid=max(event.pid, 0), text=event.text, goes_on=goes_on)
            self._tell(killed, protocol.fate_of(killed))
        elif kind == "OUT_OF_MEMORY":
            self._tell(protocol.Fatal(kind="out_of_memory", text=event.text), event.text)
        elif kind == "REQUEST_DONE":
            pass  # the loop's turn ends with a look at what the desk waits for
        elif kind.startswith("TIER_"):
            self._follow_removal(event)
        elif kind == "ALONE":
            if self._watch is None or not self._watch.lookout.has_told_of_shim:
                self._warn(event.text)
        elif kind == "FULL":
            text = f"{event.text}; {_way_out(self._session_pid())}"
            self._tell(protocol.Warn(text=text, serious=True), text)
        else:
            serious = kind == "POISONED"
            self._tell(protocol.Warn(text=event.text, serious=serious), event.text)

    def _follow_removal(self, event: Event) -> None:
        kind = event.kind.name
        if kind == "TIER_KEPT":
            self._warn(event.text)
        if self._desk is None:
            return
        if kind == "TIER_EMPTY":
            self._desk.empty_tier(event.target_id)
        else:
            self._desk.end_removal(event.target_id, event.text if kind == "TIER_KEPT" else "")

    def _tell(self, message: protocol.Message, text: str) -> None:
        """Tell the launcher, or the system's log once there is none."""
        if not self._finished:
            self._send(message)
            return
        import syslog  # noqa: PLC0415 # rare, and not worth its import at every start

        syslog.openlog("uffdswap", syslog.LOG_PID)
        syslog.syslog(syslog.LOG_WARNING, text)

    # --- Handshakes ------------------------------------------------------------------------------

    def _on_connection(self, connection: socket.socket) -> None:
        if not protocol.is_own(connection):
            self._refused += 1
            connection.close()
            return
        fd = connection.fileno()
        self._pending[fd] = _Pending(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._on_hello(fd))

    def _refuse(self, connection: socket.socket, why: str) -> None:
        """Let the user know of a process that will not be managed."""
        pid = protocol.peer_of(connection).pid
        self._note_known(pid)
        self._send(protocol.Refused(pid=pid, text=why))

    def _note_known(self, pid: int) -> None:
        if len(self._known) < _KNOWN_MAX:
            self._known.add(pid)

    def _drop(self, fd: int) -> None:
        """Close a connection that did not become a target."""
        self._refused += 1
        connection = self._take(fd)
        connection.close()

    def _take(self, fd: int) -> socket.socket:
        connection = self._pending.pop(fd).connection
        self._selector.unregister(connection)
        return connection

    def _on_hello(self, fd: int) -> None:
        connection = self._pending[fd].connection
        try:
            hello, fds, truncated = protocol.receive_packet(
                connection, _HELLO_BYTES_MAX, _HELLO_FDS_MAX
            )
        except BlockingIOError:
            return
        except OSError:
            self._drop(fd)
            return
        if truncated or not hello:
            if truncated:
                self._refuse(connection, "its handshake was cut short (no descriptors left?)")
            protocol.close_all(fds)
            self._drop(fd)
            return
        if (error := _given_up(hello)) and not fds:
            self._let_go(self._take(fd), error)
            return
        self._add_target(fd, hello, fds)

    def _let_go(self, connection: socket.socket, error: int) -> None:
        """Tell of a process whose shim has given up. It waits for the end of its connection.

        The launcher kills the program for that, and until then it must not go on: it would be
        without a limit. Others go on at once.
        """
        self._refused += 1
        pid = protocol.peer_of(connection).pid
        self._note_known(pid)
        text = _why_given_up(error)
        self._send(protocol.Refused(pid=pid, text=text, has_given_up=True))
        if self._is_program(pid):
            self._held.append(connection)
        else:
            connection.close()

    def _is_program(self, pid: int) -> bool:
        if self._program_pid:
            return pid == self._program_pid
        stat = procfs.stat_of(pid)  # it came before the launcher's word of it
        return stat is not None and stat.parent == self._launcher_pid

    def _add_target(self, fd: int, hello: bytes, fds: list[int]) -> None:
        """Hand a hello to the data plane, which owns all descriptors from then on."""
        assert self._session is not None
        connection = self._take(fd)
        try:
            pid, pidfd = _peer(connection)
        except OSError:
            self._refused += 1
            protocol.close_all(fds)
            connection.close()
            return
        raw = connection.detach()
        try:
            again = self._session.add_target(raw, pidfd, pid, hello, fds)
        except OSError as error:
            self._refused += 1
            if error.errno == errno.ESRCH:
                return  # it has ended meanwhile: there is nothing to manage
            self._note_known(pid)
            self._send(protocol.Refused(pid=pid, text=error.strerror or str(error)))
            return
        if again:
            connection = socket.socket(fileno=raw)
            connection.setblocking(False)
            self._pending[raw] = _Pending(connection)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._on_hello(raw))
            return
        self._on_event()


def _way_out(pid: int) -> str:
    return f"give it some: uffdswap tier add --pid {pid} PATH, or uffdswap set {pid} --memory SIZE"


def _settings(message: protocol.Configure) -> dict[str, Any]:
    """Return the keyword arguments of a native session."""
    return {
        "memory_limit_bytes": message.memory_bytes,
        "resident_limit_bytes": message.resident_bytes,
        "stress_pages_per_second": message.stress_pages_per_second,
        "disk_is_encrypted": message.disk_is_encrypted,
        "on_full": message.on_full,
    }


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Return pid and pidfd of the process at the other end."""
    pid = protocol.peer_of(connection).pid
    if pid <= 0:
        raise ProcessLookupError("the peer is not visible from here")
    try:
        return pid, connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # an older kernel; the peer waits for its welcome, so the pid is still its own
        return pid, os.pidfd_open(pid)


def _given_up(hello: bytes) -> int:
    """Return the errno for which a shim has given up; 0 if it says something else.

    The data plane reads all other hellos.
    """
    if len(hello) != HELLO.size:
        return 0
    magic, version, kind, _reserved, error, *_rest = HELLO.unpack(hello)
    if (magic, version, kind) != (MAGIC, WIRE_VERSION, HELLO_GIVE_UP):
        return 0
    return error if 0 < error < 4096 else errno.EPROTO


def _why_given_up(error: int) -> str:
    """Say why a shim could not prepare its process, and what would help."""
    text = f"its shim could not set up what it needs: {os.strerror(error)}"
    if error == errno.ENOSYS:  # the kernel was asked, by doctor, and has them all
        return f"{text}; an emulator (valgrind) or a seccomp filter keeps system calls from it"
    options = ", ".join(limits.behind(error))
    return f"{text}; raise the limit (ulimit {options})" if options else text


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _complain(text: str) -> None:
    """Print a line when there is no launcher to do it."""
    with contextlib.suppress(OSError):
        os.write(2, f"uffdswap: {text}\n".encode())


def _leave_terminal() -> None:
    """Let go of the launcher's stderr, so that whoever reads its other end is not kept waiting."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    os.close(null)


def _prepare() -> socket.socket:
    """Shake off what was inherited, and return the control channel."""
    for name in _IGNORED:
        signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
    os.closerange(protocol.CONTROL_FD + 1, 2**31 - 1)
    limits.lift()
    os.set_inheritable(protocol.CONTROL_FD, False)
    os.chdir("/")
    return socket.socket(fileno=protocol.CONTROL_FD)


def open_session(**settings: Any) -> NativeSession:
    """Create the data plane's session. Raises `OSError` with a sentence for the user."""
    from . import _lib  # noqa: PLC0415 # after the channel is there, over which a failure is told

    probe = _lib.probe()
    if not _is_surely_fine(probe):
        from .doctor import required_failures  # noqa: PLC0415 # heavy, and only to explain

        for finding in required_failures(probe):
            raise OSError(errno.EPERM, str(finding))
    return _lib.NativeSession(**settings)


def _is_surely_fine(probe: Probe) -> bool:
    """Tell whether nothing can be wrong; `doctor` knows what is, in all other cases."""
    errors = (probe.open_error, probe.device_error, probe.api_error, probe.features_missing)
    return not any(errors) and probe.has_move and probe.has_pagemap_scan


def main() -> int:
    """Serve one session; return the exit status."""
    try:
        control = _prepare()
    except OSError:
        _complain("the agent is started by `uffdswap run`, not by hand")
        return 2
    Agent(control, open_session).serve()
    return 0


def run_and_exit() -> None:
    """Serve one session and end at once: the launcher waits, and there is nothing to tear down."""
    status = 1
    try:
        status = main()
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


if __name__ == "__main__":
    run_and_exit()
