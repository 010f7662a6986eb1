# SPDX-License-Identifier: MIT
"""Find the processes of a session that no limit holds for, and say why.

Whoever executes something into which the shim cannot be loaded leaves in silence: a static program
says nothing, nor does one in a container that lacks the shim's file. So the agent looks at who is
below the program from time to time. A process is told of when two looks have found it, since
between its start and its handshake every process is without a limit, and each name once: others
of that name are like it. Who has the shim and cannot join for want of something else tells so
itself, or the data plane does.
"""

from __future__ import annotations

import _thread
import os
import time

from . import procfs
from .errors import UffdswapError
from .record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = ("LOOK_SECONDS", "Lookout", "Watch")

LOOK_SECONDS = 3.0
"""How long there is between two looks at least, and nothing is said of who is gone by then."""

_REST = 2000  # a look is followed by a rest of so many times the processor time it took
_NAMES_MAX = 16
_UNSEEN_STATES = "ZXTt"  # ended, or stopped: perhaps before the loader has run
_SOCKET = "_UFFDSWAP_SOCKET"
_AREA = b"/memfd:uffdswap-area"
_SHIM = "libuffdswap.so"
_SHIM_NAMES = (_SHIM, "shim.so")  # the second where LD_PRELOAD could not express the first


class _Seen(Record):
    """One image of a process, or nearly: who executes another program changes its name."""

    pid: int
    start_time: int
    name: bytes


class Lookout:
    """Looks at the processes of one session.

    `is_preloaded` says that all that is executed is to have the shim, by LD_PRELOAD.
    """

    def __init__(self, tell: Callable[[str], None], *, is_preloaded: bool) -> None:
        self._tell = tell
        self._is_preloaded = is_preloaded
        own = procfs.stat_of(os.getpid())
        self._since = own.start_time if own is not None else 0
        self._seen: set[_Seen] = set()
        self._judged: set[_Seen] = set()
        self._told: set[bytes] = set()
        self._known: Collection[int] | None = None
        self._filters = _filters_of(os.getpid())
        self.has_told_of_shim = False
        """Whether one was told of that has the shim and could not join."""

    def look(
        self,
        roots: Iterable[int],
        managed: Collection[int],
        known: Collection[int] | None = None,
    ) -> float:
        """Look at the processes at and below `roots`; return in how many seconds to do it again.

        `known` are those that have told themselves that they are not managed, or may yet; None: who
        they are is not to be said.
        """
        start = time.thread_time()
        self._known = known
        seen = self._below(roots, managed)
        self._judged &= seen
        for one in sorted(seen & self._seen - self._judged, key=lambda one: one.pid):
            self._judged.add(one)
            self._judge(one)
        self._seen = seen
        return max(LOOK_SECONDS, _REST * (time.thread_time() - start))

    def _below(self, roots: Iterable[int], managed: Collection[int]) -> set[_Seen]:
        seen = set()
        for pid in procfs.descendants_of(roots).difference(managed, (os.getpid(),)):
            stat = procfs.stat_of(pid)
            if stat is None or stat.state in _UNSEEN_STATES or stat.is_hands:
                continue
            if stat.start_time >= self._since:  # who is older came to the launcher by exec
                seen.add(_Seen(pid=pid, start_time=stat.start_time, name=stat.name))
        return seen

    def _judge(self, one: _Seen) -> None:
        if one.name in self._told or len(self._told) >= _NAMES_MAX:
            return
        maps = _read(one.pid, "maps")
        why = self._why_without_limit(one.pid, maps)
        if why is not None:
            self._told.add(one.name)
            self.has_told_of_shim |= _has_shim(maps)
            name = one.name.decode(errors="backslashreplace")
            self._tell(f"process {one.pid} ({name}) runs without a limit: {why}")

    def _why_without_limit(self, pid: int, maps: bytes | None) -> str | None:
        """Return what the user is to know; None: nothing, or others tell."""
        user = _user_of(pid)
        variables = _variables_of(pid)
        if user is None or (variables or {}).get("UFFDSWAP_DISABLE") == "1":
            return None
        if maps is not None and _AREA in maps:
            return None  # in the memory of a managed process
        if user != os.geteuid():
            remedy = "run uffdswap as that user"
            return f"it is user {user}'s, and a session has processes of one user only; {remedy}"
        if not maps or variables is None:
            return None  # it has ended, or may not be looked at
        if _has_shim(maps):
            path = variables.get(_SOCKET)
            return self._why_not_there(pid, _SOCKET, path) or self._why_silent(pid, path)
        shim = _preloaded_shim(variables)
        why = _why_not_loadable(pid) or self._why_not_there(pid, "LD_PRELOAD", shim)
        return why or (f"it could not load {shim}; LD_DEBUG=libs shows why" if shim else None)

    def _why_silent(self, pid: int, path: str | None) -> str | None:
        """Return why a process with all it needs has not joined; None: it tells so itself."""
        if path is None or self._known is None or pid in self._known:
            return None
        if _filters_of(pid) > self._filters:
            return "its filter of system calls (seccomp) keeps the library from joining"
        return (
            "it was forked by a bare system call (clone, clone3), of which the library knows "
            "nothing; fork by the C library"
        )

    def _why_not_there(self, pid: int, variable: str, path: str | None) -> str | None:
        if path is None:
            return f"{variable} is not in its environment any more" if self._is_preloaded else None
        try:
            os.stat(f"/proc/{pid}/root{path}")
        except FileNotFoundError:
            remedy = f"make {os.path.dirname(path)} visible there, with the same path"
            return f"it runs where {path} is not (a container, a chroot); {remedy}"
        except OSError:
            pass  # not for us to know
        return None


class Watch:
    """Has a lookout look in a thread of its own, and tells of the end by a descriptor.

    A look goes through files of other processes, and where those are may be nobody who answers: a
    network file system without its server, say. Who looks may wait for ever then, and nobody else.
    """

    def __init__(self, *, is_preloaded: bool) -> None:
        self.lookout = Lookout(self._tell, is_preloaded=is_preloaded)
        self._texts: list[str] = []
        self._rest: float | None = None

    def begin(
        self, roots: Iterable[int], managed: Collection[int], known: Collection[int] | None
    ) -> int:
        """Begin a look, if none is under way; return what is readable when it has ended.

        Raises `OSError` or `RuntimeError` if there is no descriptor or no thread to be had.
        """
        event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            _thread.start_new_thread(self._look, (event_fd, roots, managed, known))
        except RuntimeError:
            os.close(event_fd)
            raise
        return event_fd

    def end(self, event_fd: int) -> tuple[list[str], float | None]:
        """Return what to tell, and in how many seconds to look again; None: it has failed."""
        os.close(event_fd)
        texts, self._texts = self._texts, []
        return texts, self._rest

    def _tell(self, text: str) -> None:
        self._texts.append(text)

    def _look(
        self,
        event_fd: int,
        roots: Iterable[int],
        managed: Collection[int],
        known: Collection[int] | None,
    ) -> None:
        self._rest = None
        try:
            self._rest = self.lookout.look(roots, managed, known)
        except OSError:
            pass  # no descriptor left, say
        finally:
            os.eventfd_write(event_fd, 1)


def _has_shim(maps: bytes | None) -> bool:
    return maps is not None and b"/" + _SHIM.encode() in maps


def _read(pid: int, name: str) -> bytes | None:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return None  # gone, or not for us to read


def _status_of(pid: int, name: bytes) -> list[bytes]:
    """Return the words behind a name in /proc/PID/status, if there are any."""
    for line in (_read(pid, "status") or b"").splitlines():
        found, _colon, rest = line.partition(b":")
        if found == name:
            return rest.split()
    return []


def _user_of(pid: int) -> int | None:
    """Return the effective user, which the handshake goes by."""
    words = _status_of(pid, b"Uid")
    return int(words[1]) if words else None


def _filters_of(pid: int) -> int:
    """Return how many filters of system calls a process has; 0 before Linux 5.9, too."""
    words = _status_of(pid, b"Seccomp_filters")
    return int(words[0]) if words else 0


def _variables_of(pid: int) -> dict[str, str] | None:
    """Return the environment with which the image was started; None if it may not be read."""
    data = _read(pid, "environ")
    if data is None:
        return None
    pairs = (entry.partition("=") for entry in os.fsdecode(data).split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def _preloaded_shim(variables: dict[str, str]) -> str | None:
    """Return the path by which LD_PRELOAD names the shim, if it does."""
    for entry in variables.get("LD_PRELOAD", "").replace(":", " ").split():
        if os.path.basename(entry) in _SHIM_NAMES:
            return entry
    return None


def _why_not_loadable(pid: int) -> str | None:
    """Return why no loader would preload anything into the program: it is static, say."""
    from . import elf  # noqa: PLC0415 # a tenth of a MiB of the budget, where all are managed

    try:
        elf.check(elf.Program(path=f"/proc/{pid}/exe", arguments=()))
    except UffdswapError as error:
        return error.cause
    except OSError:
        pass  # it has ended, or its file cannot be looked at
    return None
