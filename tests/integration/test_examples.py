# SPDX-License-Identifier: MIT
# Goal: every example runs, and gives the right answer with a third of the memory it needs.
# Method: run each file of examples/ under a limit; a file without a row in the table fails.
"""Every file in examples/."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass

import pytest

from .fixtures import RunFunction
from .harness import REPOSITORY, Programs

EXAMPLES = REPOSITORY / "examples"


@dataclass(frozen=True, slots=True)
class Case:
    """How to run an example so that it takes seconds, and what it says if all is well."""

    arguments: str
    resident: str
    answer: str


CASES = {
    "sort_numpy.py": Case("--size 96M", "48M", "in order, none lost"),
    "sqlite_memory.py": Case("--orders 120000", "16M", "every answer is right"),
    "big_dict.py": Case("--entries 120000", "16M", "all right"),
    "fork_server.py": Case("--size 40M --workers 3", "24M", "3 of them found it right"),
    "notebook.py": Case("--size 60M --idle 1", "24M", "all as it was"),
    "kvstore.c": Case("48 8", "16M", "every value is right"),
}
NOT_PROGRAMS = {"README.md", "demo.py"}  # the demo has a test of its own


def command_of(name: str, programs: Programs) -> list[str]:
    """Return the command that runs an example; C is compiled by the line in its own header."""
    path = EXAMPLES / name
    if path.suffix == ".py":
        return [sys.executable, str(path)]
    line = re.search(rf"^ \*\s+(gcc .*)examples/{re.escape(name)} -o ", path.read_text(), re.M)
    assert line, f"{name} does not say how to compile it"
    return [programs.compile(path, shlex.split(line.group(1))[1:])]


def test_every_example_is_run() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert files == CASES.keys() | NOT_PROGRAMS


@pytest.mark.parametrize("name", CASES)
def test_example_is_right_under_a_limit(
    name: str, programs: Programs, uffdswap_run: RunFunction
) -> None:
    case = CASES[name]
    command = [*command_of(name, programs), *case.arguments.split()]
    outcome = uffdswap_run(command, resident=case.resident, timeout=110)
    outcome.require_ok(paged=True)
    assert case.answer in outcome.stdout, outcome.describe()


@pytest.mark.parametrize("name", CASES)
def test_readme_of_the_examples_lists_it(name: str) -> None:
    assert f"`{name}`" in (EXAMPLES / "README.md").read_text()


def test_demo_shows_both_runs_and_the_comparison(bare_run: RunFunction) -> None:
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--size", "64M", "--memory", "80M"]
    outcome = bare_run(command, cwd=REPOSITORY, timeout=110)
    outcome.require_ok()
    for text in ("1. bare", "2. uffdswap run --memory 80M", "in order, none lost", "verified"):
        assert text in outcome.stdout, outcome.describe()
    assert "WRONG" not in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 80, outcome.describe()
