# SPDX-License-Identifier: MIT
# Goal: whether a command line of `run` is parsed with typer or without makes no difference.
# Method: hypothesis makes command lines; both ways must agree, or the quick one must decline.
"""The two parsers of `uffdswap run`."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from uffdswap import cli
from uffdswap.cli import run
from uffdswap.cli._parse import parse_run

Parsed = tuple[dict[str, str], tuple[str, ...]]

VALUE_OPTIONS = (
    "-m",
    "--memory",
    "--resident",
    "--disk",
    "--on-full",
    "--policy",
    "--stats",
    "--stress",
)
SWITCHES = ("-q", "--quiet", "-v", "--verbose", "--no-disk", "--no-disk-encryption")
VALUES = st.sampled_from(["1G", "50%", "clock", "x.json", "a=b", "=", "-", "--", "-v", "-1", ""])
WORDS = st.one_of(
    st.sampled_from(VALUE_OPTIONS),
    st.sampled_from(SWITCHES),
    st.tuples(st.sampled_from(VALUE_OPTIONS), VALUES).map("=".join),
    st.tuples(st.sampled_from(VALUE_OPTIONS), VALUES).map("".join),
    VALUES,
    st.sampled_from(["prog", "arg", "-qv", "-vv", "-x", "--memor", "--help", "-qm", "-vm1G"]),
)


@functools.cache
def application() -> typer.Typer:
    return cli.app()


def parse_by_typer(arguments: list[str]) -> Parsed | None:
    """Return what typer passes on; None for help and errors."""
    passed: list[Parsed] = []

    def execute(options: dict[str, str], command: tuple[str, ...]) -> int:
        passed.append((options, command))
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "execute", execute)
        try:
            application()(["run", *arguments], prog_name="uffdswap", standalone_mode=False)
        except typer.TyperException:
            return None
    return passed[0] if passed else None


@settings(max_examples=200)
@given(st.lists(WORDS, max_size=8))
def test_both_ways_agree(arguments: list[str]) -> None:
    quick = parse_run(arguments)
    if quick is not None:
        assert quick == parse_by_typer(arguments)


@pytest.mark.parametrize(
    ("arguments", "options", "command"),
    [
        (["-m", "1G", "prog"], {"memory": "1G"}, ("prog",)),
        (["--memory=1G", "--", "prog"], {"memory": "1G"}, ("prog",)),
        (["--resident", "50%", "-q", "prog", "-v", "--memory"], None, None),
        (["-v", "-v", "--stress=5", "prog"], {"verbose": "2", "stress": "5"}, ("prog",)),
        (["--", "-prog", "--", "x"], {}, ("-prog", "--", "x")),
        (["grep", "--", "-x"], {}, ("grep", "--", "-x")),
        (["-m", "1G", "-m", "2G", "prog"], {"memory": "2G"}, ("prog",)),
        (["-", "x"], {}, ("-", "x")),
        (["-m", "", "x"], {"memory": ""}, ("x",)),
        (["--disk", "/a:1G", "--disk=/b", "x"], {"disk": "/a:1G\n/b"}, ("x",)),
    ],
)
def test_plain_command_lines_need_no_typer(
    arguments: list[str], options: Any, command: Any
) -> None:
    expected = (options, command)
    if options is None:
        expected = ({"resident": "50%", "quiet": "1"}, ("prog", "-v", "--memory"))
    assert parse_run(arguments) == expected == parse_by_typer(arguments)


@pytest.mark.parametrize(
    "arguments",
    [[], ["-m"], ["-m", "1G"], ["--nothing", "x"], ["--help"], ["-m", "--", "x"], ["-vv", "x"]],
)
def test_all_else_is_left_to_typer(arguments: list[str]) -> None:
    assert parse_run(arguments) is None
