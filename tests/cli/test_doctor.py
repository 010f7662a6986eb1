# SPDX-License-Identifier: MIT
# Goal: scripts can trust doctor's status, streams and JSON; people can read the rest.
# Method: run the real command and compare it with what the library finds.
"""`uffdswap doctor` as a command."""

import json
import os
import subprocess
import sys

import pytest

from uffdswap import doctor
from uffdswap._lib import Probe, probe, shim_path
from uffdswap.doctor import Finding, Host, Verdict


def run_doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "uffdswap", "doctor", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def kernel_says() -> Probe:
    return probe()


@pytest.fixture(scope="module")
def expected(kernel_says: Probe) -> tuple[Finding, ...]:
    return doctor.examine(kernel_says, Host.read(shim_error=doctor.load_shim(shim_path())))


def test_status_says_whether_the_machine_is_ready(expected: tuple[Finding, ...]) -> None:
    done = run_doctor()
    assert done.returncode == (0 if doctor.is_ready(expected) else 1), done.stdout
    assert done.stderr == ""
    assert done.stdout.rstrip().splitlines()[-1].startswith(("Ready.", "Not ready."))


def test_every_finding_is_printed_with_its_remedies(expected: tuple[Finding, ...]) -> None:
    printed = run_doctor().stdout
    for finding in expected:
        answer = finding.answer
        for part in (answer.found, answer.why, answer.now, answer.kept):
            if part and "python" not in part:  # these name the interpreter that ran
                assert part in printed


def test_json_is_what_the_library_says(kernel_says: Probe, expected: tuple[Finding, ...]) -> None:
    document = json.loads(run_doctor("--json").stdout)
    assert document["schema"] == "uffdswap.doctor/1"
    assert [(one["name"], one["verdict"]) for one in document["checks"]] == [
        (finding.name, finding.answer.verdict.value) for finding in expected
    ]
    assert document["probe"]["features"] == kernel_says.features


def test_strict_fails_if_anything_warns(expected: tuple[Finding, ...]) -> None:
    done = run_doctor("--strict")
    assert done.returncode == (0 if doctor.is_ready(expected, strict=True) else 1)


def test_one_feature_is_one_line_and_one_status(expected: tuple[Finding, ...]) -> None:
    (kernel,) = [finding for finding in expected if finding.name == "kernel"]
    done = run_doctor("--feature", "kernel")
    assert done.returncode == (1 if kernel.answer.verdict is Verdict.FAIL else 0)
    assert kernel.answer.found in done.stdout


def test_an_unknown_feature_is_a_usage_error_that_lists_the_known() -> None:
    done = run_doctor("--feature", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert '"nonsense"' in done.stderr
    assert "agent-permission" in done.stderr


def test_colour_is_for_terminals_and_for_who_insists() -> None:
    assert "\x1b[" not in run_doctor().stdout
    assert "\x1b[" in run_doctor(CLICOLOR_FORCE="1").stdout
    assert "\x1b[" not in run_doctor(CLICOLOR_FORCE="1", NO_COLOR="1").stdout


def test_a_broken_preload_of_somebody_else_is_not_the_shims_fault() -> None:
    done = run_doctor("--feature", "shim", LD_PRELOAD="/nonexistent/other.so")
    assert done.returncode == 0, done.stdout
