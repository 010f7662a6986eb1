# SPDX-License-Identifier: MIT
"""Find the program, and tell before it starts whether the dynamic loader will load the shim.

The loader ignores LD_PRELOAD without a word in static programs and in those that gain rights by
being executed. The handshake would find that out too, but only after the program had run; what can
be known from the file is said before. Where the file cannot be read, the handshake decides.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys

from .errors import BadProgram, ProgramNotExecutable, ProgramNotFound
from .record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("Program", "check", "find", "refusal")

_HEAD_BYTES = 4096
_SCRIPT_HEAD_BYTES = 256  # BINPRM_BUF_SIZE: the kernel reads no more of the first line
_SCRIPT_DEPTH_MAX = 5
_PT_INTERP = 3
_ELF_HEADER_BYTES = 64
_INTERPRETER_BYTES_MAX = 4096
_EM_X86_64 = 62
_MACHINES = {
    3: "32-bit x86",
    40: "32-bit ARM",
    _EM_X86_64: "x86-64",
    183: "64-bit ARM",
    243: "RISC-V",
}
_DEFAULT_PATH = "/bin:/usr/bin"


class Program(Record):
    """A program ready to be started: the file to execute, and its arguments with its name."""

    path: str
    arguments: tuple[str, ...]


class _Elf(Record):
    """What matters of an ELF header."""

    is_64_bit: bool
    machine: int
    interpreter: str | None


def find(command: tuple[str, ...], environment: Mapping[str, str]) -> Program:
    """Look the program up as execvp(3) does.

    Raises `ProgramNotFound` or `ProgramNotExecutable`. A text file without a first line `#!` is a
    shell script, as it is for every other command that starts programs.
    """
    path = _search(command[0], environment)
    head = _read_head(path)
    if head and not head.startswith((b"\x7fELF", b"#!")) and b"\0" not in head[:_SCRIPT_HEAD_BYTES]:
        return Program(path="/bin/sh", arguments=("/bin/sh", path, *command[1:]))
    return Program(path=path, arguments=command)


def check(program: Program) -> None:
    """Raise `BadProgram` if the shim would not be loaded into the program."""
    own = _parse_elf(_read_head(sys.executable) or b"", sys.executable)
    path = program.path
    for _depth in range(_SCRIPT_DEPTH_MAX):
        _check_rights(path)
        head = _read_head(path) or b""
        if not head.startswith(b"#!"):
            elf = _parse_elf(head, path)
            if elf is not None:
                _check_elf(path, elf, own)
            return
        path = _script_interpreter(path, head)


def refusal(path: str, error: OSError) -> ProgramNotFound | ProgramNotExecutable:
    """Return what to raise when the kernel would not execute a program."""
    kind = ProgramNotFound if error.errno in (errno.ENOENT, errno.ENOTDIR) else ProgramNotExecutable
    return kind(f'cannot run "{path}"', cause=str(error.strerror))


def _search(name: str, environment: Mapping[str, str]) -> str:
    if "/" in name:
        _require_executable(name)
        return name
    refused = None
    for folder in environment.get("PATH", _DEFAULT_PATH).split(":") if name else ():
        path = os.path.join(folder or ".", name)
        try:
            _require_executable(path)
        except ProgramNotFound:
            continue
        except ProgramNotExecutable as error:
            refused = refused or error
            continue
        return path
    if refused is not None:
        raise refused
    raise ProgramNotFound(
        f'cannot run "{name}"',
        cause="no such program on the PATH",
        remedy="install it, or give its path",
    )


def _require_executable(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise refusal(path, error) from error
    if stat.S_ISDIR(mode):
        cause, remedy = "it is a folder", "give a program in it"
        raise ProgramNotExecutable(f'cannot run "{path}"', cause=cause, remedy=remedy)
    if not os.access(path, os.X_OK, effective_ids=True):
        cause, remedy = os.strerror(errno.EACCES), f"allow it with: chmod +x {path}"
        raise ProgramNotExecutable(f'cannot run "{path}"', cause=cause, remedy=remedy)


def _read_head(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return None  # executable, but not readable


def _script_interpreter(path: str, head: bytes) -> str:
    words = head[2:_SCRIPT_HEAD_BYTES].split(b"\n", 1)[0].split(None, 1)
    interpreter = os.fsdecode(words[0]) if words else ""
    if not os.path.exists(interpreter):
        cause = f'its first line names "{interpreter}", which does not exist'
        raise ProgramNotFound(f'cannot run "{path}"', cause=cause)
    return interpreter


def _check_rights(path: str) -> None:
    """Refuse what changes credentials on exec: the loader then drops the preload (AT_SECURE)."""
    status = os.stat(path)
    if os.statvfs(path).f_flag & os.ST_NOSUID or _no_new_privileges():
        return
    gained = None
    if status.st_mode & stat.S_ISUID and status.st_uid != os.geteuid():
        gained = f"it is setuid (to user {status.st_uid})"
    elif status.st_mode & stat.S_ISGID and status.st_mode & stat.S_IXGRP:
        if status.st_gid != os.getegid():
            gained = f"it is setgid (to group {status.st_gid})"
    elif os.getuid() != 0 and _has_capabilities(path):
        gained = "it has file capabilities"
    if gained:
        raise BadProgram(
            f'cannot manage "{path}"',
            cause=f"{gained}, and the dynamic loader preloads nothing into such programs",
            remedy="run uffdswap as the user with those rights",
        )


def _no_new_privileges() -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return any(line.split() == ["NoNewPrivs:", "1"] for line in file)


def _has_capabilities(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False  # none, or a file system without them


def _parse_elf(head: bytes, path: str) -> _Elf | None:
    """Read an ELF header; None if the kernel would not understand it either."""
    if len(head) < _ELF_HEADER_BYTES or not head.startswith(b"\x7fELF"):
        return None
    is_64_bit, order = head[4] == 2, ">" if head[5] == 2 else "<"
    (machine,) = struct.unpack_from(order + "H", head, 18)
    with open(path, "rb", buffering=0) as file:
        if is_64_bit:
            found = _interpreter(file.fileno(), head, order + "32xQ14xHH", order + "I4xQ16xQ")
        else:
            found = _interpreter(file.fileno(), head, order + "28xI10xHH", order + "II8xI")
    if found is None:
        return None
    return _Elf(is_64_bit=is_64_bit, machine=machine, interpreter=found or None)


def _interpreter(fd: int, head: bytes, header: str, entry: str) -> str | None:
    """Return the loader that a program header names, empty if none does; None for nonsense.

    `header` finds the table's offset, bytes of an entry and count in the head of the file; `entry`
    finds type, offset and size in an entry.
    """
    table, entry_bytes, count = struct.unpack_from(header, head)
    entries = _read_at(fd, table, entry_bytes * count)
    if entry_bytes < struct.calcsize(entry) or not count or len(entries) < entry_bytes * count:
        return None
    for i in range(count):
        kind, offset, size = struct.unpack_from(entry, entries, i * entry_bytes)
        if kind == _PT_INTERP:
            name = _read_at(fd, offset, min(size, _INTERPRETER_BYTES_MAX))
            return os.fsdecode(name.split(b"\0")[0])
    return ""


def _read_at(fd: int, offset: int, size: int) -> bytes:
    try:
        return os.pread(fd, size, offset)
    except (OSError, OverflowError):
        return b""  # no such place


def _check_elf(path: str, elf: _Elf, own: _Elf | None) -> None:
    what = f'cannot manage "{path}"'
    if own and (elf.machine, elf.is_64_bit) != (own.machine, own.is_64_bit):
        cause = f"it is made for {_machine_name(elf)}, this uffdswap for {_machine_name(own)}"
        raise BadProgram(what, cause=cause)
    if elf.interpreter is None and not (
        own and own.interpreter and _is_same(path, own.interpreter)
    ):
        raise BadProgram(
            what,
            cause="it is linked statically, so that nothing can be preloaded into it",
            remedy="build it with dynamic linking",
        )
    if own and ("musl" in (elf.interpreter or path)) != ("musl" in (own.interpreter or "")):
        cause = f"it uses another C library ({elf.interpreter}) than this uffdswap"
        raise BadProgram(what, cause=cause)


def _machine_name(elf: _Elf) -> str:
    name = _MACHINES.get(elf.machine, f"machine {elf.machine}")
    return "x32" if elf.machine == _EM_X86_64 and not elf.is_64_bit else name


def _is_same(path: str, other: str) -> bool:
    """Tell whether two names are one file: the loader itself may be run as a program."""
    return os.path.exists(other) and os.path.samefile(path, other)
