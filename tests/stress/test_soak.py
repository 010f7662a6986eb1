# SPDX-License-Identifier: MIT
# Goal: what holds once holds for hours: no race is lost however often it is run.
# Method: races and mixed programs with new seeds and limits, for UFFDSWAP_SOAK_SECONDS (300).
"""Soak tests, run by `make soak`. A failure prints the command that repeats it."""

from __future__ import annotations

import os
import random
import shlex
import time
from pathlib import Path

import pytest
from integration.fixtures import RunFunction, StartFunction
from integration.harness import Programs
from integration.test_lifecycle import cases
from integration.test_races import RACES

TESTS = 4  # share the time
SOAK_SECONDS = float(os.environ.get("UFFDSWAP_SOAK_SECONDS", "300")) / TESTS
ROUND_SECONDS = "8"

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SOAK_SECONDS + 600)]


class Rounds:
    """Rounds until the time is up; each has its own source of chance, so it can be repeated."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + SOAK_SECONDS
        self._seed = int(os.environ.get("UFFDSWAP_SOAK_SEED", str(time.time_ns() % 10**9)))

    def __iter__(self) -> Rounds:
        return self

    def __next__(self) -> random.Random:
        if time.monotonic() > self._deadline:
            raise StopIteration
        self._seed += 1
        print(f"UFFDSWAP_SOAK_SEED={self._seed - 1}")
        return random.Random(self._seed)


def limits(chance: random.Random) -> dict[str, object]:
    """Choose between random eviction, a limit, and both."""
    stress = chance.choice([None, 5_000, 50_000, 200_000])
    resident = chance.choice(["4M", "8M", "16M"]) if not stress or chance.random() < 0.5 else None
    return {"stress": stress, "resident": resident, "timeout": 180}


def test_races_are_never_lost(programs: Programs, uffdswap_run: RunFunction) -> None:
    for chance in Rounds():
        name, *mode = chance.choice(RACES)
        seed = str(chance.randrange(1 << 30))
        outcome = uffdswap_run([programs(name), *mode, ROUND_SECONDS, seed], **limits(chance))
        outcome.require_ok(paged=True)


def test_lives_are_never_disturbed(programs: Programs, uffdswap_run: RunFunction) -> None:
    for chance in Rounds():
        program, check = chance.choice(cases())
        limit = chance.choice(["8M", "12M", "16M", "24M"])
        stress = chance.choice([None, 2_000, 20_000])
        seed = str(chance.randrange(1 << 30))
        outcome = uffdswap_run(
            [programs(program), check, limit, seed], resident=limit, stress=stress, timeout=180
        )
        if outcome.returncode != 77:
            outcome.require_ok(paged=True)


def test_mixed_programs_share_a_session(
    programs: Programs, uffdswap_run: RunFunction, tmp_path: Path
) -> None:
    for chance in Rounds():
        parts = [
            [programs("rewrite"), "24M", "20000", str(chance.choice([1, 2, 8]))],
            [programs("race_write"), ROUND_SECONDS, str(chance.randrange(1 << 30))],
            [programs("limit_growth"), chance.choice(["mmap", "brk", "arenas", "all"]), "64M"],
            [programs("race_fork"), ROUND_SECONDS, str(chance.randrange(1 << 30))],
        ]
        chosen = chance.sample(parts, 3)
        lines = [f'{shlex.join(part)} & pids="$pids $!"' for part in chosen]
        script = tmp_path / "mixed.sh"
        script.write_text("\n".join([*lines, "for p in $pids; do wait $p || exit 1; done\n"]))
        outcome = uffdswap_run(
            ["sh", str(script)], resident=chance.choice(["16M", "32M"]), timeout=300
        )
        assert outcome.returncode == 0, f"{script.read_text()}\n{outcome.describe()}"
        outcome.require_ok(paged=True)


def test_killed_sessions_leave_nothing_behind(
    programs: Programs, start_session: StartFunction
) -> None:
    for chance in Rounds():
        with start_session([programs("race_write"), "0"], resident="8M", stress=50_000) as session:
            session.wait_for_output("running")
            time.sleep(chance.random() * 2)
            os.kill(session.targets()[0].pid, 9)
            outcome = session.finish()
        assert outcome.returncode == -9, outcome.describe()
        assert not outcome.left_over, outcome.describe()
