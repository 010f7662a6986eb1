# SPDX-License-Identifier: MIT
# Goal: a program that stays under its limit does not notice us.
# Method: it reports what it can see of itself; that must be the same as in a bare run.
"""No fault, no thread, no lost huge page below the limit."""

from __future__ import annotations

import json

from .fixtures import RunFunction
from .harness import Programs


def test_program_below_its_limit_sees_no_difference(
    programs: Programs, uffdswap_run: RunFunction, bare_run: RunFunction
) -> None:
    args = [programs("below_limit"), "64M"]
    bare = bare_run(args)
    bare.require_ok()
    managed = uffdswap_run(args, resident="256M")
    managed.require_ok(paged=False)
    assert json.loads(managed.stdout) == json.loads(bare.stdout)
    assert managed.stderr == bare.stderr


def test_no_fault_is_served_below_the_limit(programs: Programs, uffdswap_run: RunFunction) -> None:
    outcome = uffdswap_run([programs("below_limit"), "64M"], resident="256M")
    outcome.require_ok(paged=False)
    assert outcome.stats["faults"]["total"] == 0
    assert outcome.stats["swap"]["descriptors"] == 0


def test_no_fault_is_served_within_the_budget(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run([programs("below_limit"), "32M"], memory="400M")
    outcome.require_ok(paged=False)
    assert outcome.stats["faults"]["total"] == 0
