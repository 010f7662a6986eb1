# SPDX-License-Identifier: MIT
"""The table of `uffdswap bench`: as wide as the terminal, in parts where that is too narrow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from ..bench.results import (
    OURS,
    Comparison,
    format_figure,
    format_ratio,
    machine_line,
    ratio,
    shorten,
)
from ..units import format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ("print_tables",)

_NOTHING = "-"
_PIPE_COLUMNS = 200
_Text = Callable[[Comparison, str], str]


@dataclass(frozen=True, slots=True)
class _Column:
    head: str
    text: _Text


def print_tables(comparisons: Sequence[Comparison]) -> None:
    """Print patterns and applications, each in a table of its own, and then how much failed."""
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=_PIPE_COLUMNS)
    console.print(machine_line(), highlight=False)
    _print(console, [c for c in comparisons if not c.is_app], _WORK)
    _print(console, [c for c in comparisons if c.is_app], _APP)
    for comparison in comparisons:
        if comparison.failures:
            console.print(_failed(comparison), highlight=False, soft_wrap=True)


def _failed(comparison: Comparison) -> str:
    """Count the runs that failed; each has been told of on stderr when it did."""
    counts = Counter(failure.contender for failure in comparison.failures)
    whose = ", ".join(f"{count} of {name}" for name, count in counts.items())
    return f"{shorten(comparison.name)}: runs that failed, as told on stderr: {whose}"


def _print(console: Console, comparisons: Sequence[Comparison], columns: Sequence[_Column]) -> None:
    """Print as many columns beside each other as fit, and the rest in further tables."""
    while comparisons and columns:
        count = len(columns)
        while count > 1 and _width(console, _table(comparisons, columns[:count])) > console.width:
            count -= 1
        console.print(_table(comparisons, columns[:count]))
        columns = columns[count:]


def _width(console: Console, table: RenderableType) -> int:
    options = console.options.update(width=1000, max_width=1000)
    return console.measure(table, options=options).maximum


def _table(comparisons: Sequence[Comparison], columns: Sequence[_Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("")
    for column in columns:
        table.add_column(column.head, justify="right", no_wrap=True)
    for comparison in comparisons:
        for name in comparison.contenders:
            head = shorten(comparison.name) if name == OURS else ""
            cells = [column.text(comparison, name) for column in columns]
            table.add_row(head, name, *cells, end_section=name == comparison.contenders[-1])
    return table


def _figure(key: str, write: Callable[[float], str]) -> _Text:
    def text(comparison: Comparison, name: str) -> str:
        value = comparison.median(name, key)
        return _NOTHING if value is None else write(value)

    return text


def _ratio(key: str) -> _Text:
    def text(comparison: Comparison, name: str) -> str:
        if name == OURS:
            return ""
        found = ratio(comparison.ratios(name, key))
        if found is None:
            return _NOTHING
        median, least, most = (format_ratio(found[name]) for name in ("median", "min", "max"))
        return f"{median} ({least}..{most})"

    return text


def _seconds(value: float) -> str:
    """Write with two decimals, but where that would be next to nothing."""
    return f"{value:.2f}" if value >= 0.1 else format_figure(value)


def _size(value: float) -> str:
    return format_size(int(value))


_WORK = (
    _Column("pages/s", _figure("pages_per_second", format_figure)),
    _Column("ours / its", _ratio("pages_per_second")),
    _Column("p50 us", _figure("p50_us", format_figure)),
    _Column("p99 us", _figure("p99_us", format_figure)),
    _Column("p99.9 us", _figure("p999_us", format_figure)),
    _Column("max us", _figure("max_us", format_figure)),
    _Column("p99, ours / its", _ratio("p99_us")),
    _Column("CPU us\na page in", _figure("cpu_us_per_page", format_figure)),
    _Column("faults\nan access", _figure("faults_per_access", format_figure)),
    _Column("resident", _figure("resident_bytes", _size)),
    _Column("stored", _figure("stored_bytes", _size)),
)
_APP = (
    _Column("seconds", _figure("wall_seconds", _seconds)),
    _Column("ours / its", _ratio("wall_seconds")),
    _Column("CPU s", _figure("cpu_seconds", _seconds)),
    _Column("CPU, ours / its", _ratio("cpu_seconds")),
    _Column("stored at most", _figure("stored_peak_bytes", _size)),
)
