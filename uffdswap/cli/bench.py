# SPDX-License-Identifier: MIT
"""`uffdswap bench`: faster than the kernel's own swap, on this machine?"""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..bench.guardian import Guardian
from ..bench.measure import Work, measure_command, measure_work, peak_bytes
from ..bench.peers import Peer, Uffdswap, find_peer
from ..bench.results import OURS, Comparison, document, machine, picture, ratio
from ..errors import UsageError
from ..units import format_size, parse_size
from ._execute import print_line

__all__ = ("bench",)

PATTERNS = (
    "seq-read",
    "seq-write",
    "strided",
    "uniform-read",
    "uniform-rw",
    "zipf-read",
    "zipf-rw",
    "hot-window",
)
_CONTENTS = ("text", "mixed", "random")


def bench(  # noqa: PLR0913, PLR0917 # one parameter an option, for typer
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="[PATTERN]...", show_default=False)
    ] = None,
    against: Annotated[
        str, typer.Option(metavar="LIST", help="zram-lz4,zram-lzo-rle,zswap,swapfile,none")
    ] = "zram-lz4",
    size: Annotated[str, typer.Option(metavar="SIZE", help="Memory of the workload.")] = "1G",
    resident: Annotated[
        str, typer.Option(metavar="SIZE", help="How much may be resident.")
    ] = "50%",
    content: Annotated[str, typer.Option(metavar="NAME", help="text, mixed or random.")] = "text",
    pages: Annotated[str, typer.Option(metavar="FILE", help="Contents: pages of a file.")] = "",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of the workload.")] = 1,
    pairs: Annotated[int, typer.Option(min=1, help="Runs of each, taken in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.05, help="Length of a measurement.")] = 3.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Accesses before it.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of contents and accesses.")] = 1,
    app: Annotated[
        list[str] | None,
        typer.Option(metavar="COMMAND", help="Run this at half of its memory instead."),
    ] = None,
    plot: Annotated[str, typer.Option(metavar="FILE.svg", help="Draw a picture.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare with the kernel's own swap, on the same work in the same run. Needs root.

    PATTERN is one of seq-read, seq-write, strided, uniform-read, uniform-rw, zipf-read, zipf-rw and
    hot-window; all of them if none is given. The machine is put back as it was, however this ends.
    """
    _require_known("pattern", patterns or [], PATTERNS)
    _require_known("content", [content], _CONTENTS)
    if plot and not plot.endswith(".svg"):
        raise UsageError(f"cannot draw {plot}", remedy="give --plot a name that ends in .svg")
    peers: list[Peer] = [Uffdswap(), *(find_peer(name) for name in against.split(",") if name)]
    for peer in peers:
        peer.check()
    size_bytes = parse_size(size) or 0
    work = Work(
        pattern="",
        size_bytes=size_bytes,
        limit_bytes=parse_size(resident, lambda: size_bytes) or size_bytes,
        content=content,
        pages_path=pages,
        threads=threads,
        seconds=seconds,
        warmup_seconds=warmup,
        seed=seed,
    )
    with _terminated_like_interrupted(), Guardian() as guardian:
        if app:
            comparisons = [_compare_app(guardian, peers, text, pairs) for text in app]
        else:
            names = patterns or PATTERNS
            comparisons = [_compare(guardian, peers, work, name, pairs) for name in names]
    if plot:
        Path(plot).write_text(picture(comparisons))
    if as_json:
        settings: dict[str, object] = {"size_bytes": size_bytes}
        settings |= {"resident_bytes": work.limit_bytes, "pairs": pairs, "threads": threads}
        settings |= {"seconds": seconds, "warmup_seconds": warmup, "content": pages or content}
        print(json.dumps(document(comparisons, settings), indent=2))
    else:
        _print_table(comparisons)


def _require_known(what: str, given: list[str], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            remedy = f"take {', '.join(known)}"
            raise UsageError(f'there is no {what} named "{name}"', remedy=remedy)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the benchmark as Ctrl-C does: by way of all clean-up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _compare(
    guardian: Guardian, peers: list[Peer], work: Work, pattern: str, pairs: int
) -> Comparison:
    comparison = Comparison(pattern, samples={peer.name: [] for peer in peers})
    for number in range(pairs):
        for peer in peers:
            print_line(f"{pattern}, round {number + 1} of {pairs}: {peer.name}")
            sample = measure_work(guardian, peer, replace(work, pattern=pattern))
            comparison.samples[peer.name].append(sample)
    return comparison


def _compare_app(guardian: Guardian, peers: list[Peer], text: str, pairs: int) -> Comparison:
    command = shlex.split(text)
    peak = peak_bytes(command)
    print_line(f"{text}: needs {format_size(peak)}, and gets half of that")
    comparison = Comparison(text, seconds={peer.name: [] for peer in peers})
    for number in range(pairs):
        for peer in peers:
            print_line(f"round {number + 1} of {pairs}: {peer.name}")
            seconds = measure_command(guardian, peer, command, peak)
            comparison.seconds[peer.name].append(seconds)
    return comparison


def _print_table(comparisons: list[Comparison]) -> None:
    host = machine()
    table = Table(title=f"{host['cpu']}, {host['processors']} processors, Linux {host['kernel']}")
    is_app = bool(comparisons[0].seconds)
    key = "wall_seconds" if is_app else "pages_per_second"
    heads = ["", "", "seconds"] if is_app else ["", "", "pages/s", "p50", "p99", "p99.9", "max"]
    heads += ["ours / its"] if is_app else ["CPU/access", "resident", "stored", "ours / its", "p99"]
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index < 2 else "right", no_wrap=True)
    for comparison in comparisons:
        for name in comparison.contenders():
            first = comparison.name if name == OURS else ""
            row = [first, name, f"{comparison.median(name, key):,.{2 if is_app else 0}f}"]
            if not is_app:
                row += _figures(comparison, name)
            row.append("" if name == OURS else _ratio_text(comparison, name, key))
            if not is_app:
                row.append("" if name == OURS else _ratio_text(comparison, name, "p99_us"))
            table.add_row(*row)
    Console(width=None if Console().is_terminal else 150).print(table)


def _figures(comparison: Comparison, name: str) -> list[str]:
    times = ("p50_us", "p99_us", "p999_us", "max_us", "cpu_us_per_access")
    texts = [f"{comparison.median(name, key):.3g} us" for key in times]
    sizes = ("resident_bytes", "stored_bytes")
    return texts + [format_size(int(comparison.median(name, key))) for key in sizes]


def _ratio_text(comparison: Comparison, peer: str, key: str) -> str:
    found = ratio(comparison.ratios(peer, key))
    if found is None:
        return "-"
    return f"{found['median']:.2f} ({found['min']:.2f}..{found['max']:.2f})"
