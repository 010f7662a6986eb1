# SPDX-License-Identifier: MIT
"""`uffdswap doctor`: can this machine do it?"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from .. import doctor as checks
from .._lib import probe, shim_path
from ..doctor import Finding, Group, Verdict
from ..errors import UffdswapError, UsageError

__all__ = ("doctor",)

_COLOURS = {Verdict.OK: "32", Verdict.WARN: "33", Verdict.FAIL: "31"}
_FOUND_COLUMNS = 44
_LINE_COLUMNS = 100


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings fail, too.")] = False,
    feature: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Ask for one check only, by its name in --json."),
    ] = None,
) -> None:
    """Check what this machine lacks, and say what would help."""
    kernel = probe()
    host = checks.Host.read(shim_error=checks.load_shim(shim_path()))
    findings = checks.examine(kernel, host)
    if feature is not None:
        findings = _only(findings, feature)
    if as_json:
        print(json.dumps(checks.as_json(kernel, findings), indent=2))
    else:
        _print_groups(findings)
        if feature is None:
            print(f"\n{_summary(findings)}")
    if not checks.is_ready(findings, strict=strict):
        raise typer.Exit(1)


def _only(findings: tuple[Finding, ...], name: str) -> tuple[Finding, ...]:
    """Return the finding of one check, or the failures that made it pointless to ask."""
    names = [check.name for check in checks.CHECKS]
    if name not in names:
        raise UsageError(
            f'there is no check named "{name}"', remedy=f"take one of {', '.join(names)}"
        )
    chosen = tuple(finding for finding in findings if finding.name == name)
    if chosen:
        return chosen
    failures = tuple(finding for finding in findings if finding.answer.verdict is Verdict.FAIL)
    if not failures:
        raise UffdswapError(f"the check {name} does not apply here")
    return failures


def _print_groups(findings: tuple[Finding, ...]) -> None:
    for group in Group:
        members = [finding for finding in findings if finding.group is group]
        if members:
            print(group.value)
        for finding in members:
            _print_finding(finding)


def _print_finding(finding: Finding) -> None:
    answer = finding.answer
    mark = _coloured(f"{answer.verdict.value:<5}", answer.verdict)
    beside = f"{answer.found:<{_FOUND_COLUMNS}}  {answer.why}".rstrip()
    if len(beside) <= _LINE_COLUMNS - 8:
        print(f"  {mark} {beside}")
    else:
        print(f"  {mark} {answer.found}")
        print(f"        {answer.why}")
    if answer.now:
        print(f"        now:   {answer.now}")
    if answer.kept:
        print(f"        kept:  {answer.kept}")


def _summary(findings: tuple[Finding, ...]) -> str:
    failures = sum(finding.answer.verdict is Verdict.FAIL for finding in findings)
    warnings = sum(finding.answer.verdict is Verdict.WARN for finding in findings)
    if failures:
        return f"Not ready. {_count(failures, 'required check')} failed."
    if warnings:
        return f"Ready. {_count(warnings, 'warning')}; none stops `uffdswap run`."
    return "Ready."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _coloured(text: str, verdict: Verdict) -> str:
    """Colour a word where colour is wanted: a terminal, and nobody said no."""
    forced = os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0")
    refused = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    if refused or not (forced or (sys.stdout is not None and sys.stdout.isatty())):
        return text
    return f"\x1b[{_COLOURS[verdict]}m{text}\x1b[0m"
