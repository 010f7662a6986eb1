# SPDX-License-Identifier: MIT
# Goal: whatever a program does to its address space, its memory holds what it put there.
# Method: a fuzzer that knows what each page must hold, with fixed seeds; `make soak` draws others.
"""Random threads, mappings, moves, advice, protections, locks, forks, under small limits."""

from __future__ import annotations

import pytest

from .fixtures import RunFunction
from .harness import Programs

STEPS = "60"
LIMITS: dict[str, dict[str, object]] = {
    "resident": {"resident": "8M", "freeze_ms": 5},
    "memory": {"memory": "48M"},
    "no-disk": {"memory": "48M", "options": ("--no-disk",)},
    "stress": {"stress": 50_000},
    "stress-resident": {"stress": 20_000, "resident": "8M"},
}


@pytest.mark.parametrize("seed", ["1", "3", "6"])
@pytest.mark.parametrize("limit", LIMITS)
def test_what_a_program_does_to_its_memory_loses_nothing(
    limit: str, seed: str, programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run([programs("fuzz_space"), seed, STEPS], **LIMITS[limit])
    # A limit alone may be above what it needs: then nothing leaves.
    outcome.require_ok(paged=True if "stress" in LIMITS[limit] else None)
    assert f"ok: seed {seed}," in outcome.stdout, outcome.describe()


def test_the_fuzzer_is_right_about_a_bare_run(programs: Programs, bare_run: RunFunction) -> None:
    for seed in ("1", "2", "3"):
        outcome = bare_run([programs("fuzz_space"), seed, STEPS])
        assert outcome.returncode == 0, outcome.describe()
