# SPDX-License-Identifier: MIT
"""The few system calls the launcher needs that Python does not offer.

ctypes is enough for them and keeps the launcher free of the native module: it goes on working,
and can clean up, whatever happens to the data plane.
"""

from __future__ import annotations

import ctypes
import os
import struct

from .record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = (
    "SI_KERNEL",
    "SignalInfo",
    "become_subreaper",
    "forbid_core_dump",
    "read_signals",
    "signalfd",
)

SI_KERNEL = 0x80
"""Sent by the kernel itself: by the terminal, to a whole process group."""

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_SFD_CLOEXEC = os.O_CLOEXEC
_SFD_NONBLOCK = os.O_NONBLOCK
_SIGSET_BYTES = 128
_SIGINFO_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)


class SignalInfo(Record):
    """A signal that arrived, and the kernel's word on where it comes from."""

    number: int
    code: int


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def become_subreaper() -> None:
    """Inherit the orphans among this process's descendants."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def forbid_core_dump() -> None:
    """Let this process die without a core file, whatever limit and pattern say."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def signalfd(signals: Iterable[int]) -> int:
    """Return a descriptor, not blocking, that delivers blocked signals."""
    mask = ctypes.create_string_buffer(_SIGSET_BYTES)
    _checked(_libc.sigemptyset(mask), "sigemptyset")
    for number in signals:
        _checked(_libc.sigaddset(mask, int(number)), "sigaddset")
    return _checked(_libc.signalfd(-1, mask, _SFD_CLOEXEC | _SFD_NONBLOCK), "signalfd")


def read_signals(fd: int) -> list[SignalInfo]:
    """Take all signals that have arrived."""
    found: list[SignalInfo] = []
    try:
        while data := os.read(fd, 16 * _SIGINFO_BYTES):
            for start in range(0, len(data), _SIGINFO_BYTES):
                number, _errno, code = struct.unpack_from("Iii", data, start)
                found.append(SignalInfo(number=number, code=code))
    except BlockingIOError:
        pass
    return found
