# SPDX-License-Identifier: MIT
"""The C data plane as annotated Python.

The one module that imports ``_native``: past it there are records and plain ``int``, and no
cffi object. Every call releases the interpreter's lock while it is in C.
"""

from __future__ import annotations

import enum
import errno
import os

from uffdswap._native import ffi, lib

from . import runtime
from .record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Any, Self

__all__ = (
    "Event",
    "EventKind",
    "NativeError",
    "NativeSession",
    "Probe",
    "Statistics",
    "TargetFigures",
    "Tier",
    "probe",
    "shim_path",
)

_NO_LIMIT = 2**64 - 1  # as the C interface spells what is None here

_FDS_MAX = 64
_TIERS_MAX = 16
_TIER_KINDS = {
    lib.USW_TIER_KIND_RAM: "ram",
    lib.USW_TIER_KIND_FOLDER: "folder",
    lib.USW_TIER_KIND_FILE: "file",
    lib.USW_TIER_KIND_DEVICE: "device",
}
_TIER_STATES = {
    lib.USW_TIER_IS_ACTIVE: "active",
    lib.USW_TIER_IS_FULL: "full",
    lib.USW_TIER_IS_FAILING: "failing",
    lib.USW_TIER_IS_LEAVING: "removing",
}
_ON_FULL = {
    None: lib.USW_ON_FULL_AUTO,
    "wait": lib.USW_ON_FULL_WAIT,
    "kill": lib.USW_ON_FULL_KILL,
}


class NativeError(OSError):
    """A call of the data plane failed; ``strerror`` is its sentence for the user."""


class Probe(Record):
    """What the kernel lets this process do. Fields ending in ``_error`` are errno values or 0."""

    open_error: int
    syscall_error: int
    device_error: int
    api_error: int
    sysctl_unprivileged: int
    features: int
    features_missing: int
    has_move: bool
    has_pagemap_scan: bool
    has_clone3: bool
    has_ptrace_capability: bool
    page_bytes: int


class Statistics(Record):
    """One reading of every counter and gauge; names and meaning are those of the C header."""

    targets_total: int
    targets_now: int
    targets_without_hands: int

    resident_bytes: int
    resident_peak_bytes: int
    ram_bytes: int
    ram_peak_bytes: int
    standby_pages: int
    metadata_bytes: int
    descriptors: int

    faults_total: int
    faults_hole: int
    faults_standby: int
    faults_zero: int
    faults_same: int
    faults_ram: int
    faults_disk: int
    faults_present: int
    faults_deferred: int
    prefetched_pages: int
    prefetch_proven: int
    latency_p50_ns: int
    latency_p90_ns: int
    latency_p99_ns: int
    latency_p999_ns: int
    latency_max_ns: int

    evicted_pages: int
    evicted_unshared: int
    evicted_clean: int
    evicted_zero: int
    evicted_same: int
    evicted_equal: int
    evicted_ahead: int
    evicted_packed: int
    evicted_compressed: int
    evicted_incompressible: int
    evict_refused: int

    ram_pages: int
    ram_original_bytes: int
    ram_stored_bytes: int
    ram_segments: int

    compacted_segments: int
    packed_pages: int
    verified_pages: int
    poisoned_pages: int
    vanished_pages: int
    out_of_memory: int

    disk_pages: int
    disk_original_bytes: int
    disk_stored_bytes: int
    disk_segments: int
    disk_peak_bytes: int
    demoted_segments: int
    promoted_segments: int
    disk_is_encrypted: int
    disk_uses_uring: int
    waits_for_room: int


class Tier(Record):
    """One tier, as it is now; sizes that have no limit are None, `path` is empty for RAM.

    The kind is `ram`, `folder`, `file` or `device`, the state `active`, `full`, `failing` (its last
    write failed) or `removing`.
    """

    id: int
    name: str
    kind: str
    path: str
    priority: int
    state: str
    is_encrypted: bool
    cap_bytes: int | None
    free_bytes: int | None
    segments: int
    pages: int
    original_bytes: int
    stored_bytes: int


class TargetFigures(Record):
    """What one target holds and has done; see ``struct usw_target_figures``. No pid is 0."""

    id: int
    pid: int
    resident_bytes: int
    evicted_pages: int
    zero_pages: int
    same_pages: int
    standby_pages: int
    object_pages: int
    ram_pages: int
    disk_pages: int
    ram_stored_bytes: int
    disk_stored_bytes: int
    faults: int
    refaults: int


class EventKind(enum.IntEnum):
    """What an event is about; see ``enum usw_event_kind``."""

    TARGET_ADDED = lib.USW_EVENT_TARGET_ADDED
    TARGET_GONE = lib.USW_EVENT_TARGET_GONE
    TARGET_KILLED = lib.USW_EVENT_TARGET_KILLED
    NOT_KILLED = lib.USW_EVENT_NOT_KILLED
    OUT_OF_MEMORY = lib.USW_EVENT_OUT_OF_MEMORY
    POISONED = lib.USW_EVENT_POISONED
    WARNING = lib.USW_EVENT_WARNING
    ALONE = lib.USW_EVENT_ALONE
    TIER_EMPTY = lib.USW_EVENT_TIER_EMPTY
    TIER_REMOVED = lib.USW_EVENT_TIER_REMOVED
    TIER_KEPT = lib.USW_EVENT_TIER_KEPT
    FULL = lib.USW_EVENT_FULL
    ROOM = lib.USW_EVENT_ROOM
    REQUEST_DONE = lib.USW_EVENT_REQUEST_DONE


class Event(Record):
    """Something the data plane has to tell; target and pid are 0 where they mean nothing."""

    kind: EventKind
    target_id: int
    pid: int
    text: str


def probe() -> Probe:
    """Ask the kernel, in under a millisecond and without any lasting effect."""
    raw: Any = ffi.new("struct usw_probe *")
    lib.usw_probe_run(raw)
    return Probe(
        open_error=raw.open_error,
        syscall_error=raw.syscall_error,
        device_error=raw.device_error,
        api_error=raw.api_error,
        sysctl_unprivileged=raw.sysctl_unprivileged,
        features=raw.features,
        features_missing=raw.features_missing,
        has_move=bool(raw.has_move),
        has_pagemap_scan=bool(raw.has_pagemap_scan),
        has_clone3=bool(raw.has_clone3),
        has_ptrace_capability=bool(raw.has_ptrace_capability),
        page_bytes=raw.page_bytes,
    )


def shim_path() -> Path:
    """Return where the preload library is, which an editable installation keeps elsewhere."""
    from pathlib import Path  # noqa: PLC0415 # slow to import, and the agent has no use for it

    return Path(runtime.shim_path())


def _text(raw: Any) -> str:
    text: Any = ffi.string(raw)
    return str(text, "utf-8", "replace")


def _path(raw: Any) -> str:
    path: Any = ffi.string(raw)
    return os.fsdecode(path)


def _raw_limit(limit_bytes: int | None) -> int:
    return _NO_LIMIT if limit_bytes is None else limit_bytes


def _limit(raw: int) -> int | None:
    return None if raw == _NO_LIMIT else raw


def _check(result: int, error: Any) -> int:
    """Return a result that is not negative; raise the others with the text the C side filled in."""
    if result >= 0:
        return result
    raise NativeError(-result, _text(error.text) or os.strerror(-result))


def _requested(result: int) -> int:
    if result < 0:
        raise NativeError(-result, os.strerror(-result))
    return result


class NativeSession:
    """One session of the data plane: its memory, its threads and its targets.

    Not thread-safe: one control thread owns it. Any use after ``close()`` raises ``NativeError``
    with ``EBADF``.
    """

    def __init__(  # noqa: PLR0913 # one a field of struct usw_config
        self,
        *,
        memory_limit_bytes: int | None = None,
        resident_limit_bytes: int | None = None,
        stress_pages_per_second: int = 0,
        fault_threads: int = 0,
        disk_is_encrypted: bool = True,
        on_full: str | None = None,
    ) -> None:
        self._session: Any = None
        config: Any = ffi.new("struct usw_config *")
        config.memory_limit_bytes = _raw_limit(memory_limit_bytes)
        config.resident_limit_bytes = _raw_limit(resident_limit_bytes)
        config.stress_pages_per_second = stress_pages_per_second
        config.fault_threads = fault_threads
        config.disk_plain = not disk_is_encrypted
        config.on_full = _ON_FULL[on_full]
        session: Any = ffi.new("struct usw_session **")
        error: Any = ffi.new("struct usw_error *")
        _check(lib.usw_session_create(config, session, error), error)
        self._session = session[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and give everything back. Targets should be gone; twice is fine."""
        session, self._session = self._session, None
        if session is not None:
            lib.usw_session_destroy(session)

    def _open(self) -> Any:
        if self._session is None:
            raise NativeError(errno.EBADF, "the session is closed")
        return self._session

    def event_fd(self) -> int:
        """Return a descriptor that is readable while ``next_event()`` has something."""
        return lib.usw_session_event_fd(self._open())

    def next_event(self) -> Event | None:
        """Take the oldest event, or return None. Does not block."""
        raw: Any = ffi.new("struct usw_event *")
        if not lib.usw_session_next_event(self._open(), raw):
            return None
        return Event(
            kind=EventKind(raw.kind), target_id=raw.target_id, pid=raw.pid, text=_text(raw.text)
        )

    def add_target(
        self, connection: int, pidfd: int, pid: int, hello: bytes, fds: Sequence[int]
    ) -> bool:
        """Finish a handshake; the descriptors are the session's from now on, on failure too.

        Returns whether the caller keeps ``connection`` open for a second hello. Raises
        ``NativeError``: EPROTO for garbage, EPROTONOSUPPORT for another version, EPERM where
        userfaultfd is refused, ENOENT for a fork nobody knows, or what a system call said.
        """
        error: Any = ffi.new("struct usw_error *")
        descriptors: Any = ffi.new("int[]", list(fds))
        result = lib.usw_target_add(
            self._open(), connection, pidfd, pid, hello, len(hello), descriptors, len(fds), error
        )
        return _check(result, error) == 1

    def fds(self) -> list[int]:
        """Return the session's memfds. They stay the session's: duplicate what is to be kept."""
        descriptors: Any = ffi.new("int[]", _FDS_MAX)
        count = lib.usw_session_fds(self._open(), descriptors, _FDS_MAX)
        return list(descriptors[0:count])

    def target_fds(self, target_id: int) -> list[int]:
        """Return duplicates, the caller's to close, of what a successor would need for a target.

        Empty if the target is gone.
        """
        descriptors: Any = ffi.new("int[]", _FDS_MAX)
        count = lib.usw_target_fds(self._open(), target_id, descriptors, _FDS_MAX)
        return list(descriptors[0:count]) if count > 0 else []

    def set_limits(
        self, *, memory_limit_bytes: int | None, resident_limit_bytes: int | None
    ) -> None:
        """Change the limits while the session runs; None for none."""
        lib.usw_session_set_limits(
            self._open(), _raw_limit(memory_limit_bytes), _raw_limit(resident_limit_bytes)
        )

    def add_tier(
        self,
        path: str,
        *,
        name: str | None = None,
        cap_bytes: int | None = None,
        priority: int = 0,
    ) -> int:
        """Add a disk tier, a folder, a file or a block device, and return its ID.

        Higher priorities are filled first, and of those the tier that was added first. Raises
        `NativeError` with a sentence for the user if the place cannot be used.
        """
        error: Any = ffi.new("struct usw_error *")
        raw_name: Any = ffi.NULL if name is None else os.fsencode(name)
        result = lib.usw_session_tier_add(
            self._open(), os.fsencode(path), raw_name, _raw_limit(cap_bytes), priority, error
        )
        return _check(result, error)

    def remove_tier(self, name: str) -> int:
        """Begin to remove a disk tier, by name or path, and return its ID.

        A TIER_REMOVED or a TIER_KEPT event with this ID tells the end; a TIER_EMPTY event comes
        before, if it held something in a file of its own. Raises `NativeError`,
        nothing having happened: ENOENT, EALREADY, or ENOSPC if what is left cannot hold what is in
        it.
        """
        error: Any = ffi.new("struct usw_error *")
        return _check(lib.usw_session_tier_remove(self._open(), os.fsencode(name), error), error)

    def tiers(self) -> list[Tier]:
        """Describe every tier, RAM first."""
        raw: Any = ffi.new("struct usw_tier_info[]", _TIERS_MAX)
        count = lib.usw_session_tier_list(self._open(), raw, _TIERS_MAX)
        return [
            Tier(
                id=raw[i].id,
                name=_text(raw[i].name),
                kind=_TIER_KINDS[raw[i].kind],
                path=_path(raw[i].path),
                priority=raw[i].priority,
                state=_TIER_STATES[raw[i].condition],
                is_encrypted=bool(raw[i].is_encrypted),
                cap_bytes=_limit(raw[i].cap_bytes),
                free_bytes=_limit(raw[i].free_bytes),
                segments=raw[i].segments,
                pages=raw[i].pages,
                original_bytes=raw[i].original_bytes,
                stored_bytes=raw[i].stored_bytes,
            )
            for i in range(count)
        ]

    def statistics(self) -> Statistics:
        """Read every counter and gauge."""
        raw: Any = ffi.new("struct usw_statistics *")
        lib.usw_session_statistics(self._open(), raw)
        return Statistics(**{name: getattr(raw, name) for name in Statistics.field_names()})

    def targets(self, after_id: int, count_max: int) -> list[TargetFigures]:
        """Read the figures of the next targets by ID; none if there are no more."""
        raw: Any = ffi.new("struct usw_target_figures[]", count_max)
        count = lib.usw_session_targets(self._open(), after_id, raw, count_max)
        names = TargetFigures.field_names()
        return [
            TargetFigures(**{name: getattr(raw[i], name) for name in names}) for i in range(count)
        ]

    def reclaim(self, target_id: int, pages: int) -> int:
        """Ask for some pages to be evicted, from all targets for ID 0; return the request.

        Like ``park`` and ``restore`` it raises ``NativeError``: ESRCH if there is no such target,
        EBUSY if too much is asked for at once. ``result`` tells the end.
        """
        return _requested(lib.usw_session_reclaim(self._open(), target_id, pages))

    def park(self, target_id: int) -> int:
        """Ask for all of a target to be evicted; return the request."""
        return _requested(lib.usw_session_park(self._open(), target_id))

    def restore(self, target_id: int) -> int:
        """Ask for all of a target to be brought back; return the request."""
        return _requested(lib.usw_session_restore(self._open(), target_id))

    def result(self, request: int) -> int | None:
        """Return how many pages a request has moved, or None while it goes on.

        Raises ``NativeError`` with ESRCH if its target was gone first. It is to be asked again
        only after None.
        """
        pages: Any = ffi.new("uint64_t *")
        code = lib.usw_session_result(self._open(), request, pages)
        if code < 0:
            raise NativeError(-code, os.strerror(-code))
        return int(pages[0]) if code else None

    def kill_all(self, why: str) -> None:
        """SIGKILL every target, whatever state it is in; ``why`` becomes the text of its event."""
        lib.usw_session_kill_all(self._open(), why.encode())
