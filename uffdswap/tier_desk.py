# SPDX-License-Identifier: MIT
"""The agent's side of `uffdswap tier`: what there is, one more, one less.

Apart from the control server because a removal has a story: it goes on while its client is told how
far it is, or has gone; and how it ended must be there when it is asked for.
"""

from __future__ import annotations

import _thread
import os
import time

from .control import Failed, Leaving, Removed, TierAdd, TierRemove, Tiers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import protocol
    from ._lib import NativeSession, Tier

__all__ = ("PRIORITY_MAX", "SLOT_BYTES", "TierDesk")

SLOT_BYTES = (1 << 20) + 2048 * 16
"""From one slot of a tier to the next: a segment, and the tags of the most objects it has."""
PRIORITY_MAX = 32767
"""The highest priority of a tier, as of swapon(8)."""
_ANSWER_SECONDS = 1.0
_SILENT_MAX = 8
_REMOVALS_MAX = 32  # tiers have eight places, so that no removal under way is ever forgotten


class _Removal:
    """A removal, under way or over."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.started = time.monotonic()
        self.moved_seconds: float | None = None  # None: not all has moved
        self.seconds: float | None = None  # None: it goes on
        self.why_kept = ""

    def empty(self) -> None:
        if self.moved_seconds is None:
            self.moved_seconds = time.monotonic() - self.started

    def end(self, why_kept: str) -> None:
        if self.seconds is None:
            self.empty()  # where there is no file to be given back
            self.seconds = time.monotonic() - self.started
            self.why_kept = why_kept


class _Look:
    """A look at a path, and whether nothing was there."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.found_nothing = False

    def take(self, waits: _thread.LockType) -> None:
        try:
            os.stat(self._path)  # noqa: PTH116 # pathlib is not imported by the agent
        except FileNotFoundError:
            self.found_nothing = True
        except OSError:
            pass  # what is wrong with it, the data plane says
        waits.release()


class TierDesk:
    """Carries out what clients ask of tiers."""

    def __init__(self, session: NativeSession) -> None:
        self._session = session
        self._removals: dict[int, _Removal] = {}
        self._silent: list[_thread.LockType] = []  # held by those who wait where nobody answers

    def tiers(self) -> Tiers:
        """Return all tiers, RAM first."""
        return Tiers(tiers=[_row(tier) for tier in self._session.tiers()])

    def movable_bytes(self) -> int:
        """Return how much of what is stored in RAM the disk tiers could take.

        A segment takes a slot, whatever is in it; the one that is being filled stays, and what
        comes from tiers that leave has to find a place, too.
        """
        ram, *disks = self._session.tiers()
        slots = sum(
            (tier.free_bytes or 0) // SLOT_BYTES for tier in disks if tier.state == "active"
        )
        slots -= sum(tier.segments for tier in disks if tier.state == "removing")
        movable = max(min(slots, ram.segments - 1), 0)
        return ram.stored_bytes * movable // max(ram.segments, 1)

    def add(self, request: TierAdd) -> protocol.Message:
        """Add a tier; the reply has it alone."""
        if request.priority > PRIORITY_MAX:
            return Failed(kind="usage", text=f"a priority is at most {PRIORITY_MAX}")
        look = _Look(request.path)
        if not self._answers(look):
            why = "its file system does not answer (a network without its server?)"
            text = f"cannot use {request.path} as a disk tier: {why}; give another place"
            return Failed(kind="tier", text=text)
        try:
            number = self._session.add_tier(
                request.path,
                name=request.name,
                cap_bytes=request.cap_bytes,
                priority=request.priority,
            )
        except OSError as error:
            return Failed(kind="tier", text=error.strerror or str(error))
        rows = [_row(tier) for tier in self._session.tiers() if tier.id == number]
        return Tiers(tiers=[{**row, "is_new": look.found_nothing} for row in rows])

    def _answers(self, look: _Look) -> bool:
        """Tell whether somebody answers where a look goes, without waiting there for ever.

        A thread does that, and is left behind where nobody answers.
        """
        self._silent = [lock for lock in self._silent if lock.locked()]
        if len(self._silent) >= _SILENT_MAX:
            return False
        waits = _thread.allocate_lock()
        waits.acquire()
        try:
            _thread.start_new_thread(look.take, (waits,))
        except RuntimeError:
            return True  # no thread to be had: for all we know
        if waits.acquire(timeout=_ANSWER_SECONDS):
            return True
        self._silent.append(waits)
        return False

    def remove(self, request: TierRemove) -> protocol.Message:
        """Begin to remove a tier; the reply tells what there is to move."""
        before = {tier.id: tier for tier in self._session.tiers()}
        try:
            number = self._session.remove_tier(request.name)
        except OSError as error:
            return Failed(kind="tier", text=error.strerror or str(error))
        while len(self._removals) >= _REMOVALS_MAX:
            del self._removals[min(self._removals)]
        self._removals[number] = _Removal(before[number])
        return _leaving(before[number], before[number])

    def empty(self, number: int) -> None:
        """Take note that all has moved; the file is still being given back."""
        if number in self._removals:
            self._removals[number].empty()

    def end(self, number: int, why_kept: str) -> None:
        """Take note of the end of a removal, with the reason if it was given up."""
        if number in self._removals:
            self._removals[number].end(why_kept)

    def follow(self, number: int) -> protocol.Message:
        """Tell how far a removal is, or how it ended."""
        removal = self._removals.get(number)
        if removal is None:
            return Failed(kind="tier", text="this tier is not being removed")
        if removal.seconds is None:
            left = [tier for tier in self._session.tiers() if tier.id == number]
            if left and left[0].state == "removing":
                return _leaving(removal.tier, left[0])
            removal.end("the disk tier stays" if left else "")  # the news of it was lost
        if removal.why_kept:
            return Failed(kind="tier", text=removal.why_kept)
        assert removal.moved_seconds is not None
        assert removal.seconds is not None
        return Removed(
            name=removal.tier.name,
            original_bytes=removal.tier.original_bytes,
            stored_bytes=removal.tier.stored_bytes,
            moved_seconds=removal.moved_seconds,
            seconds=removal.seconds,
        )


def _row(tier: Tier) -> dict[str, str | int | None]:
    is_ram = tier.kind == "ram"
    return {
        "name": tier.name,
        "kind": tier.kind,
        "path": None if is_ram else tier.path,
        "priority": None if is_ram else tier.priority,
        "state": tier.state,
        "encrypted": None if is_ram else tier.is_encrypted,
        "pages": tier.pages,
        "segments": tier.segments,
        "original_bytes": tier.original_bytes,
        "stored_bytes": tier.stored_bytes,
        "cap_bytes": tier.cap_bytes,
        "free_bytes": tier.free_bytes,
    }


def _leaving(before: Tier, now: Tier) -> Leaving:
    return Leaving(
        id=before.id,
        name=before.name,
        stored_bytes=before.stored_bytes,
        left_bytes=min(now.stored_bytes, before.stored_bytes),
    )
