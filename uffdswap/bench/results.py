# SPDX-License-Identifier: MIT
"""Put measurements beside each other: medians, ratios of pairs, the JSON document, the picture.

A ratio compares the two runs of one round, which had the same machine around them, and its median
and spread are over the rounds. The reference is docs/reference/bench.md.
"""

from __future__ import annotations

import platform
import statistics
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from .measure import Sample

__all__ = ("OURS", "SCHEMA", "Comparison", "document", "machine", "picture", "ratio")

SCHEMA = "uffdswap.bench/1"
OURS = "uffdswap"

_BAR, _GAP, _LEFT, _WIDTH = 16, 12, 150, 760
_COLOURS = ("#1b6ca8", "#c8553d", "#e3a857", "#6b8f71", "#8d6a9f", "#999999")


@dataclass(slots=True)
class Comparison:
    """All runs of one pattern or program, by contender, in the order of the rounds.

    `samples` is for the workload, `seconds` for programs.
    """

    name: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def values(self, contender: str, key: str) -> list[float]:
        """Return one figure of every run of a contender."""
        if self.seconds:
            return self.seconds[contender]
        return [float(getattr(sample, key)) for sample in self.samples[contender]]

    def contenders(self) -> list[str]:
        """Return the names, ours first."""
        return list(self.seconds or self.samples)

    def median(self, contender: str, key: str) -> float:
        """Return the median of one figure over the rounds."""
        return statistics.median(self.values(contender, key))

    def ratios(self, peer: str, key: str) -> list[float]:
        """Return ours divided by the peer's, round by round; rounds with a zero are left out."""
        pairs = zip(self.values(OURS, key), self.values(peer, key), strict=True)
        return [ours / theirs for ours, theirs in pairs if theirs]


def ratio(values: list[float]) -> dict[str, float] | None:
    """Return the median and the spread of ratios.

    >>> ratio([1.5, 1.25, 2.0])
    {'median': 1.5, 'min': 1.25, 'max': 2.0}
    """
    if not values:
        return None
    middle = statistics.median(values)
    return {"median": round(middle, 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def machine() -> dict[str, Any]:
    """Name the machine that was measured."""
    cpu = platform.processor() or platform.machine()
    processors = 0
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _colon, value = line.partition(":")
        processors += name.strip() == "processor"
        if name.strip() == "model name":
            cpu = value.strip()
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": cpu,
        "processors": processors,
        "memory_bytes": memory_kib * 1024,
        "kernel": platform.release(),
    }


def document(comparisons: list[Comparison], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "machine": machine(),
        "settings": settings,
        "results": [_result(comparison) for comparison in comparisons],
    }


def _result(comparison: Comparison) -> dict[str, Any]:
    keys = ["wall_seconds"] if comparison.seconds else ["pages_per_second", "p50_us", "p99_us"]
    if not comparison.seconds:
        keys += ["p999_us", "max_us", "cpu_us_per_access", "resident_bytes", "stored_bytes"]
    peers = [name for name in comparison.contenders() if name != OURS]
    runs: dict[str, Any] = dict(comparison.seconds)
    runs |= {name: [asdict(s) for s in all_] for name, all_ in comparison.samples.items()}
    return {
        "name": comparison.name,
        "runs": runs,
        "median": {
            name: {key: comparison.median(name, key) for key in keys}
            for name in comparison.contenders()
        },
        "ratio": {
            peer: {key: ratio(comparison.ratios(peer, key)) for key in keys} for peer in peers
        },
    }


def picture(comparisons: list[Comparison]) -> str:
    """Draw one bar a contender and pattern, as SVG: pages a second, or seconds for programs."""
    parts: list[str] = []
    y = 34
    for comparison in comparisons:
        names = comparison.contenders()
        medians = {name: comparison.median(name, "pages_per_second") for name in names}
        most = max(medians.values()) or 1
        parts.append(
            f'<text x="8" y="{y + 13}" font-weight="bold">{escape(comparison.name)}</text>'
        )
        for index, (name, value) in enumerate(medians.items()):
            width = max(1, int(value / most * (_WIDTH - _LEFT - 210)))
            colour = _COLOURS[index % len(_COLOURS)]
            text = f"{value:.2f} s" if comparison.seconds else f"{value / 1000:.0f} k"
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{width}" height="{_BAR}" fill="{colour}"/>'
                f'<text x="{_LEFT + width + 6}" y="{y + 13}">{escape(name)} {text}</text>'
            )
            y += _BAR + 2
        y += _GAP
    unit = "seconds, less is better" if comparisons[0].seconds else "pages a second"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" '
        'font-family="sans-serif" font-size="13">'
        f'<rect width="{_WIDTH}" height="{y}" fill="white"/>'
        f'<text x="8" y="20">{unit}, median of the runs</text>{"".join(parts)}</svg>\n'
    )
