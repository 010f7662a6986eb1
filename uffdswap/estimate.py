# SPDX-License-Identifier: MIT
"""What swapping a running process would save, found out by looking and without changing anything.

Nothing is stopped, written or made resident: the process's mappings say what would be managed, its
pagemap which pages are there, and a random sample of those is read through /proc/PID/mem and
compressed with LZ4. Apart from the rest because it needs no session, no privilege beyond reading
that process, and no userfaultfd.
"""

from __future__ import annotations

import array
import contextlib
import math
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import lz4.block
import psutil

from .errors import UffdswapError, UsageError
from .smaps import managed_mappings
from .units import format_size, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

__all__ = ("SCHEMA", "Estimate", "Sample", "document", "estimate", "text")

SCHEMA = "uffdswap.estimate/1"
SAMPLE_PAGES = 4096
"""Pages that are read: 16 MiB, for an error of a few percent."""

_PAGE_BYTES = 4096
_CHUNK_PAGES = 1 << 17  # of one look into pagemap: 1 MiB of it
_PAGEMAP_STATE_SHIFT = 61  # present 4, swapped 2, of a file or shared 1
_PRESENT_ANONYMOUS = 4
_METADATA_BYTES = 33  # for each evicted page, in the middle of what was measured
_ZEROS = bytes(_PAGE_BYTES)


@dataclass
class Sample:
    """What was found in the pages that were read."""

    zero: int = 0
    same: int = 0
    equal: int = 0
    compressed: int = 0
    incompressible: int = 0
    stored_bytes: list[int] = field(default_factory=list)
    _seen: set[bytes] = field(default_factory=set)

    @property
    def pages(self) -> int:
        """Return how many pages were read."""
        return len(self.stored_bytes)

    def add(self, page: bytes) -> None:
        """Find out what a page would cost. The first of equal pages costs, the others do not."""
        if page == _ZEROS:
            self.zero += 1
            self.stored_bytes.append(0)
        elif page == page[:8] * (_PAGE_BYTES // 8):
            self.same += 1
            self.stored_bytes.append(0)
        else:
            self._add_content(page)

    def _add_content(self, page: bytes) -> None:
        if page in self._seen:
            self.equal += 1
        self._seen.add(page)
        length = len(lz4.block.compress(page, store_size=False))
        if length < _PAGE_BYTES:
            self.compressed += 1
        else:
            self.incompressible += 1
        # Equal pages are compressed each: how many a whole process has, a sample does not tell.
        self.stored_bytes.append(min(length, _PAGE_BYTES))


@dataclass(frozen=True)
class Estimate:
    """What would happen to a process of which everything that can leave had left."""

    pid: int
    command: str
    anonymous_bytes: int
    managed_bytes: int
    sample: Sample

    @property
    def managed_pages(self) -> int:
        """Return how many pages could leave."""
        return self.managed_bytes // _PAGE_BYTES

    @property
    def stored_bytes(self) -> int:
        """Return what they would cost, what is kept to find them included."""
        if not self.sample.pages:
            return 0
        mean = sum(self.sample.stored_bytes) / self.sample.pages
        return round(self.managed_pages * (mean + _METADATA_BYTES))

    @property
    def error_bytes(self) -> int:
        """Return how far off that is in 19 of 20 cases, for having read a sample only."""
        count = self.sample.pages
        if count < 2 or count >= self.managed_pages:
            return 0
        mean = sum(self.sample.stored_bytes) / count
        variance = sum((one - mean) ** 2 for one in self.sample.stored_bytes) / (count - 1)
        return round(1.96 * self.managed_pages * math.sqrt(variance / count))

    @property
    def saved_bytes(self) -> int:
        """Return what would be saved."""
        return max(0, self.managed_bytes - self.stored_bytes)


def estimate(pid: int, sample_pages: int = SAMPLE_PAGES) -> Estimate:
    """Look at a process. Raises `UffdswapError` if there is none, or no permission."""
    if pid <= 0:
        raise UsageError(f"{pid} is not a process", remedy="give a PID, see: ps")
    try:
        process = psutil.Process(pid)
        command = process.name()
        return _look(pid, command, sample_pages)
    except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError) as error:
        if Path(f"/proc/{pid}").exists():
            raise _without_memory(pid) from error
        raise UffdswapError(f"there is no process {pid}", remedy="see: ps") from error
    except (psutil.AccessDenied, PermissionError) as error:
        cause, remedy = _why_denied(pid)
        raise UffdswapError(f"may not look at process {pid}", cause=cause, remedy=remedy) from error


def _without_memory(pid: int) -> UffdswapError:
    return UffdswapError(
        f"process {pid} has no memory that could be swapped",
        cause="it is part of the kernel, or has ended",
    )


def _why_denied(pid: int) -> tuple[str, str]:
    """Return cause and remedy for a process that may not be read."""
    owner = os.geteuid()
    with contextlib.suppress(psutil.Error):
        owner = psutil.Process(pid).uids().effective
    if owner != os.geteuid():
        return f"it belongs to user {owner}, and you are user {os.geteuid()}", "try as root"
    if owner == 0:
        cause = "root has no CAP_SYS_PTRACE here, or a security module forbids it"
        return cause, "try outside the container, or start that with --cap-add SYS_PTRACE"
    return "the system lets only its parents look at it (ptrace rules)", "try as root"


def _look(pid: int, command: str, sample_pages: int) -> Estimate:
    folder = Path(f"/proc/{pid}")
    with (
        (folder / "maps").open("rb") as maps,
        (folder / "pagemap").open("rb", buffering=0) as pagemap,
        (folder / "mem").open("rb", buffering=0) as memory,
    ):
        mappings = list(managed_mappings(maps.read().decode(errors="replace").splitlines()))
        if not mappings:
            raise _without_memory(pid)
        counts = [
            (start, sum(1 for _page in _present(pagemap.fileno(), start, pages)))
            for start, pages in _chunks(mappings)
        ]
        sample = Sample()
        for address in _choose(pagemap.fileno(), mappings, counts, sample_pages, pid):
            with contextlib.suppress(OSError):  # it has just gone
                page = os.pread(memory.fileno(), _PAGE_BYTES, address)
                if len(page) == _PAGE_BYTES:
                    sample.add(page)
    return Estimate(
        pid=pid,
        command=command,
        anonymous_bytes=_anonymous_bytes(folder),
        managed_bytes=sum(count for _start, count in counts) * _PAGE_BYTES,
        sample=sample,
    )


def _chunks(mappings: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield start and length in pages of stretches that are looked at in one go."""
    for start, end in mappings:
        for at in range(start, end, _CHUNK_PAGES * _PAGE_BYTES):
            yield at, min(_CHUNK_PAGES, (end - at) // _PAGE_BYTES)


def _present(pagemap: int, start: int, pages: int) -> Iterator[int]:
    """Yield the addresses of the anonymous pages that are there."""
    data = os.pread(pagemap, pages * 8, start // _PAGE_BYTES * 8)
    entries = array.array("Q", data[: len(data) // 8 * 8])
    for number, entry in enumerate(entries):
        if entry >> _PAGEMAP_STATE_SHIFT == _PRESENT_ANONYMOUS:
            yield start + number * _PAGE_BYTES


def _choose(
    pagemap: int,
    mappings: Iterable[tuple[int, int]],
    counts: Iterable[tuple[int, int]],
    sample_pages: int,
    seed: int,
) -> Iterator[int]:
    """Yield the addresses of a random sample. Every page that is there has the same chance."""
    counted = list(counts)
    total = sum(count for _start, count in counted)
    ranks = random.Random(seed).sample(range(total), min(total, sample_pages))
    ranks.sort(reverse=True)
    before = 0
    for (start, pages), (_start, count) in zip(_chunks(mappings), counted, strict=True):
        wanted = set()
        while ranks and ranks[-1] < before + count:
            wanted.add(ranks.pop() - before)
        before += count
        if wanted:
            there = enumerate(_present(pagemap, start, pages))
            yield from (address for rank, address in there if rank in wanted)


def _anonymous_bytes(folder: Path) -> int:
    for line in (folder / "status").read_text(errors="replace").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


# --- Telling -------------------------------------------------------------------------------------


def document(found: Estimate) -> dict[str, Any]:
    """Return an estimate as the JSON object of schema `uffdswap.estimate/1`."""
    sample = found.sample
    return {
        "schema": SCHEMA,
        "pid": found.pid,
        "command": found.command,
        "anonymous_bytes": found.anonymous_bytes,
        "managed_bytes": found.managed_bytes,
        "sample": {
            "pages": sample.pages,
            "zero": sample.zero,
            "same": sample.same,
            "compressed": sample.compressed,
            "incompressible": sample.incompressible,
            "equal": sample.equal,
        },
        "stored_bytes": found.stored_bytes,
        "stored_error_bytes": found.error_bytes,
        "saved_bytes": found.saved_bytes,
    }


def text(found: Estimate, *, exact: bool = False) -> str:
    """Return an estimate for people."""
    sample = found.sample
    shares = (
        ("zeros", sample.zero),
        ("one repeated word", sample.same),
        ("compressible", sample.compressed),
        ("not compressible", sample.incompressible),
        ("equal to another of these", sample.equal),
    )

    def size(size_bytes: int) -> str:
        return f"{size_bytes} B" if exact else format_size(size_bytes)

    lines = [
        f"process {found.pid} ({printable(found.command)})",
        _row("anonymous memory resident", size(found.anonymous_bytes)),
        _row("of which could leave", size(found.managed_bytes)),
    ]
    if not sample.pages:
        return "\n".join([*lines, "nothing of it is there now"])
    lines.append(_row("pages looked at", str(sample.pages)))
    lines += [_row(f"  {name}", f"{count / sample.pages:.1%}") for name, count in shares if count]
    ratio = found.managed_bytes / max(1, found.stored_bytes)
    lines += [
        _row("it would be stored in", f"{size(found.stored_bytes)} ({ratio:.1f}x)"),
        _row("  give or take", size(found.error_bytes)),
        _row("saved, if all of it left", size(found.saved_bytes)),
    ]
    return "\n".join(lines)


def _row(name: str, value: str) -> str:
    return f"  {name:<30}{value}"
