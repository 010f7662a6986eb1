# SPDX-License-Identifier: MIT
# Goal: programs that were not written for us give the answers they give without us.
# Method: stress-ng verifies memory, CPython tests itself, redis is asked for every key it has.
"""Programs everybody knows, under a limit. The long versions run with `make soak`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .fixtures import RunFunction, StartFunction
from .harness import Outcome, wait_until
from .redis import Redis, require_program

# --- stress-ng -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vm_bytes", "resident", "seconds"),
    [
        pytest.param("96M", "40M", 6, id="short"),
        pytest.param(
            "600M", "200M", 30, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(400)]
        ),
    ],
)
def test_stress_ng_finds_no_wrong_bit(
    vm_bytes: str, resident: str, seconds: int, uffdswap_run: RunFunction
) -> None:
    command = [require_program("stress-ng"), "--vm", "2", "--vm-bytes", vm_bytes]
    command += ["--vm-method", "all", "--verify", "-t", f"{seconds}s"]
    outcome = uffdswap_run(command, resident=resident, timeout=60 + 10 * seconds)
    outcome.require_ok(paged=True)
    assert "fail" not in outcome.stderr + outcome.stdout, outcome.describe()


# --- CPython -------------------------------------------------------------------------------------


def interpreter_with(suites: list[str]) -> str:
    """Return an interpreter that has CPython's own tests; distributions often leave them out."""
    code = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    beside = sorted(Path(sys.base_prefix).parent.glob("*/bin/python3"))
    for candidate in (f"{sys.base_prefix}/bin/python3", "/usr/bin/python3", *map(str, beside)):
        command = [candidate, "-c", code, *(f"test.{suite}" for suite in suites)]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=30)
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    return pytest.skip(f"no Python interpreter here has its test package with {' '.join(suites)}")


def results(report: Path) -> dict[str, str]:
    """Read a JUnit file: the outcome of every test by name."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        verdicts = [child.tag for child in case if child.tag in {"failure", "error", "skipped"}]
        found[case.get("name", "")] = verdicts[0] if verdicts else "passed"
    return found


def run_suites(run: RunFunction, suites: list[str], folder: Path, **options: object) -> Outcome:
    folder.mkdir()
    command = [interpreter_with(suites), "-m", "test", "--randseed", "1"]
    command += ["--tempdir", str(folder), "--junit-xml", str(folder / "results.xml"), *suites]
    outcome = run(command, cwd=folder, **options)
    assert (folder / "results.xml").exists(), outcome.describe()
    return outcome


@pytest.mark.parametrize(
    "suites",
    [
        pytest.param("test_list test_mmap", id="short", marks=pytest.mark.timeout(600)),
        pytest.param(
            "test_dict test_list test_gc test_mmap test_fork1 test_subprocess test_threading"
            " test_signal test_io test_sqlite3",
            id="long",
            marks=[pytest.mark.soak, pytest.mark.timeout(3000)],
        ),
        pytest.param(
            "test_multiprocessing_fork",
            id="multiprocessing",
            marks=[pytest.mark.soak, pytest.mark.timeout(3000)],
        ),
    ],
)
def test_cpython_passes_its_own_tests_as_bare(
    suites: str, tmp_path: Path, uffdswap_run: RunFunction, bare_run: RunFunction
) -> None:
    names = suites.split()
    timeout = 250 if len(names) == 2 else 1400
    bare = run_suites(bare_run, names, tmp_path / "bare", timeout=timeout)
    managed = run_suites(uffdswap_run, names, tmp_path / "managed", timeout=timeout, stress=20_000)
    expected = results(tmp_path / "bare" / "results.xml")
    found = results(tmp_path / "managed" / "results.xml")
    differences = {
        name: (expected.get(name), found.get(name))
        for name in expected.keys() | found.keys()
        if expected.get(name) != found.get(name)
    }
    assert not differences, f"(bare, managed): {differences}\n{managed.describe()}"
    assert managed.returncode == bare.returncode, managed.describe()
    assert not managed.left_over, managed.describe()
    assert managed.stats["evictions"]["pages"] > 0
    assert managed.stats["integrity"]["poisoned_pages"] == 0


# --- redis ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "resident", "requests"),
    [
        pytest.param(120_000, "40M", 3_000, id="short"),
        pytest.param(
            600_000, "150M", 100_000, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(900)]
        ),
    ],
)
def test_redis_keeps_every_key_through_a_background_save(
    keys: int, resident: str, requests: int, tmp_path: Path, start_session: StartFunction
) -> None:
    redis = Redis(tmp_path)
    benchmark = require_program("redis-benchmark")
    with start_session(redis.command(), resident=resident, timeout=800) as session:
        with redis.connect() as client:
            client.fill(keys)
            asked = [benchmark, "-s", str(redis.socket_path), "-n", str(requests), "-r", "1000"]
            asked += ["-q", "-t", "get,set,incr,lpush"]
            subprocess.run(asked, check=True, capture_output=True, timeout=300)
            client.command("BGSAVE")
            client.check(0, keys // 10)
            wait_until(client.save_has_ended, "BGSAVE ends", seconds=300)
            assert client.info("persistence")["rdb_last_bgsave_status"] == "ok"
            client.check(0, keys)
            client.command("SHUTDOWN", "NOSAVE", reply=False)
        outcome = session.finish()
    outcome.require_ok(paged=True)
    assert (tmp_path / "dump.rdb").stat().st_size > keys * 100
