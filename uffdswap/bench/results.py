# SPDX-License-Identifier: MIT
"""Put measurements beside each other: medians, ratios of pairs, the JSON document.

A ratio compares the two runs of one round, which had the same machine around them, and its median
and spread are over the rounds. A run that failed leaves its round without a ratio, and is listed.
The reference is docs/reference/bench.md.
"""

from __future__ import annotations

import math
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .measure import AppSample, Sample

__all__ = (
    "OURS",
    "SCHEMA",
    "Comparison",
    "Failure",
    "document",
    "format_figure",
    "format_ratio",
    "machine",
    "machine_line",
    "ratio",
    "shorten",
)

SCHEMA = "uffdswap.bench/1"
OURS = "uffdswap"

_WORK_KEYS = (
    *("pages_per_second", "p50_us", "p99_us", "p999_us", "max_us", "cpu_us_per_access"),
    *("cpu_us_per_page", "faults_per_access", "resident_bytes", "stored_bytes"),
)
_APP_KEYS = ("wall_seconds", "cpu_seconds", "stored_peak_bytes")


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not come to a right end."""

    contender: str
    round: int
    what: str
    folder: str
    """Where its files are kept."""


@dataclass(slots=True)
class Comparison:
    """All runs of one pattern or application, by contender, in the order of the rounds.

    A run that failed is None.
    """

    name: str
    contenders: tuple[str, ...]
    """Ours first."""
    command: list[str] | None = None
    """Of an application; None for a pattern of the workload."""
    size_bytes: int = 0
    limit_bytes: int = 0
    runs: dict[str, list[Sample | AppSample | None]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = self.runs or {name: [] for name in self.contenders}

    @property
    def is_app(self) -> bool:
        """Return whether it is an application that was run."""
        return self.command is not None

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the figures that are compared, the most important one first."""
        return _APP_KEYS if self.is_app else _WORK_KEYS

    def values(self, contender: str, key: str) -> list[float | None]:
        """Return one figure of every round; None where there is none."""
        return [None if run is None else getattr(run, key) for run in self.runs[contender]]

    def median(self, contender: str, key: str) -> float | None:
        """Return the median of one figure over the rounds."""
        values = [value for value in self.values(contender, key) if value is not None]
        return statistics.median(values) if values else None

    def ratios(self, peer: str, key: str) -> list[float]:
        """Return ours divided by the peer's, round by round, where both are there."""
        pairs = zip(self.values(OURS, key), self.values(peer, key), strict=False)
        return [ours / theirs for ours, theirs in pairs if ours is not None and theirs]


def ratio(values: list[float]) -> dict[str, float] | None:
    """Return the median and the spread of ratios.

    >>> ratio([1.5, 1.25, 2.0])
    {'median': 1.5, 'min': 1.25, 'max': 2.0}
    """
    if not values:
        return None
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: _rounded(value) for name, value in found.items()}


def _rounded(value: float) -> float:
    """Return four decimals, or four significant digits of what is less than 1."""
    return round(value, 4) if value >= 1 else float(f"{value:.4g}")


def format_figure(value: float) -> str:
    """Write a figure with two or three significant digits at least, and never with an exponent.

    >>> format_figure(0.00312), format_figure(0.12), format_figure(4.567), format_figure(23.45)
    ('0.0031', '0.120', '4.57', '23.4')
    >>> format_figure(12345.6), format_figure(0)
    ('12,346', '0')
    """
    if value <= 0:
        return "0"
    if value < 0.1:
        return f"{value:.{1 - math.floor(math.log10(value))}f}"
    if value < 1:
        return f"{value:.3f}"
    if value < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def format_ratio(value: float) -> str:
    """Write a ratio, those around 1 with two decimals.

    >>> format_ratio(0.00041), format_ratio(0.98), format_ratio(1.5), format_ratio(31.4)
    ('0.00041', '0.98', '1.50', '31.4')
    """
    return f"{value:.2f}" if 0.1 <= value < 10 else format_figure(value)


def shorten(text: str, length: int = 24) -> str:
    """Cut a text for a table.

    >>> shorten("python3 job.py"), shorten("python3 job.py --input x", 12)
    ('python3 job.py', 'python3 job…')
    """
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


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


def machine_line() -> str:
    """Name the machine in one line."""
    host = machine()
    return f"{host['cpu']}, {host['processors']} processors, Linux {host['kernel']}"


def document(comparisons: list[Comparison], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "machine": machine(),
        "settings": settings,
        "results": [_result(comparison) for comparison in comparisons],
    }


def _result(comparison: Comparison) -> dict[str, Any]:
    keys = comparison.keys
    return {
        "name": comparison.name,
        "kind": "app" if comparison.is_app else "pattern",
        "command": comparison.command,
        "size_bytes": comparison.size_bytes,
        "limit_bytes": comparison.limit_bytes,
        "runs": {name: _runs(runs) for name, runs in comparison.runs.items()},
        "median": {
            name: {key: comparison.median(name, key) for key in keys}
            for name in comparison.contenders
        },
        "ratio": {
            peer: {key: ratio(comparison.ratios(peer, key)) for key in keys}
            for peer in comparison.contenders
            if peer != OURS
        },
        "failures": [asdict(failure) for failure in comparison.failures],
    }


def _runs(runs: list[Sample | AppSample | None]) -> list[dict[str, Any]]:
    return [
        {"round": number, **asdict(run)}
        for number, run in enumerate(runs, start=1)
        if run is not None
    ]
