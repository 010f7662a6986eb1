# SPDX-License-Identifier: MIT
"""Read the command line of `run` without typer, if it is plainly right.

What this does not understand at once it leaves to typer, which then either understands it or
explains what is wrong with it. So there is one source of error messages, and the tests hold the two
to the same answers.
"""

from __future__ import annotations

__all__ = ("parse_run",)

_VALUES = {
    "-m": "memory",
    "--memory": "memory",
    "--resident": "resident",
    "--disk": "disk",
    "--on-full": "on_full",
    "--policy": "policy",
    "--stats": "stats",
    "--stress": "stress",
}
_SEVERAL = ("disk",)
_SWITCHES = {
    "-q": "quiet",
    "--quiet": "quiet",
    "-v": "verbose",
    "--verbose": "verbose",
    "--no-disk": "no_disk",
    "--no-disk-encryption": "no_disk_encryption",
}


def parse_run(arguments: list[str]) -> tuple[dict[str, str], tuple[str, ...]] | None:
    """Return options by name, as text, and the program with its arguments; None if in doubt.

    >>> parse_run(["-m", "1G", "-v", "--", "sort", "-n"])
    ({'memory': '1G', 'verbose': '1'}, ('sort', '-n'))
    >>> parse_run(["--memroy", "1G", "sort"])
    """
    options: dict[str, str] = {}
    counts = dict.fromkeys(_SWITCHES.values(), 0)
    rest = list(reversed(arguments))
    while rest and rest[-1].startswith("-") and rest[-1] not in ("-", "--"):
        word, equals, value = rest.pop().partition("=")
        if word in _SWITCHES and not equals:
            counts[_SWITCHES[word]] += 1
        elif word in _VALUES and equals and word.startswith("--"):
            _set(options, _VALUES[word], value)
        elif word in _VALUES and not equals and rest and not rest[-1].startswith("-"):
            _set(options, _VALUES[word], rest.pop())
        else:
            return None
    if rest and rest[-1] == "--":
        rest.pop()
    if not rest:
        return None
    options |= {name: str(count) for name, count in counts.items() if count}
    return options, tuple(reversed(rest))


def _set(options: dict[str, str], name: str, value: str) -> None:
    """The last value wins, but for what may be given several times: then there is one a line."""
    before = f"{options[name]}\n" if name in _SEVERAL and name in options else ""
    options[name] = before + value
