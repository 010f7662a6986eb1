# SPDX-License-Identifier: MIT
# Goal: an eviction in the middle of anything loses nothing and brings nothing back.
# Method: evict random pages far faster than any limit would, while threads do the worst; and stop
#   any thread of the session at any place for milliseconds.
"""Races between eviction and the program, provoked on purpose."""

from __future__ import annotations

import pytest

from .fixtures import RunFunction
from .harness import Programs

SECONDS = "3"
STRESS = 50_000
FREEZE_MS = 10
RACES = (
    ("race_write",),
    ("race_map", "unmap"),
    ("race_map", "fixed"),
    ("race_map", "dontneed"),
    ("race_map", "mremap"),
    ("race_map", "mprotect"),
    ("race_move",),
    ("race_follow", "move"),
    ("race_replace",),
    ("race_fork",),
    ("race_missing",),
)


@pytest.mark.parametrize("race", RACES, ids=map("-".join, RACES))
def test_eviction_in_the_middle_loses_nothing(
    race: tuple[str, ...], programs: Programs, uffdswap_run: RunFunction
) -> None:
    name, *mode = race
    outcome = uffdswap_run([programs(name), *mode, SECONDS], stress=STRESS)
    outcome.require_ok(paged=True)
    assert "ok" in outcome.stdout, outcome.describe()


def test_a_move_that_the_kernel_tries_twice_loses_nothing(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run([programs("race_cold"), "6"], stress=4 * STRESS)
    outcome.require_ok(paged=True)
    assert "ok" in outcome.stdout, outcome.describe()


@pytest.mark.parametrize("mode", ("back", "on", "keep"))
def test_a_fork_between_two_moves_loses_nothing(
    mode: str, programs: Programs, uffdswap_run: RunFunction
) -> None:
    """Which of them the child has seen does not follow from where something is in it."""
    outcome = uffdswap_run([programs("race_between"), mode, "2"], stress=STRESS)
    outcome.require_ok(paged=True)
    assert "ok" in outcome.stdout, outcome.describe()


RACES_AT_THE_LIMIT = (("race_write",), ("race_fork",), ("race_follow", "fork"))


@pytest.mark.parametrize("race", RACES_AT_THE_LIMIT, ids=map("-".join, RACES_AT_THE_LIMIT))
def test_race_at_the_limit_loses_nothing(
    race: tuple[str, ...], programs: Programs, uffdswap_run: RunFunction
) -> None:
    name, *mode = race
    outcome = uffdswap_run(
        [programs(name), *mode, SECONDS], stress=STRESS, resident="8M", freeze_ms=FREEZE_MS
    )
    outcome.require_ok(paged=True)
    if outcome.stops is None:
        pytest.skip("ptrace(PTRACE_SEIZE) of other programs is not permitted")
    assert outcome.stops, outcome.describe()
