# SPDX-License-Identifier: MIT
"""The standing agent: programs join it by the shim alone, without a launcher.

It serves no fault itself. For each program that joins it starts an agent, as the launcher does, and
answers with the socket of that session; the program hands itself in there, and its children find
the same session by themselves. So every program and its children have a budget of their own,
and one that breaks its session harms no other.

It also does what else the launcher does for the safety of data: it holds duplicates of every
target's descriptors, and when an agent is lost it kills that session's processes, whose evicted
pages are lost with it. Told to end, it leaves the agents to their programs, and takes no more.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time

from . import _libc, limits, protocol
from .config import resolve
from .errors import ProtocolError, SetupFailed, UffdswapError
from .listener import Listener
from .procfs import children_of
from .runtime import SessionFolder, standing_socket
from .spawn import start_agent
from .wire import (
    HELLO,
    HELLO_JOIN,
    MAGIC,
    WELCOME,
    WELCOME_REFUSED,
    WELCOME_SESSION,
    WIRE_VERSION,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .config import RunConfig
    from .spawn import AgentProcess

__all__ = ("StandingAgent", "defaults_of")

_OPTIONS = ("memory", "resident", "disk", "no_disk", "no_disk_encryption", "on_full")

_PENDING_MAX = 128
_HELLO_SECONDS = 5.0
# The shim waits ten seconds for its session; a program that has one hands itself in at once.
_SESSION_SECONDS = 10.0
# Who forks or executes and ends at once, as a daemon does, has a child that is still on its way.
_CHILDREN_SECONDS = 1.0
_PAUSE_SECONDS = 0.5
_STOP_SECONDS = 5.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def defaults_of(options: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of programs that do not say their own, as variables.

    They are the agent's own, from its options (by name) and its environment, as for `run`. Raises
    `UsageError` at once for what every program would be refused for.
    """
    variables = {name: f"UFFDSWAP_{name.upper()}" for name in _OPTIONS}
    own = {one: environment[one] for one in variables.values() if environment.get(one)}
    config = resolve(options, own)
    defaults = own | {variables[name]: text for name, text in options.items()}
    defaults.setdefault(variables["memory"], "max")
    if "disk" in config.sources:  # as they are now: the places may be gone when a program joins
        defaults[variables["disk"]] = "\n".join(map(str, config.disks))
    return defaults


class _Session:
    """A session that was started here: its agent, and what is held for its targets."""

    def __init__(
        self, agent: AgentProcess, folder: SessionFolder, joiner: socket.socket, pid: int
    ) -> None:
        self.agent = agent
        self.folder = folder
        self.control = socket.socket(fileno=agent.control_fd)
        self.joiner: socket.socket | None = joiner
        self.pid = pid
        self.deadline = time.monotonic() + _SESSION_SECONDS  # for a target, while there is none
        self.fds: list[int] = []
        self.targets: dict[int, list[int]] = {}
        self.pids: dict[int, int] = {}
        self.has_had_targets = False
        self.finishing = False
        self.lingers = False


class StandingAgent:
    """Listens for programs, and looks after their sessions. `serve()` returns when told to end."""

    def __init__(
        self,
        path: str,
        defaults: Mapping[str, str],
        environment: Mapping[str, str],
        tell: Callable[[str], None],
    ) -> None:
        self._defaults = dict(defaults)
        self._environment = environment
        self._tell = tell
        self._selector = selectors.DefaultSelector()
        self._pending: dict[int, tuple[socket.socket, float]] = {}
        self._sessions: dict[int, _Session] = {}
        self._ended = False
        self._signals = -1
        self._path = path
        limits.lift()  # several descriptors for every target; the agents do the same
        config = resolve({}, self._defaults)
        _require_session(config)
        self._fixed = {"UFFDSWAP_NO_DISK": "1"} if config.disks_are_forbidden else {}
        self._has_told_of_wait = False
        self._listener = Listener(
            standing_socket(path), self._selector, self._on_connection, on_lack=self._on_lack
        )

    def serve(self) -> None:
        """Take programs until a signal says that it is enough."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        self._signals = _libc.signalfd(_ENDING)
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signal)
        self._tell(f"programs may join at {self._path}")
        try:
            while not self._ended:
                self._turn()
            self._leave()
        finally:
            self._close()
            os.close(self._signals)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _turn(self) -> None:
        waits = (
            self._pending
            or self._listener.deadline() is not None
            or any(not (one.targets or one.finishing) for one in self._sessions.values())
        )
        for key, _events in self._selector.select(_PAUSE_SECONDS if waits else None):
            key.data()
        self._expire()

    def _on_signal(self) -> None:
        self._ended = bool(_libc.read_signals(self._signals))

    def _expire(self) -> None:
        now = time.monotonic()
        for fd, (connection, deadline) in list(self._pending.items()):
            if deadline <= now:
                self._forget(fd)
                connection.close()
        for session in list(self._sessions.values()):
            if session.targets or session.finishing or session.deadline > now:
                continue
            if not session.has_had_targets:
                self._tell(f"process {session.pid} asked for a session and did not hand itself in")
            self._finish(session)
        self._listener.tick()

    # --- Joining ---------------------------------------------------------------------------------

    def _on_lack(self, error: OSError) -> None:
        if not self._has_told_of_wait:
            self._tell(f"a program has to wait to join: {limits.in_words(error)}")
        self._has_told_of_wait = True

    def _on_connection(self, connection: socket.socket) -> None:
        self._has_told_of_wait = False
        if not protocol.is_own(connection) or len(self._pending) >= _PENDING_MAX:
            connection.close()
            return
        fd = connection.fileno()
        self._pending[fd] = (connection, time.monotonic() + _HELLO_SECONDS)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._on_hello(fd))

    def _forget(self, fd: int) -> socket.socket:
        connection, _deadline = self._pending.pop(fd)
        self._selector.unregister(connection)
        return connection

    def _on_hello(self, fd: int) -> None:
        connection = self._forget(fd)
        try:
            hello, fds, truncated = protocol.receive_packet(connection, HELLO.size, 1)
        except OSError:
            connection.close()
            return
        protocol.close_all(fds)
        if not hello:  # it wanted to know whether somebody listens, as another agent does
            connection.close()
            return
        pid = protocol.peer_of(connection).pid
        try:
            if truncated or len(hello) != HELLO.size:
                raise ProtocolError("it sent something that is no hello")
            magic, version, kind, *_rest = HELLO.unpack(hello)
            if magic != MAGIC or kind != HELLO_JOIN:
                raise ProtocolError("it sent something that does not ask for a session")
            if version != WIRE_VERSION:
                raise ProtocolError("its shim is of another version")
            self._open(connection, pid)
        except (UffdswapError, OSError) as error:
            why = limits.in_words(error) if isinstance(error, OSError) else error
            self._tell(f"process {pid} is not managed: {why}")
            _answer(connection, WELCOME_REFUSED)
            connection.close()

    def _open(self, connection: socket.socket, pid: int) -> None:
        """Start a session for a program, under the limits that its own environment asks for."""
        config = resolve({}, self._defaults | _settings_of(pid) | self._fixed)
        agent = start_agent()
        try:
            folder = SessionFolder(agent.pid, self._environment)
        except BaseException:
            agent.abandon()
            raise
        session = _Session(agent, folder, connection, pid)
        configure = protocol.Configure(
            memory_bytes=config.memory_bytes,
            resident_bytes=config.resident_bytes,
            stress_pages_per_second=config.stress_pages_per_second,
            folder=folder.path,
            disks=[disk.as_dict() for disk in config.disks],
            disks_are_required=False,  # refused, the program would run on without a limit
            disk_is_encrypted=config.disk_is_encrypted,
            on_full=config.on_full,
        )
        with contextlib.suppress(OSError):  # its end is noticed when it is read
            protocol.send(session.control, configure, [folder.listener.fileno()])
        folder.listener.close()
        session.control.setblocking(False)
        self._sessions[agent.pid] = session
        self._selector.register(
            session.control, selectors.EVENT_READ, lambda: self._on_agent(session)
        )

    # --- Sessions --------------------------------------------------------------------------------

    def _on_agent(self, session: _Session) -> None:
        try:
            received = protocol.receive(session.control)
        except BlockingIOError:
            return
        except ProtocolError as error:
            self._tell(f"the agent {session.agent.pid} cannot be understood: {error}")
            received = None
        if received is None:
            self._on_agent_gone(session)
            return
        message, fds = received
        if isinstance(message, protocol.Ready):
            session.fds = fds
            self._admit(session)
        elif isinstance(message, protocol.Target):
            session.targets[message.id] = fds
            session.pids[message.id] = message.pid
            session.has_had_targets = True
        else:
            protocol.close_all(fds)
            self._on_message(session, message)

    def _on_message(self, session: _Session, message: protocol.Message) -> None:
        if isinstance(message, protocol.Gone):
            protocol.close_all(session.targets.pop(message.id, []))
            session.pids.pop(message.id, None)
            session.deadline = time.monotonic() + _CHILDREN_SECONDS
        elif isinstance(message, protocol.Statistics):
            session.lingers = message.remaining > 0
        elif isinstance(message, protocol.Killed):
            self._tell(protocol.fate_of(message))
        elif isinstance(message, protocol.Refused):
            who = message.pid or session.pid
            self._tell(f"process {who} is not managed: {message.text}")
            if not message.pid:  # there is no session: the program must not wait for it
                self._drop(session)
        elif isinstance(message, protocol.Warn | protocol.Fatal):
            self._tell(f"session {session.agent.pid}: {message.text}")

    def _admit(self, session: _Session) -> None:
        """Tell the program where its session is."""
        assert session.joiner is not None
        _answer(session.joiner, WELCOME_SESSION, session.folder.socket_path)
        session.joiner.close()
        session.joiner = None

    def _finish(self, session: _Session) -> None:
        """Nobody is left: the agent may go when it has seen that too."""
        if session.finishing:
            return
        session.finishing = True
        with contextlib.suppress(OSError):
            protocol.send(session.control, protocol.Finish(orphans=[]))

    def _on_agent_gone(self, session: _Session) -> None:
        """See whether it was its time; if not, its targets must not read zeros."""
        is_idle = session.has_had_targets and not session.targets
        if not (session.finishing or is_idle) or (session.lingers and session.targets):
            self._tell(
                f"the agent {session.agent.pid} is gone, and the evicted pages of its programs"
                " with it: they were killed"
            )
            _kill_trees(session)
        self._drop(session)

    def _drop(self, session: _Session) -> None:
        del self._sessions[session.agent.pid]
        self._selector.unregister(session.control)
        session.control.close()
        if session.joiner is not None:
            _answer(session.joiner, WELCOME_REFUSED)
            session.joiner.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(session.agent.pid, signal.SIGKILL)  # it has closed its channel: the end
            os.waitpid(session.agent.pid, 0)
        session.folder.close()
        for fds in (session.fds, *session.targets.values()):
            protocol.close_all(fds)

    # --- The end ---------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Let every agent go on alone, and wait until each has understood that."""
        self._listener.close()  # who comes now finds nobody
        for session in self._sessions.values():
            self._finish(session)
        deadline = time.monotonic() + _STOP_SECONDS
        while self._waiting() and time.monotonic() < deadline:
            for key, _events in self._selector.select(_PAUSE_SECONDS):
                key.data()

    def _waiting(self) -> bool:
        return any(not one.lingers for one in self._sessions.values())

    def _close(self) -> None:
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        for fd in list(self._pending):
            self._forget(fd).close()
        if self._sessions and self._ended:
            count = len(self._sessions)
            what = "1 session goes" if count == 1 else f"{count} sessions go"
            self._tell(f"{what} on without the standing agent")
        for session in self._sessions.values():
            session.control.close()
            for fds in (session.fds, *session.targets.values()):
                protocol.close_all(fds)
        self._selector.close()


def _require_session(config: RunConfig) -> None:
    """Demand what every session needs, by opening one: else each program would be refused.

    Of the disk tiers, those that somebody asked for.
    """
    from .agent import open_session  # noqa: PLC0415 # what every agent has anyway

    try:
        with open_session(disk_is_encrypted=config.disk_is_encrypted) as session:
            for disk in config.disks if "disk" in config.sources else ():
                session.add_tier(disk.path, cap_bytes=disk.cap_bytes)
    except OSError as error:
        raise SetupFailed(limits.in_words(error)) from error


def _answer(connection: socket.socket, status: int, path: str = "") -> None:
    welcome = WELCOME.pack(MAGIC, WIRE_VERSION, status, 0, os.fsencode(path))
    with contextlib.suppress(OSError):  # it is gone
        connection.send(welcome, socket.MSG_NOSIGNAL)


def _settings_of(pid: int) -> dict[str, str]:
    """Return what a program's environment says to uffdswap; an empty variable says nothing."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
        folder = os.readlink(f"/proc/{pid}/cwd")
    except OSError as error:
        raise SetupFailed("its environment cannot be read", cause=str(error.strerror)) from error
    pairs = (os.fsdecode(one).partition("=") for one in variables)
    settings = {n: value for n, _equals, value in pairs if value and n.startswith("UFFDSWAP_")}
    if places := settings.get("UFFDSWAP_DISK"):  # the program's folder, not that of this agent
        joined = (os.path.join(folder, place) for place in places.split("\n"))
        settings["UFFDSWAP_DISK"] = "\n".join(joined)
    return settings


def _kill_trees(session: _Session) -> None:
    """SIGKILL the targets and all their children, which may have evicted pages as well."""
    todo = set(session.pids.values()) - {0}
    seen: set[int] = set()
    while todo:
        pid = todo.pop()
        seen.add(pid)
        todo |= children_of(pid) - seen
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for fds in session.targets.values():
        for fd in fds:
            with contextlib.suppress(OSError):  # not the pidfd, or gone already
                signal.pidfd_send_signal(fd, signal.SIGKILL)
