# SPDX-License-Identifier: MIT
# Goal: `uffdswap tier` explains itself, and a wrong line is one line of explanation.
# Method: the command as users type it, without a session; sessions are tests/integration's.
"""The command line of `uffdswap tier`."""

from __future__ import annotations

import pytest

from .launching import error_lines, uffdswap


def test_help_names_the_commands() -> None:
    done = uffdswap("tier", "--help", env={"PATH": "/usr/bin", "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    for word in (b"list", b"add", b"remove"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["nothing"], 2, "No such command 'nothing'"),
        (["remove"], 2, "Missing argument 'NAME'"),
        (["add", ":1G"], 2, 'PATH[:SIZE]: ":1G" is not a place and a size'),
        (["add", "/tmp:5X"], 2, 'PATH[:SIZE]: "5X" is not a size'),
        (["add", "/tmp:G"], 2, 'PATH[:SIZE]: "G" after /tmp: is not a size'),
        (["add", "/tmp", "--name", ""], 2, '--name: "" cannot be a name'),
        (["add", "/tmp", "--name", "x" * 32], 2, "cannot be a name"),
        (["add", "/tmp", "--priority", "40000"], 2, "Invalid value for '--priority'"),
        (["list", "--pid", "1"], 3, "no session has the process 1"),
        (["add", "/tmp", "--pid", "1"], 3, "no session has the process 1"),
        (["remove", "disk1", "--pid", str(2**22 + 1)], 3, "there is no such process"),
    ],
)
def test_wrong_line_has_its_status_and_one_sentence(
    words: list[str], status: int, text: str
) -> None:
    done = uffdswap("tier", *words)
    assert done.returncode == status, done.stderr
    assert done.stdout == b""
    (line,) = error_lines(done.stderr)
    assert text in line
