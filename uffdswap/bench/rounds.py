# SPDX-License-Identifier: MIT
"""The rounds of a comparison: every contender in turn, A B A B, whatever becomes of a single run.

What is done to the machine slowly changes it (caches, fragments, heat), so contenders are never
measured one after the other as blocks. With the same RAM for everybody the peer comes first in each
round: its limit and what it was seen to hold are the budget of uffdswap.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..units import format_size
from .evidence import RunFailed
from .measure import App, AppSample, Budget, Sample, measure_command, measure_work, peak_bytes
from .peers import Peer, Uffdswap
from .results import OURS, Comparison, Failure, shorten

if TYPE_CHECKING:
    from .measure import Bench, Work

__all__ = ("AppPlan", "Rounds")

_Measure = Callable[[Peer, str, Budget | None], Sample | AppSample]
"""Takes a contender, a label for the files of a failure, and a budget for uffdswap."""


@dataclass(frozen=True, slots=True)
class AppPlan:
    """An application to compare: its name, its command, and how much of its memory it gets."""

    name: str
    command: list[str]
    limit_of: Callable[[int], int]
    """From the memory it needs to the limit."""


@dataclass(slots=True)
class Rounds:
    """Compares, and adds to `comparisons` as it goes on, so an interruption loses one run."""

    bench: Bench
    peers: list[Peer]
    pairs: int
    same_ram: bool
    tell: Callable[[str], None]
    comparisons: list[Comparison]

    def compare_work(self, work: Work) -> None:
        """Compare with the workload."""

        def measure(peer: Peer, label: str, budget: Budget | None) -> Sample:
            return measure_work(self.bench, peer, work, label=label, budget=budget)

        for peers in self._groups():
            comparison = self._begin(work.pattern, peers)
            comparison.size_bytes, comparison.limit_bytes = work.size_bytes, work.limit_bytes
            self._run(comparison, peers, measure)

    def compare_app(self, plan: AppPlan) -> None:
        """Compare with an application, at a part of the memory that it is seen to need."""
        name = shorten(plan.name)
        self.tell(f"{name}: without a limit")
        try:
            size_bytes = peak_bytes(self.bench, plan.command, label=_label(name, 0, "no-limit"))
        except RunFailed as error:
            self.tell(str(error))
            comparison = self._begin(plan.name, self.peers, plan.command)
            comparison.failures.append(Failure("no limit", 0, str(error), str(error.folder)))
            return
        app = App(plan.command, size_bytes, plan.limit_of(size_bytes))
        sizes = f"{format_size(size_bytes)}, and gets {format_size(app.limit_bytes)}"
        fits = ": all of it fits" if app.limit_bytes >= size_bytes else ""
        self.tell(f"{name}: needs {sizes}{fits}")

        def measure(peer: Peer, label: str, budget: Budget | None) -> AppSample:
            return measure_command(self.bench, peer, app, label=label, budget=budget)

        for peers in self._groups():
            comparison = self._begin(plan.name, peers, plan.command)
            comparison.size_bytes, comparison.limit_bytes = size_bytes, app.limit_bytes
            self._run(comparison, peers, measure)

    def _groups(self) -> list[list[Peer]]:
        """Return who is measured in one round: a budget belongs to one peer alone."""
        return [[peer] for peer in self.peers] if self.same_ram else [self.peers]

    def _begin(self, name: str, peers: list[Peer], command: list[str] | None = None) -> Comparison:
        comparison = Comparison(name, (OURS, *(peer.name for peer in peers)), command)
        self.comparisons.append(comparison)
        return comparison

    def _run(self, comparison: Comparison, peers: list[Peer], measure: _Measure) -> None:
        for number in range(1, self.pairs + 1):
            if self.same_ram:
                (peer,) = peers
                self._run_one(comparison, peer, number, measure)
                budget = _budget(comparison, peer)
                if budget is None:
                    comparison.runs[OURS].append(None)
                else:
                    self._run_one(comparison, Uffdswap(), number, measure, budget)
            else:
                for peer in (Uffdswap(), *peers):
                    self._run_one(comparison, peer, number, measure)

    def _run_one(
        self,
        comparison: Comparison,
        peer: Peer,
        number: int,
        measure: _Measure,
        budget: Budget | None = None,
    ) -> None:
        name = shorten(comparison.name)
        with_ram = f" with {format_size(budget.memory_bytes)} of RAM" if budget else ""
        self.tell(f"{name}, round {number} of {self.pairs}: {peer.name}{with_ram}")
        sample: Sample | AppSample | None = None
        try:
            sample = measure(peer, _label(name, number, peer.name), budget)
        except RunFailed as error:
            self.tell(str(error))
            failure = Failure(peer.name, number, str(error), str(error.folder))
            comparison.failures.append(failure)
        comparison.runs[peer.name].append(sample)


def _budget(comparison: Comparison, peer: Peer) -> Budget | None:
    """Return the RAM that the peer had in its last good run; None if there is none yet."""
    for sample in reversed(comparison.runs[peer.name]):
        if sample is not None:
            memory_bytes = comparison.limit_bytes + sample.stored_peak_bytes
            return Budget(memory_bytes, may_use_disk=peer.uses_disk)
    return None


def _label(name: str, number: int, contender: str) -> str:
    """Return a name for the folder of a failed run.

    >>> _label("python3 job.py", 2, "zram-lz4")
    'python3-job.py-2-zram-lz4'
    """
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-')}-{number}-{contender}"
