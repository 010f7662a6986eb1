# SPDX-License-Identifier: MIT
# Goal: what holds once holds for hours: no race is lost however often it is run.
# Method: races and mixed programs with new seeds and limits, and sessions whose limits, tiers and
#   programs change all the time, for UFFDSWAP_SOAK_SECONDS (300).
"""Soak tests, run by `make soak`. A failure prints the command that repeats it."""

from __future__ import annotations

import os
import random
import shlex
import signal
import time
from pathlib import Path

import pytest
from integration.fixtures import RunFunction, StartFunction
from integration.harness import REPOSITORY, Programs, processes_below, run_command
from integration.test_lifecycle import cases
from integration.test_races import RACES

TESTS = 6  # share the time
SOAK_SECONDS = float(os.environ.get("UFFDSWAP_SOAK_SECONDS", "300")) / TESTS
ROUND_SECONDS = "8"
CROWD_SECONDS = 25.0
CROWD = REPOSITORY / "tests" / "programs" / "soak_crowd.py"

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
    """Choose between random eviction, a limit, and both; and how long a thread may be stopped."""
    stress = chance.choice([None, 5_000, 50_000, 200_000])
    resident = chance.choice(["4M", "8M", "16M"]) if not stress or chance.random() < 0.5 else None
    freeze_ms = chance.choice([0, 5, 50])
    return {"stress": stress, "resident": resident, "freeze_ms": freeze_ms, "timeout": 180}


def test_races_are_never_lost(programs: Programs, uffdswap_run: RunFunction) -> None:
    for chance in Rounds():
        name, *mode = chance.choice(RACES)
        seed = str(chance.randrange(1 << 30))
        chosen = limits(chance)
        outcome = uffdswap_run([programs(name), *mode, ROUND_SECONDS, seed], **chosen)
        # A limit alone may be above what the smallest of them need: then nothing leaves.
        outcome.require_ok(paged=True if chosen["stress"] else None)


def test_address_spaces_are_what_they_were_made(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    for chance in Rounds():
        seed, chosen = str(chance.randrange(1 << 30)), limits(chance)
        # The most eviction at once makes a step slow, and being stopped does so again.
        steps = str(chance.choice([150, 300] if chosen["stress"] == 200_000 else [150, 300, 600]))
        chosen["timeout"] = 400
        # Five processes have 4 MiB that cannot leave: stacks, what is locked or small.
        if chosen["resident"] == "4M":
            chosen["resident"] = "8M"
        if chance.random() < 0.4:  # a budget in place of a limit
            disk = chance.choice([(), ("--no-disk",)])
            chosen |= {"resident": None, "memory": chance.choice(["48M", "64M"]), "options": disk}
        outcome = uffdswap_run([programs("fuzz_space"), seed, steps], **chosen)
        outcome.require_ok(paged=True if chosen["stress"] else None)


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
            outcome.require_ok(paged=True, may_vanish=check.startswith("guards"))


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


# --- Everything at once --------------------------------------------------------------------------


class Driver:
    """Does things to a running session, at random, as a user could; refusals are fine."""

    def __init__(self, crowd: int, chance: random.Random, runtime: Path, disks: Path) -> None:
        self._crowd = crowd
        self._chance = chance
        self._runtime = runtime
        self._disks = disks
        self.done: list[str] = []

    def command(self, *words: object) -> int:
        done = run_command(*words, runtime=self._runtime, seconds=120)
        self.done.append(
            f"{shlex.join(map(str, words))} -> {done.returncode} {done.stderr.strip()}"
        )
        return done.returncode

    def some_program(self) -> int | None:
        """Return a program of the crowd: not a child of one, whose end would be an error."""
        below = processes_below(self._crowd)
        programs = [process.pid for process in below if process.parent == self._crowd]
        return self._chance.choice(programs) if programs else None

    def set_free(self) -> None:
        self.command("set", self._crowd, "--memory", "400M", "--resident", "max")

    def kill(self, pid: int) -> None:
        self.done.append(f"kill -9 {pid}")
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            self.done.append("it had ended")

    def step(self) -> None:
        pid = self.some_program()
        if not pid:
            return
        crowd = ("--pid", self._crowd)
        memory = self._chance.choice(["72M", "96M", "128M", "192M", "400M"])
        resident = self._chance.choice(["max", "max", "16M", "48M"])
        disk = self._disks / self._chance.choice("abc")
        action = self._chance.choice(["memory", "resident", "move", "kill", "add", "add", "remove"])
        if action == "memory":
            self.command("set", self._crowd, "--memory", memory)
        elif action == "resident":
            self.command("set", self._crowd, "--resident", resident)
        elif action == "move":
            words = self._chance.choice([("park",), ("restore",), ("reclaim", "8M")])
            self.command(words[0], pid, *words[1:])
        elif action == "kill":
            self.kill(pid)
        elif action == "add":
            priority = self._chance.randrange(3)
            cap = self._chance.choice(["", ":16M", ":64M"])
            self.command("tier", "add", f"{disk}{cap}", *crowd, "--priority", priority)
        else:
            self.command("tier", "remove", disk, *crowd)


def test_tiers_limits_and_programs_come_and_go(
    programs: Programs, start_session: StartFunction, tmp_path: Path
) -> None:
    commands = [
        f"{programs('rewrite')} 24M 60000 2",
        f"{programs('rewrite')} 20M 40000 2 noise",
        f"{programs('race_write')} 6 {{seed}}",
        f"{programs('race_fork')} 4 {{seed}}",
    ]
    runtime = tmp_path / "r"
    runtime.mkdir()
    for chance in Rounds():
        disks = tmp_path / f"disks{chance.randrange(1 << 30)}"
        for name in "abc":
            (disks / name).mkdir(parents=True)
        crowd = ["python3", "-S", "-E", CROWD, "4", str(chance.randrange(1 << 30)), *commands]
        options = ("--disk", f"{disks / 'a'}")
        environment = {"XDG_RUNTIME_DIR": str(runtime)}
        with start_session(
            crowd, memory="96M", options=options, env=environment, timeout=240
        ) as session:
            session.wait_for_output("ready")
            driver = Driver(int(session.output().split()[1]), chance, runtime, disks)
            end = time.monotonic() + CROWD_SECONDS
            while time.monotonic() < end and "WRONG" not in session.output():
                driver.step()
            driver.set_free()
            outcome = session.finish()
        told = "\n".join(driver.done)
        assert "right" in outcome.stdout, f"{told}\n{outcome.describe()}"
        assert outcome.returncode == 0, f"{told}\n{outcome.describe()}"
        outcome.require_ok(paged=True)
        print(f"{len(driver.done)} things done")
