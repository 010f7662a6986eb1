# SPDX-License-Identifier: MIT
# Goal: what is shown of a comparison is right, also with failed runs, long names, narrow terminals.
# Method: comparisons made up; the picture in both formats; the messages of missing programs.
"""Results, picture and applications of `uffdswap bench`."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from uffdswap.bench.apps import READY, ReadyApp, find_ready
from uffdswap.bench.counters import Moved, moved_by_session
from uffdswap.bench.measure import AppSample, Sample
from uffdswap.bench.plot import draw, require_kind
from uffdswap.bench.results import (
    Comparison,
    Failure,
    document,
    format_figure,
    format_ratio,
    ratio,
)
from uffdswap.cli import _bench_table
from uffdswap.cli._bench_table import print_tables
from uffdswap.cli.bench import _plan
from uffdswap.errors import SetupFailed, UsageError

LONG = "python3 a_job_with_a_long_name.py --input somewhere --output elsewhere"


def sample(pages_per_second: float) -> Sample:
    latencies = (4.0, 20.0, 640.0, 12345.0)
    return Sample(pages_per_second, *latencies, 10**6, 120_000, 130_000, 125_000, 2.0, 1.0, 1, 2, 3)


def app_sample(seconds: float) -> AppSample:
    return AppSample(seconds, 2 * seconds, 10, 20, 1 << 20)


def pattern() -> Comparison:
    runs: dict[str, list[Sample | AppSample | None]] = {
        "uffdswap": [sample(200_000), None, sample(150_000)],
        "zram-lz4": [sample(100_000), sample(90_000), sample(100_000)],
        "swapfile": [None, None, None],
    }
    failures = [Failure("uffdswap", 2, "the run under uffdswap failed", "/tmp/kept")]
    failures += [Failure("swapfile", number, "no room", "/tmp/kept") for number in (1, 2, 3)]
    names = tuple(runs)
    return Comparison("uniform-rw", names, runs=runs, failures=failures)


def application() -> Comparison:
    runs: dict[str, list[Sample | AppSample | None]]
    runs = {"uffdswap": [app_sample(3.0)], "zram-lz4": [app_sample(4.0)]}
    return Comparison(LONG, tuple(runs), command=LONG.split(), runs=runs)


def test_ratios_are_of_rounds_in_which_both_came_to_their_end() -> None:
    comparison = pattern()
    assert comparison.ratios("zram-lz4", "pages_per_second") == [2.0, 1.5]
    assert comparison.ratios("swapfile", "pages_per_second") == []
    assert ratio([]) is None
    assert comparison.median("swapfile", "p99_us") is None
    assert comparison.median("uffdswap", "pages_per_second") == 175_000


def test_ratios_far_below_one_keep_their_digits() -> None:
    found = ratio([0.00004126, 0.0004, 1.23456])
    assert found == {"median": 0.0004, "min": 0.00004126, "max": 1.2346}
    assert [format_ratio(value) for value in found.values()] == ["0.00040", "0.000041", "1.23"]


@given(st.floats(1e-9, 1e9))
def test_no_figure_is_shown_as_nothing_or_far_from_what_it_is(value: float) -> None:
    for text in (format_figure(value), format_ratio(value)):
        assert "e" not in text
        assert float(text.replace(",", "")) == pytest.approx(value, rel=0.05)


def test_the_document_numbers_runs_by_their_rounds() -> None:
    (result,) = document([pattern()], {})["results"]
    assert [run["round"] for run in result["runs"]["uffdswap"]] == [1, 3]
    assert result["median"]["swapfile"]["p99_us"] is None
    assert result["ratio"]["swapfile"]["pages_per_second"] is None


def printed(
    columns: int, monkeypatch: pytest.MonkeyPatch, comparisons: list[Comparison]
) -> list[str]:
    """Return the lines that a terminal of a width shows."""
    consoles: list[Console] = []

    def console(**_options: object) -> Console:
        consoles.append(Console(width=columns, force_terminal=True, record=True))
        return consoles[-1]

    monkeypatch.setattr(_bench_table, "Console", console)
    print_tables(comparisons)
    return consoles[-1].export_text().splitlines()


@pytest.mark.parametrize("columns", [60, 80, 110, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(columns, monkeypatch, [pattern(), application()])
    text = "\n".join(lines)
    ratios = ("1.75", "1.50..2.00") if columns == 60 else ("1.75 (1.50..2.00)",)
    for word in (*ratios, "175,000", "12,345", "python3 a_job_with_a_lo…", "0.120"):
        assert word in text, text
    assert "23.1" in text, text  # 3 s of processor time for 130,000 pages in
    assert "on stderr: 1 of uffdswap, 3 of swapfile" in text
    assert "the run under uffdswap failed" not in text  # said when it did
    assert max(len(line) for line in lines if "failed" not in line) <= columns, text


@pytest.mark.parametrize(("columns", "tables"), [(60, 1), (80, 3), (110, 2), (200, 1)])
def test_a_narrow_terminal_gets_few_parts_and_none_of_one_column(
    columns: int, tables: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(columns, monkeypatch, [pattern()])
    assert sum(line.startswith(" ──") for line in lines) == tables
    for line in lines:
        if "zram-lz4" in line:
            assert len(line.split()) >= 3, line


def test_more_peers_than_fit_beside_each_other_are_each_beside_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("uffdswap", "zram-lz4", "zram-lzo-rle", "zswap", "swapfile", "none")
    runs: dict[str, list[Sample | AppSample | None]] = {name: [sample(1000)] for name in names}
    lines = printed(60, monkeypatch, [Comparison("uniform-rw", names, runs=runs)])
    heads = [line.split()[1:] for line in lines if "uniform-rw" in line]
    assert all(head[0] == "uffdswap" for head in heads)
    assert tuple(name for head in heads for name in head[1:]) == names[1:]
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize("comparison", [pattern(), application()], ids=["pattern", "app"])
def test_the_svg_is_well_formed_and_names_everybody(comparison: Comparison) -> None:
    root = ElementTree.fromstring(draw("x.svg", [comparison], "a < b"))
    texts = " ".join(root.itertext())
    for name in comparison.contenders:
        assert name in texts
    assert "a < b" in texts
    width = float(root.attrib["width"])
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert float(text.attrib["x"]) < width


def test_the_png_is_one() -> None:
    pytest.importorskip("matplotlib")
    assert draw("x.png", [pattern()], "a test").startswith(b"\x89PNG")


def test_a_picture_of_another_kind_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(UsageError, match=re.escape("ends in .svg or .png")):
        require_kind("picture.pdf")


def test_without_matplotlib_png_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(SetupFailed, match="pip install matplotlib"):
        require_kind("picture.png")


def test_what_an_application_lacks_is_said_with_the_command_that_installs_it() -> None:
    with pytest.raises(SetupFailed, match="-m pip install no_such_module"):
        ReadyApp("x", "x.py", modules=("no_such_module",)).require()
    with pytest.raises(SetupFailed, match=r"install no-such-package$"):
        ReadyApp("x", "x.py", program="no-such-program", package="no-such-package").require()


def test_a_word_that_is_no_application_and_no_command_is_refused() -> None:
    with pytest.raises(UsageError, match="ready-made are numpy-sort"):
        _plan("pandas_groupby", 1 << 20, "50%")


def test_ready_applications_are_there_and_other_words_are_commands() -> None:
    for app in READY:
        assert find_ready(app.name) is app
        assert Path(app.command(1 << 20)[1]).is_file()
    assert find_ready("python3 job.py") is None


def test_pages_that_a_session_moved_are_those_it_brought_in_and_sent_out() -> None:
    counters = {f"faults_{kind}": 1 for kind in ("standby", "zero", "same", "ram", "disk")}
    counters |= {"faults_total": 100, "faults_hole": 50}  # holes held nothing
    counters |= {"prefetched_pages": 7, "evicted_pages": 20, "faults_present": 3}
    assert moved_by_session(counters) == Moved(pages_in=12, pages_out=20, faults=8)
