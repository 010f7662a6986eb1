# SPDX-License-Identifier: MIT
"""`uffdswap bench`: faster than the kernel's own swap, on this machine?"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from ..bench.apps import READY, find_ready
from ..bench.guardian import Guardian
from ..bench.inputs import (
    PAGE_BYTES,
    read_size,
    require_pages,
    require_place,
    require_pressure,
    require_threads_fit,
)
from ..bench.measure import Bench, Work
from ..bench.peers import NoLimit, Peer, Uffdswap, find_peer
from ..bench.plot import draw, require_kind
from ..bench.results import Comparison, document
from ..bench.rounds import AppPlan, Rounds
from ..config import parse_limit
from ..errors import UsageError
from ..units import format_size, parse_size
from ._bench_table import print_tables
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
    "zipf-scan",
    "hot-window",
)
_CONTENTS = ("text", "mixed", "random")


def bench(  # noqa: PLR0913, PLR0917 # one parameter an option, for typer
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="PATTERN", show_default=False)
    ] = None,
    against: Annotated[
        str, typer.Option(metavar="LIST", help="Of zram-lz4, zram-lzo-rle, zswap, swapfile, none.")
    ] = "zram-lz4",
    app: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Instead of patterns: {', '.join(app.name for app in READY)}, or any command.",
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Memory of the workload (1G), or of each application (512M).",
            show_default=False,
        ),
    ] = "",
    resident: Annotated[
        str, typer.Option(metavar="SIZE", help="How much of it may be resident.")
    ] = "50%",
    same_ram: Annotated[
        bool,
        typer.Option("--same-ram", help="The same RAM in all, resident and stored together."),
    ] = False,
    content: Annotated[str, typer.Option(metavar="NAME", help="text, mixed or random.")] = "text",
    pages: Annotated[str, typer.Option(metavar="FILE", help="Contents: pages of a file.")] = "",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of the workload.")] = 1,
    pairs: Annotated[int, typer.Option(min=1, help="Runs of each, taken in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.05, help="Length of a measurement.")] = 3.0,
    warmup: Annotated[float, typer.Option(min=0.0, help="Accesses before it.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=1.0, help="A longer run has failed.")] = 600.0,
    seed: Annotated[int, typer.Option(min=0, help="Of contents and accesses.")] = 1,
    plot: Annotated[
        str, typer.Option(metavar="FILE", help="Draw a picture: FILE.svg or FILE.png.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Compare with the kernel's own swap, on the same work.

    Comparing with zram, zswap or swapfile needs root; with none it needs only what run needs.

    PATTERN is one of seq-read, seq-write, strided, uniform-read, uniform-rw, zipf-read, zipf-rw,
    zipf-scan and hot-window; all of them if none is given. The machine is put back as it was,
    however this ends.
    A run that fails is reported, its files are kept, and the others go on.
    """
    _require_known("pattern", patterns or [], PATTERNS)
    _require_known("content", [content], _CONTENTS)
    if app and patterns:
        raise UsageError("patterns and applications exclude each other", remedy="leave one out")
    if plot:
        require_kind(plot)
        require_place(plot)
    if pages:
        require_pages(pages)
    size_bytes = read_size(size or ("512M" if app else "1G"))
    limit_bytes = _limit(resident, size_bytes)
    if not app:
        require_threads_fit(size_bytes, threads)
        require_pressure(limit_bytes, size_bytes)
    plans = [_plan(text, size_bytes, resident) for text in app or []]
    peers = _peers(against, same_ram)
    work = Work(
        pattern="",
        size_bytes=size_bytes,
        limit_bytes=limit_bytes,
        content=content,
        pages_path=pages,
        threads=threads,
        seconds=seconds,
        warmup_seconds=warmup,
        seed=seed,
    )
    settings: dict[str, object] = {"size_bytes": size_bytes, "resident_bytes": work.limit_bytes}
    settings |= {"pairs": pairs, "same_ram": same_ram, "timeout_seconds": timeout}
    settings |= {"threads": threads, "seconds": seconds, "warmup_seconds": warmup}
    settings |= {"content": pages or content, "seed": seed}
    found: list[Comparison] = []
    try:
        with _terminated_like_interrupted(), Guardian() as guardian:
            station = Bench(guardian, timeout_seconds=timeout)
            rounds = Rounds(station, peers, pairs, same_ram, print_line, found)
            for plan in plans:
                rounds.compare_app(plan)
            for name in [] if plans else patterns or PATTERNS:
                rounds.compare_work(replace(work, pattern=name))
    finally:  # also what there is when it was interrupted
        _report(found, settings, plot, as_json)
    return 1 if any(comparison.failures for comparison in found) else 0


def _peers(against: str, same_ram: bool) -> list[Peer]:
    """Return whom to compare with; raise an error if one cannot be set up."""
    peers = [find_peer(name) for name in dict.fromkeys(against.split(",")) if name]
    if not peers:
        raise UsageError("there is nothing to compare with", remedy="give --against a name")
    if same_ram and any(isinstance(peer, NoLimit) for peer in peers):
        cause = "without a limit there is no amount of RAM to compare with"
        raise UsageError("--same-ram makes no sense with none", cause=cause)
    for peer in (Uffdswap(), *peers):
        peer.check()
    return peers


def _plan(text: str, size_bytes: int, resident: str) -> AppPlan:
    """Return how to run an application: a ready-made one by its name, or a command."""
    ready = find_ready(text)
    if ready is not None:
        ready.require()
    command = ready.command(size_bytes) if ready else _words(text)
    if not command or shutil.which(command[0]) is None:
        cause = "it is neither a ready-made application nor a command that is here"
        remedy = f"ready-made are {', '.join(app.name for app in READY)}"
        raise UsageError(f'cannot run "{text}"', cause=cause, remedy=remedy)
    return AppPlan(text, command, lambda peak_bytes: _limit_of_app(resident, peak_bytes))


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        remedy = "quote it as for a shell"
        raise UsageError(f'cannot run "{text}"', cause=str(error), remedy=remedy) from error


def _limit(resident: str, size_bytes: int) -> int:
    return parse_limit(resident, "--resident", lambda: size_bytes) or size_bytes


def _limit_of_app(resident: str, peak_bytes: int) -> int:
    """Return a part of what an application was seen to need, which may be next to nothing."""
    return max(parse_size(resident, lambda: peak_bytes) or peak_bytes, PAGE_BYTES)


def _report(
    comparisons: list[Comparison], settings: dict[str, object], plot: str, as_json: bool
) -> None:
    if not comparisons:
        return
    if as_json:
        print(json.dumps(document(comparisons, settings), indent=2))
    else:
        print_tables(comparisons)
    if plot:
        Path(plot).write_bytes(draw(plot, comparisons, _about(comparisons, settings)))


def _about(comparisons: list[Comparison], settings: dict[str, object]) -> str:
    """Say in a few words what was compared, for the head of the picture."""
    same = "the same RAM in all" if settings["same_ram"] else "the same resident limit"
    runs = "one run each" if settings["pairs"] == 1 else f"{settings['pairs']} runs each"
    if comparisons[0].is_app:
        return f"applications, {same}, {runs}"
    return (
        f"{format_size(int(str(settings['size_bytes'])))} of {settings['content']} pages, "
        f"{format_size(int(str(settings['resident_bytes'])))} resident, {same}, "
        f"{runs}"
    )


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
