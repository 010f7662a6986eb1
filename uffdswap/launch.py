# SPDX-License-Identifier: MIT
"""The launcher: starts agent and program, passes signals on, and ends as the program ended.

It is the parent of both and stays out of the data path. The program has the terminal, the
standard streams and the process group; the launcher only watches. It also inherits and reaps the
session's orphans, and holds duplicates of all descriptors of all targets: while they are open, no
evicted page can turn into zeros, whatever becomes of the agent.

One thread and one loop. Signals are blocked and read from a descriptor, so they race with
nothing, and their origin is known: what the terminal sends, it sends to the program as well.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
import time

from . import _libc, elf, protocol
from .config import NO_BUDGET
from .errors import ProtocolError, SessionFailed, SetupFailed, UsageError
from .procfs import children_of, stat_of
from .record import Record
from .runtime import SessionFolder, shim_path
from .statistics import Ending, StatsFile, document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .config import RunConfig
    from .spawn import AgentProcess

__all__ = (
    "DISABLE_VARIABLE",
    "ERROR",
    "INFO",
    "SOCKET_VARIABLE",
    "WARNING",
    "Launcher",
    "Outcome",
    "Patience",
)

ERROR, WARNING, INFO = -1, 0, 1
"""Levels of what the launcher tells: shown from this verbosity on (errors always)."""

SOCKET_VARIABLE = "_UFFDSWAP_SOCKET"
DISABLE_VARIABLE = "UFFDSWAP_DISABLE"
"""With 1 in it, the shim does nothing in whatever is executed; see native/shim/shim.c."""

_WALL_CLONES = 0x40000000  # __WALL: also children that do not send SIGCHLD
_FORWARDED = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
    signal.SIGTSTP,
)
_KEPT = (signal.SIGINT, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU)
_ABORTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_STATISTICS_SECONDS = 10.0
_KILL_SECONDS = 5.0
_UNKILLABLE_SECONDS = 20.0  # the agent tries for five, and then has every page map to walk
_ORPHANS_MAX = 4096


class Patience(Record):
    """How long the launcher waits for what."""

    agent_seconds: float = 30.0
    shim_seconds: float = 5.0
    handshake_seconds: float = 60.0
    term_seconds: float = 10.0


class Outcome(Record):
    """What the launcher is to end with, and the statistics if there are any.

    With a signal, the launcher is to die of it; otherwise `exit_status` is its own.
    """

    exit_status: int | None
    signal: int | None
    report: dict[str, Any] | None


class _Aborted(Exception):
    """A signal ended the launch before there was a program to send it to."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Launcher:
    """One launch of one program. Use it once, and in the main thread."""

    def __init__(
        self,
        config: RunConfig,
        command: tuple[str, ...],
        agent: AgentProcess,
        tell: Callable[[int, str], None],
        patience: Patience | None = None,
    ) -> None:
        self._config = config
        self._command = command
        self._agent = agent
        self._tell = tell
        self._patience = patience or Patience()
        self._control = socket.socket(fileno=agent.control_fd)
        self._selector = selectors.DefaultSelector()
        self._folder: SessionFolder | None = None
        self._stats_file: StatsFile | None = None
        self._signal_fd = -1
        self._inherited_mask: set[int] = set()
        self._agent_ready = False
        self._agent_connected = True
        self._agent_ended: os.waitid_result | None = None
        self._session_fds: list[int] = []
        self._targets: dict[int, list[int]] = {}
        self._program_targets: set[int] = set()  # one, and for a moment two when it executes
        self._pid = 0
        self._ended: os.waitid_result | None = None
        self._started_at = self._ended_at = 0.0
        self._term_at: float | None = None
        self._shim = ""
        self._handed_in = False
        self._failure: SessionFailed | None = None
        self._statistics: protocol.Statistics | None = None
        self._warned_of_refusal = False
        self._kept_signals: set[int] = set()  # that could not be passed on
        self._unkillable: set[int] = set()

    def run(self, environment: Mapping[str, str]) -> Outcome:
        """Run the program to its end.

        Raises `UffdswapError` if it could not be started, or if it was killed because the session
        broke; nothing of the session is left then.
        """
        try:
            program = self._prepare(environment)
            self._take_signals()
            self._await_agent()
            self._start(program, environment)
            self._supervise()
            return self._conclude()
        except _Aborted as aborted:
            return Outcome(exit_status=None, signal=aborted.number, report=None)
        finally:
            self._close()

    # --- Before the program ----------------------------------------------------------------------

    def _prepare(self, environment: Mapping[str, str]) -> elf.Program:
        """Do all that can fail before anything depends on it."""
        if environment.get(SOCKET_VARIABLE):
            raise UsageError(
                "already inside a session of uffdswap",
                cause="one session cannot manage another",
                remedy=f"start it outside, or with {SOCKET_VARIABLE} unset",
            )
        if environment.get(DISABLE_VARIABLE) == "1":
            raise UsageError(
                f"{DISABLE_VARIABLE}=1 is set",
                cause="the program would run without a limit",
                remedy="unset it, or start the program without uffdswap run",
            )
        program = elf.find(self._command, environment)
        elf.check(program)
        if self._config.stats_path is not None:
            self._stats_file = StatsFile(self._config.stats_path)
        self._folder = SessionFolder(self._agent.pid, environment)
        return program

    def _take_signals(self) -> None:
        """Block what is passed on and read it from a descriptor.

        What was ignored when the launcher started stays so, for the program too: that is how
        nohup(1) and the background jobs of a shell work.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would lose exit statuses
        taken = {s for s in (*_FORWARDED, *_KEPT) if signal.getsignal(s) != signal.SIG_IGN}
        self._inherited_mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, taken))
        self._signal_fd = _libc.signalfd(taken)
        self._selector.register(self._signal_fd, selectors.EVENT_READ, self._on_signals)
        _libc.become_subreaper()

    def _await_agent(self) -> None:
        """Give the agent its session, and wait until it takes targets."""
        assert self._folder is not None
        configure = protocol.Configure(
            memory_bytes=self._config.memory_bytes,
            resident_bytes=self._config.resident_bytes,
            stress_pages_per_second=self._config.stress_pages_per_second,
            folder=self._folder.path,
            disks=[disk.as_dict() for disk in self._config.disks],
            disks_are_required="disk" in self._config.sources,
            disk_is_encrypted=self._config.disk_is_encrypted,
            on_full=self._config.on_full,
        )
        with contextlib.suppress(OSError):  # its end is noticed below
            protocol.send(self._control, configure, [self._folder.listener.fileno()])
        self._folder.listener.close()
        self._control.setblocking(False)
        self._selector.register(self._control, selectors.EVENT_READ, self._on_agent)
        try:
            in_time = self._loop(lambda: self._agent_ready, self._patience.agent_seconds)
        except SessionFailed as error:
            raise SetupFailed(error.what, cause=error.cause, remedy=error.remedy) from error
        if not in_time:
            seconds = self._patience.agent_seconds
            raise SetupFailed("the agent did not start", cause=f"no answer in {seconds:g} s")

    def _start(self, program: elf.Program, environment: Mapping[str, str]) -> None:
        """Start the program as if the launcher were not there: its signals, streams and limits."""
        assert self._folder is not None
        variables = dict(environment)
        self._shim = shim_path()
        link = self._folder.link_shim(self._shim)
        preloaded = variables.get("LD_PRELOAD")
        variables["LD_PRELOAD"] = f"{preloaded}:{link}" if preloaded else link
        variables[SOCKET_VARIABLE] = self._folder.socket_path
        if self._config.has_forgotten_limit:
            to_set = f"uffdswap set {os.getpid()} --memory SIZE"
            self._tell(WARNING, f"no limit to keep so far; to set one: {to_set}")
        elif self._config.disks and self._config.memory_bytes is None:
            self._tell(WARNING, NO_BUDGET)
        self._started_at = time.monotonic()
        try:
            self._pid = os.posix_spawn(
                program.path,
                program.arguments,
                variables,
                setsigmask=self._inherited_mask,
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores these for itself
            )
        except OSError as error:
            raise elf.refusal(program.path, error) from error
        self._tell(INFO, f"agent {self._agent.pid}, program {self._pid}")
        self._send(protocol.Started(pid=self._pid))
        _allow_descriptors()
        if self._config.memory_bytes is not None:
            self._warn_of_budget(self._config.memory_bytes)

    def _warn_of_budget(self, memory_bytes: int) -> None:
        """Say so if the budget will never be reached, since somebody else's limit is lower."""
        from .machine import available_memory_bytes  # noqa: PLC0415 # the program has started
        from .units import format_size  # noqa: PLC0415

        with contextlib.suppress(SetupFailed):
            available_bytes = available_memory_bytes()
            if memory_bytes > available_bytes:
                budget, available = format_size(memory_bytes), format_size(available_bytes)
                what = f"the budget of {budget} is more than the {available} that the machine"
                why = "or a cgroup allows: the kernel may end the program before it is reached"
                self._tell(WARNING, f"{what} {why}; give --memory less")

    # --- The loop --------------------------------------------------------------------------------

    def _loop(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Serve descriptors until a condition holds; False if it does not in time."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not condition():
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                return False
            for key, _events in self._selector.select(timeout):
                key.data()
        return True

    def _supervise(self) -> None:
        """Wait for the program's end; kill it if the session breaks."""
        try:
            self._await_handshake()
            self._loop(self._is_over)
        except SessionFailed as error:
            self._failure = error
        if self._failure is not None:
            self._kill_everything()

    def _await_handshake(self) -> None:
        """Insist that the program hands itself in.

        The loader maps the shim before anything else, so a program that has run for a while
        without it never will; with it, the program waits for the agent, however slow the machine.
        """
        patience = self._patience
        for seconds in (patience.shim_seconds, patience.handshake_seconds):
            if self._loop(lambda: self._handed_in or self._is_over(), seconds):
                return
            if not _has_mapped(self._pid, self._shim):
                raise self._not_handed_in(f"within {seconds:g} s")
        raise self._not_handed_in(f"within {patience.handshake_seconds:g} s")

    def _is_over(self) -> bool:
        return self._ended is not None or self._failure is not None

    def _not_handed_in(self, when: str) -> SessionFailed:
        return SessionFailed(
            f'cannot manage "{self._command[0]}"',
            cause=f"it did not hand itself in {when}",
            remedy=(
                "see whether the dynamic loader can preload into it: LD_DEBUG=files shows that; "
                "if AddressSanitizer is in it, set ASAN_OPTIONS=verify_asan_link_order=0"
            ),
        )

    # --- Signals and children --------------------------------------------------------------------

    def _on_signals(self) -> None:
        """Act on what has arrived, a word of children last.

        It may stop the launcher, and what is left to be passed on after that would be from before
        the launcher was continued: a TSTP would stop the program again.
        """
        arrived = _libc.read_signals(self._signal_fd)
        for info in sorted(arrived, key=lambda info: info.number == signal.SIGCHLD):
            if info.number == signal.SIGCHLD:
                self._reap()
            elif not self._pid:
                if info.number in _ABORTING:
                    raise _Aborted(info.number)
            elif info.number in _FORWARDED:
                self._forward(info)

    def _forward(self, info: _libc.SignalInfo) -> None:
        if self._ended is not None:
            return
        if info.code == _libc.SI_KERNEL and _is_in_our_group(self._pid):
            return  # from the terminal, which has sent it to the program too
        number = info.number
        if number == signal.SIGTERM:
            now = time.monotonic()
            self._term_at = self._term_at or now
            if now - self._term_at >= self._patience.term_seconds:
                number = signal.SIGKILL
        try:
            os.kill(self._pid, number)
        except PermissionError as error:
            self._warn_of_signal(number, error)

    def _warn_of_signal(self, number: int, error: OSError) -> None:
        """Tell, once for each signal, that the program does not get it: it is another user's."""
        name = signal.Signals(number).name
        what = f"{name} cannot be passed on to process {self._pid}: {error.strerror}"
        level = INFO if number in self._kept_signals else WARNING
        self._kept_signals.add(number)
        self._tell(level, f"{what}; as root: kill -{name.removeprefix('SIG')} {self._pid}")

    def _reap(self) -> None:
        """Take the status of every child that has ended, and stop when the program has stopped."""
        flags = os.WEXITED | os.WNOHANG | _WALL_CLONES
        with contextlib.suppress(ChildProcessError):
            while (child := os.waitid(os.P_ALL, 0, flags)) is not None:
                if child.si_pid == self._pid:
                    self._ended, self._ended_at = child, time.monotonic()
                elif child.si_pid == self._agent.pid:
                    self._agent_ended = child
        if self._pid and self._ended is None:
            with contextlib.suppress(ChildProcessError):
                stopped = os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WNOHANG)
                if stopped is not None:
                    _stop_by(stopped.si_status)

    # --- The agent -------------------------------------------------------------------------------

    def _send(self, message: protocol.Message) -> None:
        with contextlib.suppress(OSError):  # its end is noticed when the channel is read
            protocol.send(self._control, message)

    def _on_agent(self) -> None:
        try:
            received = protocol.receive(self._control)
        except BlockingIOError:
            return
        except ProtocolError as error:
            raise SessionFailed("the agent cannot be understood", cause=str(error)) from error
        if received is None:
            self._selector.unregister(self._control)
            self._agent_connected = False
            if self._statistics is None:
                raise self._agent_lost()
            return
        message, fds = received
        if isinstance(message, protocol.Target):
            self._targets[message.id] = fds
            self._on_target(message)
            return
        if isinstance(message, protocol.Ready):
            self._agent_ready = True
            self._session_fds = fds
            for place in message.new_disks:
                path = self._config.disks[place].path
                self._tell(INFO, f"made a new file for a disk tier: {path}")
            return
        protocol.close_all(fds)
        self._on_message(message)

    def _on_target(self, message: protocol.Target) -> None:
        if message.pid == self._pid:
            self._handed_in = True
            self._program_targets.add(message.id)
        self._tell(INFO, f"process {message.pid} is target {message.id}")

    def _on_message(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.Gone):
            protocol.close_all(self._targets.pop(message.id, []))
            self._program_targets.discard(message.id)
        elif isinstance(message, protocol.Statistics):
            self._statistics = message
        elif isinstance(message, protocol.Warn):
            self._tell(ERROR if message.serious else WARNING, message.text)
        elif isinstance(message, protocol.Fatal):
            what = "out of memory" if message.kind == "out_of_memory" else "the agent failed"
            self._failure = SessionFailed(what, cause=message.text)
        elif isinstance(message, protocol.Killed):
            self._on_killed(message)
        elif isinstance(message, protocol.Refused):
            self._on_refused(message)

    def _on_killed(self, message: protocol.Killed) -> None:
        if message.pid == self._pid:
            fate = "has to be killed" if message.goes_on else "was killed"
            what = f"the program (process {message.pid}) {fate}"
            self._failure = self._failure or SessionFailed(what, cause=message.text)
        elif self._failure is None:
            self._tell(ERROR, protocol.fate_of(message))

    def _on_refused(self, message: protocol.Refused) -> None:
        if message.pid == 0:
            raise SessionFailed("cannot start a session", cause=message.text)
        is_program = message.pid == self._pid
        if is_program and self._program_targets and not message.has_given_up:
            self._warn_of_refusal(f"the program's connection was refused: {message.text}")
            return  # it is managed, and stays so
        if is_program:
            # What has handed itself in before is not what was refused now.
            later = f"what process {self._pid} executed"
            what = later if self._handed_in else f'"{self._command[0]}"'
            raise SessionFailed(f"cannot manage {what}", cause=message.text)
        self._warn_of_refusal(f"process {message.pid} is not managed: {message.text}")

    def _warn_of_refusal(self, text: str) -> None:
        """Warn once: a program can be refused as often as it likes."""
        self._tell(INFO if self._warned_of_refusal else WARNING, text)
        self._warned_of_refusal = True

    def _agent_lost(self) -> SessionFailed:
        """Say how the agent ended, which nobody asked it to."""
        if self._failure is not None:
            return self._failure
        self._loop(lambda: self._agent_ended is not None, seconds=0.5)
        how = "has closed its channel"
        if self._agent_ended is not None:
            how = _describe(self._agent_ended)
        return SessionFailed(
            f"the agent (process {self._agent.pid}) {how}",
            cause="the program's evicted pages are lost with it, so the program is killed"
            if self._pid
            else "",
        )

    # --- The end ---------------------------------------------------------------------------------

    def _kill_everything(self) -> None:
        """SIGKILL the program and all that came from it, known or not, and wait for the program.

        A forked child that nobody has heard of yet may have evicted pages too; all orphans come to
        the launcher, so it finds every descendant, generation after generation.
        """
        for fds in self._targets.values():
            for fd in fds:
                with contextlib.suppress(OSError):  # not the pidfd, or gone already
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
        deadline = time.monotonic() + _KILL_SECONDS
        while children := self._children_to_kill():
            for pid in children:
                self._kill(pid)
            if time.monotonic() > deadline:
                break
            select.select([self._signal_fd], [], [], 0.05)
            self._on_signals()

    def _children_to_kill(self) -> set[int]:
        """Return the children that are left, but for the agent and who may not be signalled.

        Hands comes last, and stays with such a one: while it is there, what has left the other's
        memory does not read as zeros.
        """
        children = children_of(os.getpid()) - {self._agent.pid} - self._unkillable
        others = {pid for pid in children if not _is_hands(pid)}
        return others if others or self._unkillable else children

    def _kill(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError as error:
            self._unkillable.add(pid)
            what = f"process {pid} cannot be killed: {error.strerror}"
            why = "it waits, or gets SIGBUS, where it needs memory that had left"
            self._tell(ERROR, f"{what}; {why}; as root: kill -KILL {pid}")
        except ProcessLookupError:
            pass

    def _conclude(self) -> Outcome:
        """Get the statistics, write them, and say how the launcher is to end."""
        self._finish()
        exited = self._ended is not None and self._ended.si_code == os.CLD_EXITED
        if exited and not self._handed_in and self._failure is None:
            self._failure = self._not_handed_in("before it ended")
        if exited and self._handed_in and self._failure is not None:
            self._tell(ERROR, str(self._failure))
            self._failure = None  # the program had ended by itself, and that is what counts
        report = self._write_statistics()
        if self._failure is not None:
            raise self._failure
        assert self._ended is not None
        return Outcome(
            exit_status=self._ended.si_status if exited else None,
            signal=None if exited else self._ended.si_status,
            report=report,
        )

    def _finish(self) -> None:
        """Ask for the statistics, and wait for the agent's end if nothing keeps it."""
        if not self._agent_connected:
            return
        self._send(protocol.Finish(orphans=_orphans({self._agent.pid})))
        try:
            self._loop(lambda: self._statistics is not None, _STATISTICS_SECONDS)
            if self._statistics is not None and not self._statistics.remaining:
                self._loop(lambda: self._agent_ended is not None, _STATISTICS_SECONDS)
        except SessionFailed as error:
            if self._statistics is None:
                self._failure = self._failure or error

    def _write_statistics(self) -> dict[str, Any] | None:
        if self._statistics is None:
            level = INFO if self._stats_file is None else ERROR
            self._tell(level, "there are no statistics: the agent did not send them")
            return None
        report = document(self._ending(), self._statistics)
        if self._stats_file is not None:
            try:
                self._stats_file.write(report)
            except OSError as error:
                what = f"cannot write the statistics to {self._config.stats_path}"
                self._tell(ERROR, f"{what}: {error.strerror}")
        return report

    def _ending(self) -> Ending:
        ended = self._ended
        exited = ended is not None and ended.si_code == os.CLD_EXITED
        status = ended.si_status if ended is not None and exited else None
        return Ending(
            command=self._command,
            exit_status=SessionFailed.run_status if self._failure is not None else status,
            signal=None if ended is None or exited else ended.si_status,
            wall_seconds=self._ended_at - self._started_at if ended is not None else 0.0,
            memory_limit_bytes=self._config.memory_bytes,
            resident_limit_bytes=self._config.resident_bytes,
        )

    def _close(self) -> None:
        """Leave nothing behind; an agent that stays for other targets keeps the folder.

        No target may outlive an agent that has not been told to stay: its evicted pages would
        be lost.
        """
        if self._pid and self._statistics is None:
            self._kill_everything()
        if self._stats_file is not None:
            self._stats_file.close()
        lingers = self._statistics is not None and self._statistics.remaining > 0
        self._control.close()
        if not lingers:
            self._end_agent()
            if self._folder is not None:
                self._folder.close()
        for fds in (self._session_fds, *self._targets.values()):
            protocol.close_all(fds)
        if self._signal_fd >= 0:
            os.close(self._signal_fd)
        self._selector.close()

    def _end_agent(self) -> None:
        """Make sure of the agent's end: it has no target any more.

        But for those that could not be killed: they must not find zeros where pages have left, and
        the agent sees to that when its channel has closed.
        """
        if self._unkillable:
            self._loop(lambda: self._agent_ended is not None, _UNKILLABLE_SECONDS)
        if self._agent_ended is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._agent.pid, signal.SIGKILL)
                os.waitid(os.P_PID, self._agent.pid, os.WEXITED)


def _is_in_our_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == os.getpgrp()
    except PermissionError:  # by a security module: then it is passed on, and may come twice
        return False


def _is_hands(pid: int) -> bool:
    stat = stat_of(pid)
    return stat is not None and stat.is_hands


def _stop_by(number: int) -> None:
    """Stop this process the way the program was stopped, and return when it is continued."""
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])


def _allow_descriptors() -> None:
    """Allow as many descriptors as there may be: several for every target."""
    from . import limits  # noqa: PLC0415 # after the program has started

    limits.lift("NOFILE")


def _has_mapped(pid: int, path: str) -> bool:
    """Tell whether a file is mapped by a process."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
        return os.fsencode(os.path.realpath(path)) in file.read()
    return False


def _orphans(known: set[int]) -> list[int]:
    """Return the living children that are the program's doing, as many as one message holds."""
    orphans = []
    for pid in children_of(os.getpid()) - known:
        stat = stat_of(pid)
        if stat is not None and not stat.is_hands and stat.state != "Z":
            orphans.append(pid)
    return sorted(orphans)[:_ORPHANS_MAX]


def _describe(ended: os.waitid_result) -> str:
    if ended.si_code == os.CLD_EXITED:
        return f"ended with status {ended.si_status}"
    return f"was killed by signal {ended.si_status}"
