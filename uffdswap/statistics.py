# SPDX-License-Identifier: MIT
"""The final statistics: the JSON document of schema `uffdswap.stats/1`, and the file it goes to.

The document is put together here and nowhere else, from the data plane's counters and from what
only the launcher knows. Keys are only ever added, each at the end of its object; the reference is
docs/reference/statistics.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat

from .errors import SetupFailed
from .record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .protocol import Statistics

__all__ = ("SCHEMA", "Ending", "StatsFile", "document", "summary")

SCHEMA = "uffdswap.stats/1"


class Ending(Record):
    """How a launch was and how it ended. One of status and signal is None, or both are set.

    A program that uffdswap had to kill has status 125 and signal 9.
    """

    command: tuple[str, ...]
    exit_status: int | None
    signal: int | None
    wall_seconds: float
    memory_limit_bytes: int | None
    resident_limit_bytes: int | None


def document(ending: Ending, statistics: Statistics) -> dict[str, Any]:
    """Return the statistics as the JSON object that is written."""
    counters = statistics.counters
    return {
        "schema": SCHEMA,
        "command": list(ending.command),
        "exit_status": ending.exit_status,
        "signal": ending.signal,
        "wall_seconds": round(ending.wall_seconds, 6),
        "limits": {
            "memory_bytes": ending.memory_limit_bytes,
            "resident_bytes": ending.resident_limit_bytes,
        },
        "peak": {
            "resident_bytes": counters["resident_peak_bytes"],
            "ram_bytes": counters["ram_peak_bytes"],
            "disk_bytes": counters["disk_peak_bytes"],
        },
        "targets": counters["targets_total"],
        "faults": _faults(counters),
        "evictions": _evictions(counters),
        "tiers": {"ram": _tier("ram", counters), "disk": _tier("disk", counters)},
        "swap": {
            "descriptors": counters["descriptors"],
            "metadata_bytes": counters["metadata_bytes"],
            "demoted_segments": counters["demoted_segments"],
            "promoted_segments": counters["promoted_segments"],
            "compacted_segments": counters["compacted_segments"],
            "packed_pages": counters["packed_pages"],
        },
        "cpu_seconds": {
            "agent_user": statistics.user_seconds,
            "agent_system": statistics.system_seconds,
        },
        "integrity": {
            "verified_pages": counters["verified_pages"],
            "poisoned_pages": counters["poisoned_pages"],
            "vanished_pages": counters["vanished_pages"],
        },
        "handshakes": {"refused": statistics.handshakes_refused},
        "disk": {
            "encrypted": bool(counters["disk_is_encrypted"]),
            "engine": "io_uring" if counters["disk_uses_uring"] else "threads",
        },
    }


def _faults(counters: Mapping[str, int]) -> dict[str, Any]:
    names = ("total", "hole", "standby", "zero", "same", "ram", "disk")
    latency = {
        name: counters[f"latency_{name}_ns"] / 1000 for name in ("p50", "p90", "p99", "p999", "max")
    }
    return {
        **{name: counters[f"faults_{name}"] for name in names},
        "prefetched_pages": counters["prefetched_pages"],
        "prefetch_proven_pages": counters["prefetch_proven"],
        "latency_us": latency,
        "present": counters["faults_present"],
        "deferred": counters["faults_deferred"],
    }


def _evictions(counters: Mapping[str, int]) -> dict[str, int]:
    names = (
        *("pages", "unshared", "clean", "zero", "same", "equal"),
        *("compressed", "incompressible", "ahead", "packed"),
    )
    return {name: counters[f"evicted_{name}"] for name in names}


def _tier(tier: str, counters: Mapping[str, int]) -> dict[str, int]:
    names = ("pages", "original_bytes", "stored_bytes", "segments")
    return {name: counters[f"{tier}_{name}"] for name in names}


class StatsFile:
    """A file that is known to be writable before the program starts, and written at the end.

    The document replaces the file as a whole where its folder allows that; a file in a closed
    folder, a pipe or a device is written to directly. What is stdout or stderr already, as
    /dev/stdout is, gets the document after what is there. Raises `SetupFailed` if nothing will do.
    """

    def __init__(self, path: str) -> None:
        remedy = "give --stats a file that can be written"
        if not path:
            raise SetupFailed("the name of the statistics file is empty", remedy=remedy)
        self._path = os.path.realpath(path)
        self._name = path
        self._temporary: str | None = None
        self._is_stream = False
        try:
            self._fd = self._open()
        except OSError as error:
            what = f"cannot write the statistics to {path}"
            raise SetupFailed(what, cause=str(error.strerror), remedy=remedy) from error

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CLOEXEC
        mode = 0o666
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self._name)  # a pipe in /proc/self/fd has no path of its own
            mode = stat.S_IMODE(status.st_mode)
            if (stream := _stream_of(status)) is not None:
                self._is_stream = True
                return stream
            existing = os.open(self._name, flags | os.O_NONBLOCK)
            if not stat.S_ISREG(status.st_mode):
                os.set_blocking(existing, True)
                return existing
            os.close(existing)
        folder = os.path.dirname(self._path)
        temporary = os.path.join(folder, f".uffdswap-{os.getpid()}-{os.urandom(4).hex()}.tmp")
        try:
            fd = os.open(temporary, flags | os.O_CREAT | os.O_EXCL, mode)
        except PermissionError:
            if not os.path.exists(self._path):
                raise  # that it is not there is not the reason
            return os.open(self._path, flags)
        self._temporary = temporary
        return fd

    def write(self, report: Mapping[str, Any]) -> None:
        """Write the document, and close. Raises `OSError`."""
        data = (json.dumps(report, indent=2) + "\n").encode()
        try:
            is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if is_file and self._temporary is None and not self._is_stream:
                os.ftruncate(self._fd, 0)
            while data:
                data = data[os.write(self._fd, data) :]
            if self._temporary is not None:
                os.replace(self._temporary, self._path)
                self._temporary = None
        finally:
            self.close()

    def close(self) -> None:
        """Leave things as they were, if nothing has been written. Twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            self._temporary = None


def _stream_of(status: os.stat_result) -> int | None:
    """Return a duplicate of stdout or stderr if that is where a file leads to."""
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), status):
                return os.dup(fd)
    return None


def summary(report: Mapping[str, Any]) -> str:
    """Return the one line that a person wants at the end."""
    from .units import format_duration, format_size  # noqa: PLC0415 # the program has ended

    peak, faults = report["peak"], report["faults"]
    p99 = format_duration(faults["latency_us"]["p99"] / 1e6)
    return (
        f"peak {format_size(peak['resident_bytes'])} resident"
        f" and {format_size(peak['ram_bytes'])} kept for it,"
        f" {report['evictions']['pages']} pages out, {faults['total']} faults, p99 {p99}"
    )
