# SPDX-License-Identifier: MIT
"""The files of a session at run time: its folder, its two sockets, the shim.

A session's folder is named after its agent (process and start time, so that a pid used again is
not mistaken for it): the agent outlives the launcher when the program leaves children behind, and
the folder with it. What dead agents left is removed by the next launcher. The folder is closed to
everybody else, because who can reach the socket can hand memory in.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time

from .errors import SetupFailed
from .procfs import stat_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = (
    "SessionFolder",
    "link_flags",
    "listen_for_control",
    "remove_session",
    "session_folders",
    "shim_path",
    "standing_path",
    "standing_socket",
)

_SOCKET = "socket"
_CONTROL = "ctrl"  # no longer than the other, whose path is known to fit
_STANDING = "agent.socket"
_SHIM = "libuffdswap.so"
_SHIM_LINK = "shim.so"
_BACKLOG = 128
_TMP = "/tmp"
_SETTLED_SECONDS = 60.0


class SessionFolder:
    """A session's folder with its listening socket; `close()` removes both."""

    def __init__(self, agent_pid: int, environment: Mapping[str, str]) -> None:
        base = _base_folder(environment)
        _remove_stale(base)
        self.path = os.path.join(base, f"{agent_pid}-{_start_time(agent_pid)}")
        self.socket_path = os.path.join(self.path, _SOCKET)
        try:
            os.mkdir(self.path, 0o700)
            self.listener = _listen(self.socket_path)
        except OSError as error:
            remove_session(self.path)
            cause = "its path is too long" if "too long" in str(error) else str(error)
            remedy = "set XDG_RUNTIME_DIR to a short path of a folder of your own"
            what = f"cannot make the session's socket in {base}"
            raise SetupFailed(what, cause=cause, remedy=remedy) from error

    def link_shim(self, shim: str) -> str:
        """Return a name for the shim that LD_PRELOAD can express: no space, no colon."""
        if not set(shim) & set(" :\t\n"):
            return shim
        link = os.path.join(self.path, _SHIM_LINK)
        os.symlink(shim, link)
        return link

    def close(self) -> None:
        """Remove the folder, unless the agent has done so already."""
        self.listener.close()
        remove_session(self.path)


def listen_for_control(folder: str) -> socket.socket:
    """Make a session's control socket in its folder. Raises `OSError`."""
    return _listen(os.path.join(folder, _CONTROL))


def session_folders(environment: Mapping[str, str]) -> list[tuple[int, str]]:
    """Return agent and control socket of this user's living sessions, wherever they began.

    What dead sessions have left is removed on the way.
    """
    found: dict[str, int] = {}
    for base in _base_folders(environment):
        _remove_stale(base)
        with contextlib.suppress(OSError):
            for name in os.listdir(base):
                pid, _dash, start = name.partition("-")
                if pid.isdecimal() and start.isdecimal():
                    found[os.path.realpath(os.path.join(base, name, _CONTROL))] = int(pid)
    return sorted((pid, path) for path, pid in found.items())


def _base_folders(environment: Mapping[str, str]) -> list[str]:
    """Return where sessions of this user may have their folders; not all need be there."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    bases = [os.path.join(runtime, "uffdswap")] if runtime else []
    bases += [f"/run/user/{os.geteuid()}/uffdswap", "/run/uffdswap"]
    with contextlib.suppress(OSError):
        bases += [
            os.path.join(_TMP, name) for name in os.listdir(_TMP) if name.startswith(_tmp_prefix())
        ]
    return [base for base in bases if _is_own(base)]


def _is_own(path: str) -> bool:
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        closed = not status.st_mode & 0o077
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and closed
    return False


def standing_path(environment: Mapping[str, str]) -> str:
    """Return where a standing agent listens if nothing else is said. Makes the folder."""
    base = _base_folder(environment)
    if os.path.dirname(base) == _TMP:
        with contextlib.suppress(OSError):
            os.rmdir(base)
        raise SetupFailed(
            "there is no place for the agent's socket",
            cause="XDG_RUNTIME_DIR is not set",
            remedy="give --socket PATH in a folder of your own",
        )
    return os.path.join(base, _STANDING)


def standing_socket(path: str) -> socket.socket:
    """Listen at a path, in the place of a dead agent but not of a living one."""
    what = f"cannot listen at {path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:  # by a dead agent's socket, but by any other file as well
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                cause, remedy = "something that is no socket is there", "give --socket another PATH"
                raise SetupFailed(what, cause=cause, remedy=remedy) from None
            os.unlink(path)
        except OSError:
            pass  # not there; whatever else is wrong is said below
        else:
            raise SetupFailed(what, cause="another agent does", remedy="end it, or give --socket")
    try:
        return _listen(path)
    except OSError as error:
        remedy = "give --socket PATH in a folder of your own"
        raise SetupFailed(what, cause=str(error.strerror or error), remedy=remedy) from error


def shim_path() -> str:
    """Return where the shim is; an editable installation keeps it apart from the sources."""
    import uffdswap  # noqa: PLC0415 # the package's folders are known when it is complete

    for folder in uffdswap.__path__:
        path = os.path.join(folder, _SHIM)
        if os.path.exists(path):
            return path
    raise SetupFailed(f"{_SHIM} is missing", remedy="install uffdswap again")


def link_flags() -> list[str]:
    """Return what a compiler needs to link the shim into a program.

    Ubuntu's linker drops libraries of which the program calls nothing, and this one works by being
    loaded: so it is told not to.
    """
    folder = os.path.dirname(shim_path())
    keep = ("-Wl,--push-state,--no-as-needed", "-luffdswap", "-Wl,--pop-state")
    return [f"-I{folder}/include", f"-L{folder}", f"-Wl,-rpath,{folder}", *keep]


def remove_session(path: str) -> None:
    """Remove a session's folder and, if it was made for it alone, the folder around it."""
    for name in (_SOCKET, _CONTROL, _SHIM_LINK):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(path, name))
    with contextlib.suppress(OSError):
        os.rmdir(path)
    base = os.path.dirname(path)
    if os.path.dirname(base) == _TMP and os.path.basename(base).startswith(_tmp_prefix()):
        with contextlib.suppress(OSError):
            os.rmdir(base)


def _tmp_prefix() -> str:
    return f"uffdswap-{os.geteuid()}-"


def _base_folder(environment: Mapping[str, str]) -> str:
    """Return a folder that is ours and closed to others, made if need be."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime:
        _require_own(runtime, "XDG_RUNTIME_DIR=", closed=False)
        return _make_own(os.path.join(runtime, "uffdswap"))
    if os.geteuid() == 0 and os.path.isdir("/run"):
        return _make_own("/run/uffdswap")
    _remove_stale_tmp()
    return _make_own(os.path.join(_TMP, _tmp_prefix() + os.urandom(6).hex()))


def _make_own(path: str) -> str:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        remedy = "set XDG_RUNTIME_DIR to a folder of your own"
        raise SetupFailed(
            f"cannot make {path}", cause=str(error.strerror), remedy=remedy
        ) from error
    _require_own(path, "", closed=True)
    return path


def _require_own(path: str, prefix: str, *, closed: bool) -> None:
    """Refuse a folder that somebody else owns or, if it is to be closed, can enter."""
    what = f"will not use {prefix}{path} for the session's socket"
    remedy = "set XDG_RUNTIME_DIR to a folder of your own"
    try:
        status = os.lstat(path) if closed else os.stat(path)
    except OSError as error:
        raise SetupFailed(what, cause=str(error.strerror), remedy=remedy) from error
    if not stat.S_ISDIR(status.st_mode):
        raise SetupFailed(what, cause="it is not a folder", remedy=remedy)
    if status.st_uid != os.geteuid():
        cause = f"it belongs to user {status.st_uid}, and you are user {os.geteuid()}"
        raise SetupFailed(what, cause=cause, remedy=remedy)
    if closed and status.st_mode & 0o077:
        cause = f"others may enter it (mode {stat.S_IMODE(status.st_mode):04o})"
        raise SetupFailed(what, cause=cause, remedy=f"close it with: chmod 700 {path}")


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        os.fchmod(listener.fileno(), 0o600)  # before bind(), which gives the file this mode
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


# --- What dead sessions left ---------------------------------------------------------------------


def _start_time(pid: int) -> int:
    """Return a process's start time in clock ticks, or 0 if there is no such process."""
    stat = stat_of(pid)
    return stat.start_time if stat is not None else 0


def _remove_stale(base: str) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(base):
            pid, _dash, start = name.partition("-")
            if pid.isdecimal() and start.isdecimal() and _start_time(int(pid)) != int(start):
                remove_session(os.path.join(base, name))


def _remove_stale_tmp() -> None:
    """Remove folders that were made for one session each, when that session is dead."""
    for name in os.listdir(_TMP):
        path = os.path.join(_TMP, name)
        if not name.startswith(_tmp_prefix()):
            continue
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                _remove_stale(path)
                if time.time() - status.st_mtime > _SETTLED_SECONDS:
                    os.rmdir(path)
