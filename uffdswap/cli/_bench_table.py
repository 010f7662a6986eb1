# SPDX-License-Identifier: MIT
"""The table of `uffdswap bench`: as wide as the terminal.

Where that is too narrow for all columns they come in parts of about the same width, since rows that
are below each other are what one compares. Where there would be too many parts each pattern or
application has a table of its own instead, with a line a figure and a column a contender.
"""

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
_MOST_PARTS = 3
_Text = Callable[[Comparison, str], str]


@dataclass(frozen=True, slots=True)
class _Column:
    head: str
    text: _Text
    lines: tuple[tuple[str, _Text], ...] = ()
    """The same where there is a line a figure, if that is not the same."""


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
    """Print as many columns beside each other as fit, or as lines."""
    if not comparisons:
        return
    names = _width(console, _table(comparisons, []))
    widths = [_width(console, _table(comparisons, [column])) - names for column in columns]
    parts = _parts(widths, console.width - names)
    if len(parts) > _MOST_PARTS:
        for comparison in comparisons:
            _print_lines(console, comparison, columns)
        return
    for part in parts:
        console.print(_table(comparisons, columns[part]))


def _parts(widths: Sequence[int], room: int) -> list[slice]:
    """Return the columns of each part: no more parts than needed, the widest as narrow as can be.

    >>> _parts([4, 4, 4, 4], 13)
    [slice(0, 2, None), slice(2, 4, None)]
    """
    parts = _filled(widths, room)
    for less in range(room - 1, max(widths) - 1, -1):
        narrower = _filled(widths, less)
        if len(narrower) > len(parts):
            break
        parts = narrower
    return parts


def _filled(widths: Sequence[int], room: int) -> list[slice]:
    """Return the columns of each part where each takes all that fit, and one at least."""
    parts: list[slice] = []
    first = 0
    for end in range(1, len(widths) + 1):
        if end == len(widths) or sum(widths[first : end + 1]) > room:
            parts.append(slice(first, end))
            first = end
    return parts


def _print_lines(console: Console, comparison: Comparison, columns: Sequence[_Column]) -> None:
    """Print a line a figure; ours stands beside each group of peers that fits."""
    peers = [name for name in comparison.contenders if name != OURS]
    while peers:
        count = len(peers)
        while count > 1 and _width(console, _lines(comparison, columns, peers[:count])) > (
            console.width
        ):
            count -= 1
        console.print(_lines(comparison, columns, peers[:count]))
        peers = peers[count:]


def _lines(comparison: Comparison, columns: Sequence[_Column], peers: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(shorten(comparison.name))
    contenders = (OURS, *peers)
    for name in contenders:
        table.add_column(name, justify="right", no_wrap=True)
    for column in columns:
        for head, text in column.lines or ((column.head.replace("\n", " "), column.text),):
            table.add_row(head, *(text(comparison, name) for name in contenders))
    return table


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


def _ratio(head: str, key: str) -> _Column:
    """Return a column of ratios; as lines there are two, so that they are no wider than figures."""

    def write(form: str) -> _Text:
        def text(comparison: Comparison, name: str) -> str:
            if name == OURS:
                return ""
            found = ratio(comparison.ratios(name, key))
            if found is None:
                return _NOTHING
            return form.format(**{part: format_ratio(value) for part, value in found.items()})

        return text

    lines = ((head, write("{median}")), ("  least..greatest", write("{min}..{max}")))
    return _Column(head, write("{median} ({min}..{max})"), lines)


def _seconds(value: float) -> str:
    """Write with two decimals, but where that would be next to nothing."""
    return f"{value:.2f}" if value >= 0.1 else format_figure(value)


def _size(value: float) -> str:
    return format_size(int(value))


_WORK = (
    _Column("pages/s", _figure("pages_per_second", format_figure)),
    _ratio("ours / its", "pages_per_second"),
    _Column("p50 us", _figure("p50_us", format_figure)),
    _Column("p99 us", _figure("p99_us", format_figure)),
    _Column("p99.9 us", _figure("p999_us", format_figure)),
    _Column("max us", _figure("max_us", format_figure)),
    _ratio("p99, ours / its", "p99_us"),
    _Column("CPU us\na page in", _figure("cpu_us_per_page", format_figure)),
    _Column("faults\nan access", _figure("faults_per_access", format_figure)),
    _Column("resident", _figure("resident_bytes", _size)),
    _Column("stored", _figure("stored_bytes", _size)),
)
_APP = (
    _Column("seconds", _figure("wall_seconds", _seconds)),
    _ratio("ours / its", "wall_seconds"),
    _Column("CPU s", _figure("cpu_seconds", _seconds)),
    _ratio("CPU, ours / its", "cpu_seconds"),
    _Column("stored at most", _figure("stored_peak_bytes", _size)),
)
