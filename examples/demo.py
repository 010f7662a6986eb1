#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Show what uffdswap does: a program that needs several times its limit, first bare, then under it.

    python examples/demo.py --size 768M --memory 300M

Both runs are watched from outside, by what /proc says about their processes. On a terminal the
memory over time is drawn while they run; otherwise there are plain lines. The table at
the end is made of the statistics that `uffdswap run --stats` writes.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

SORT = Path(__file__).with_name("sort_numpy.py")
PAGE_BYTES = 4096
MIB = 1 << 20
SAMPLE_SECONDS = 0.1
PLAIN_LINES_TENTH = 0.1  # without a terminal a line is due when this share of the time has passed
CHART_COLUMNS = 64
CHART_ROWS = 8
EIGHTHS = " ▁▂▃▄▅▆▇█"


# --- Watching --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory at one moment: of the program, and what uffdswap holds for it."""

    seconds: float
    program_bytes: int
    kept_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.program_bytes + self.kept_bytes


def anonymous_bytes(pid: int) -> int:
    """Return what a process has in memory that no file backs."""
    with suppress(OSError):
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
        return (int(resident) - int(shared)) * PAGE_BYTES
    return 0


def memfd_bytes(pid: int) -> int:
    """Return what a process's memfds hold, each counted once."""
    blocks = {}
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(entry.readlink()).startswith("/memfd:"):
                    status = entry.stat()
                    blocks[status.st_ino] = status.st_blocks
    return 512 * sum(blocks.values())


def take_sample(root: psutil.Process, seconds: float, *, bare: bool) -> Sample:
    """Add up the processes of a run. Hands share the program's memory and do not count again."""
    if bare:
        return Sample(seconds, anonymous_bytes(root.pid), 0)
    program_bytes = kept_bytes = 0
    with suppress(psutil.Error):
        for process in root.children(recursive=True):
            with suppress(psutil.Error):
                if "uffdswap.agent" in " ".join(process.cmdline()):
                    kept_bytes += anonymous_bytes(process.pid) + memfd_bytes(process.pid)
                elif process.name() != "uffdswap-hands":
                    program_bytes += anonymous_bytes(process.pid)
    return Sample(seconds, program_bytes, kept_bytes)


# --- Drawing ---------------------------------------------------------------------------------


def mib(size_bytes: float) -> str:
    """Return a size as people read it."""
    return f"{size_bytes / MIB:,.0f} MiB"


def column_samples(samples: list[Sample]) -> list[Sample]:
    """Return one sample for each column of the chart: the highest of those that fall into it."""
    count = min(CHART_COLUMNS, len(samples))
    edges = [column * len(samples) // count for column in range(count + 1)]
    parts = (samples[first:end] for first, end in itertools.pairwise(edges))
    return [max(part, key=lambda sample: sample.total_bytes) for part in parts]


def cell(sample: Sample, row: int, row_bytes: float, limit_bytes: int) -> tuple[str, str]:
    """Return the character and the style of one place in the chart."""
    filled = sample.total_bytes / row_bytes - row
    character = EIGHTHS[max(0, min(8, round(filled * 8)))]
    if character == " ":
        at_limit = row == int(limit_bytes / row_bytes)
        return ("╌", "dim") if at_limit else (" ", "")
    middle_bytes = (row + min(filled, 1) / 2) * row_bytes
    if middle_bytes > limit_bytes:
        return character, "red"
    return character, "green" if middle_bytes <= sample.program_bytes else "blue"


def chart(samples: list[Sample], limit_bytes: int, top_bytes: int) -> Text:
    """Draw memory over time, with the limit as a line."""
    columns = column_samples(samples)
    row_bytes = top_bytes / CHART_ROWS
    limit_row = int(limit_bytes / row_bytes)
    text = Text()
    for row in reversed(range(CHART_ROWS)):
        label = "limit" if row == limit_row else ""
        text.append(f"{label:>7} ", "dim")
        cells = [cell(sample, row, row_bytes, limit_bytes) for sample in columns]
        for character, style in cells:
            text.append(character, style)
        rest = CHART_COLUMNS - len(columns)
        text.append(("╌" if row == limit_row else " ") * rest + "\n", "dim")
    return text


def status_line(sample: Sample, limit_bytes: int, *, bare: bool) -> Text:
    """Say the same in numbers."""
    text = Text(f"{sample.seconds:6.1f} s  ")
    if bare:
        over = sample.total_bytes > limit_bytes
        return text.append(f"program {mib(sample.program_bytes)}", "red" if over else "green")
    text.append(f"program {mib(sample.program_bytes)}", "green")
    text.append(" + ").append(f"kept by uffdswap {mib(sample.kept_bytes)}", "blue")
    return text.append(f" = {mib(sample.total_bytes)} of {mib(limit_bytes)}")


# --- Running ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Watched:
    """A run, and what was seen of it."""

    name: str
    command: list[str]
    bare: bool
    samples: list[Sample] = field(default_factory=lambda: [Sample(0.0, 0, 0)])
    seconds: float = 0.0
    status: int = 0
    answer: str = ""
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def peak_bytes(self) -> int:
        return max(sample.total_bytes for sample in self.samples)


class Screen:
    """The terminal while a program runs: a chart where there is one, else a line now and then."""

    def __init__(self, console: Console, limit_bytes: int, top_bytes: int) -> None:
        self._console = console
        self._limit_bytes = limit_bytes
        self._top_bytes = top_bytes
        self._next_line_seconds = 0.0
        self._live = Live(console=console, refresh_per_second=10) if console.is_terminal else None

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, watched: Watched) -> None:
        """Show the latest sample."""
        line = status_line(watched.samples[-1], self._limit_bytes, bare=watched.bare)
        if self._live:
            drawing = chart(watched.samples, self._limit_bytes, self._top_bytes)
            self._live.update(Group(drawing, line))
        elif watched.samples[-1].seconds >= self._next_line_seconds:
            seconds = watched.samples[-1].seconds
            self._next_line_seconds = seconds + max(1.0, seconds * PLAIN_LINES_TENTH)
            self._console.print(line)


def watch(watched: Watched, screen: Screen) -> None:
    """Run the command to its end."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(watched.command, stdout=output)
        try:
            root = psutil.Process(process.pid)
            while process.poll() is None:
                seconds = time.monotonic() - began
                watched.samples.append(take_sample(root, seconds, bare=watched.bare))
                screen.show(watched)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SAMPLE_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        watched.seconds = time.monotonic() - began
        watched.status = process.returncode
        output.seek(0)
        watched.answer = output.read().strip()


# --- The story -------------------------------------------------------------------------------


def comparison(bare: Watched, managed: Watched) -> Table:
    """Put the two runs side by side."""
    table = Table(box=None, padding=(0, 2), title_justify="left")
    for name in ("", "bare", "uffdswap"):
        table.add_column(name, justify="left" if not name else "right")
    runs = (bare, managed)
    table.add_row("most memory, uffdswap's own included", *(mib(run.peak_bytes) for run in runs))
    table.add_row("time", *(f"{run.seconds:.1f} s" for run in runs))
    table.add_row("answer", *(("right" if run.status == 0 else "WRONG") for run in runs))
    return table


def account(managed: Watched) -> Table:
    """Say what uffdswap did, from its statistics and what was seen."""
    faults, evictions = managed.stats["faults"], managed.stats["evictions"]
    latency, integrity = faults["latency_us"], managed.stats["integrity"]
    uniform_pages = evictions["zero"] + evictions["same"]
    kept_bytes = max(sample.kept_bytes for sample in managed.samples)
    rows = {
        "most resident": mib(managed.stats["peak"]["resident_bytes"]),
        "most kept for it": mib(kept_bytes),
        "evicted": f"{evictions['pages']:,} pages, {mib(evictions['pages'] * PAGE_BYTES)} in all",
        "  compressed": f"{evictions['compressed']:,} pages",
        "  one word, repeated": f"{uniform_pages:,} pages",
        "  unchanged since last time": f"{evictions['clean']:,} pages",
        "faults": f"{faults['total']:,}",
        "  time to serve one": f"median {latency['p50']:.0f} us, p99 {latency['p99']:.0f} us",
        "verified by hash": f"{integrity['verified_pages']:,} pages, "
        f"{integrity['poisoned_pages']} wrong",
    }
    table = Table(box=None, padding=(0, 2), show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def run_both(console: Console, size: str, memory: str, limit_bytes: int, stats: Path) -> int:
    """Run bare, run limited, compare; return the exit status."""
    sort = [sys.executable, str(SORT), "--size", size]
    limited = [sys.executable, "-m", "uffdswap", "run", "--memory", memory, "--stats", str(stats)]
    bare = Watched("bare", sort, bare=True)
    managed = Watched("uffdswap", [*limited, "--", *sort], bare=False)
    shown = f"python examples/{SORT.name} --size {size}"

    console.print(f"\n[bold]1. bare:[/] {shown}\n", highlight=False)
    top_bytes = parse_size(size) + 96 * MIB
    with Screen(console, limit_bytes, top_bytes) as screen:
        watch(bare, screen)
    console.print(f"  {bare.answer}", highlight=False)
    console.print(f"\n[bold]2. uffdswap run --memory {memory} --[/] {shown}\n", highlight=False)
    with Screen(console, limit_bytes, top_bytes) as screen:
        watch(managed, screen)
    console.print(f"  {managed.answer}\n", highlight=False)
    if managed.status == 125 or not stats.exists() or not stats.stat().st_size:
        console.print("uffdswap could not do it; `uffdswap doctor` says what is missing.")
        return 1
    managed.stats = json.loads(stats.read_text())
    console.print(comparison(bare, managed))
    console.print()
    console.print(account(managed))
    return 0 if bare.status == managed.status == 0 else 1


def parse_size(text: str) -> int:
    """Read a size such as 512M."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(float(text[:-1]) * units[text[-1]]) if text[-1:] in units else int(text)


def main() -> int:
    """Parse the arguments and tell the story."""
    parser = argparse.ArgumentParser(description="Show what uffdswap does.")
    parser.add_argument("--size", default="768M", help="of the array to sort (768M)")
    parser.add_argument("--memory", default="300M", help="budget of the second run (300M)")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        return run_both(
            console,
            options.size,
            options.memory,
            parse_size(options.memory),
            Path(folder) / "stats.json",
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
