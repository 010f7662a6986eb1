# SPDX-License-Identifier: MIT
# Goal: what makes no sense is refused at once, by the name of its option, with status 2.
# Method: the command as users give it, where even the first run would be told of on stderr.
"""What `uffdswap bench` refuses before it measures anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uffdswap.bench.inputs import require_pages, require_place
from uffdswap.cli import main
from uffdswap.errors import UsageError

NONE = ("--against", "none")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(("--size", "0"), '--size: "0" is too little memory', id="no-size"),
        pytest.param(("--size", "1Q"), '--size: "1Q" is not a size', id="unit"),
        pytest.param(("--size", "50%"), '--size: "50%" is not a size', id="share"),
        pytest.param(("--size", "max"), '--size: "max" is no amount', id="max"),
        pytest.param(
            ("--size", "1M", "--threads", "17"), "too little for --threads 17", id="threads"
        ),
        pytest.param(("--resident", "x"), '--resident: "x" is not a size', id="no-limit"),
        pytest.param(("--resident", "0"), '--resident: "0" is too small a limit', id="zero"),
        pytest.param(("--resident", "10G", "--size", "64M"), "64.0 MiB, fits", id="fits"),
        pytest.param(("--resident", "max", "--size", "64M"), "64.0 MiB, fits", id="unlimited"),
        pytest.param(
            ("--pages", "/nonexistent"), '--pages: cannot take pages from "/no', id="pages"
        ),
        pytest.param(("--plot", "/nonexistent/x.svg"), '--plot: cannot write "/none', id="plot"),
        pytest.param(("--app", "dict", "--size", "0"), '--size: "0" is too little', id="app-size"),
        pytest.param(("--app", "dict", "--resident", "1Q"), '--resident: "1Q"', id="app-limit"),
        pytest.param(("--app", "sh -c 'x"), "No closing quotation", id="app-quotes"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    options: tuple[str, ...], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *NONE, *options]) == 2
    stdout, stderr = capfd.readouterr()
    (line,) = stderr.splitlines()
    assert words in line
    assert not stdout


def test_pages_that_cannot_be_taken_are_refused_with_the_reason(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"x" * 4095)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, why in ((short, "no page"), (fifo, "not a regular"), (tmp_path, "not a regular")):
        with pytest.raises(UsageError, match=why):
            require_pages(str(path))
    short.write_bytes(b"x" * 4096)
    require_pages(str(short))


def test_a_picture_is_refused_where_it_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    with pytest.raises(UsageError, match="it is a folder"):
        require_place(str(folder))
    require_place(str(tmp_path / "picture.svg"))
    require_place("picture.svg")


def test_help_says_for_whom_root_is_needed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "zram, zswap or swapfile needs root; with none it needs only what run needs" in text
