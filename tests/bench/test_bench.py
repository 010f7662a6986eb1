# SPDX-License-Identifier: MIT
# Goal: the benchmark measures, finds wrong content, and leaves the machine as it was.
# Method: run it on 32 MiB, also with spoiled pages, failing programs, and signals in the middle.
"""`uffdswap bench`, as a real process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from exclusive import exclusive

from uffdswap.bench.apps import READY, ReadyApp
from uffdswap.bench.counters import workload_path
from uffdswap.bench.evidence import RunFailed
from uffdswap.bench.guardian import Guardian
from uffdswap.bench.measure import Bench, Work, measure_work
from uffdswap.bench.peers import PEERS, Peer, Uffdswap, find_peer
from uffdswap.cli.bench import PATTERNS
from uffdswap.errors import UffdswapError

BENCH = (sys.executable, "-P", "-m", "uffdswap", "bench")
TINY = ("--size", "32M", "--pairs", "1", "--seconds", "0.1", "--warmup", "0.05")
GONE_SECONDS = 30.0
REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMA = REPOSITORY / "docs" / "reference" / "bench.schema.json"


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    """Be alone with the machine: these tests change it, and look at what it is afterwards."""
    with exclusive(REPOSITORY / "build" / "machine.lock"):
        yield


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the files of runs in a folder that is looked at: only failed runs may leave any."""
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def run_bench(*arguments: str, status: int = 0) -> tuple[dict[str, Any], str]:
    """Run the benchmark; return its document, which must be as its schema says, and stderr."""
    command = [*BENCH, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == status, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    return report, done.stderr


def require(peer: Peer) -> None:
    """Skip where a peer cannot be set up, with the reason that users get."""
    try:
        peer.check()
    except UffdswapError as error:
        pytest.skip(str(error))


def machine_state() -> dict[str, str]:
    """Return everything that a peer changes."""
    paths = [Path("/proc/swaps"), *Path("/sys/module").glob("zswap/parameters/enabled")]
    for device in Path("/sys/block").glob("zram*"):
        paths += [device / "comp_algorithm", device / "disksize"]
    state = {str(path): path.read_text() for path in paths}
    for folder in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"), Path("/var/tmp")):
        state[str(folder)] = str(sorted(map(str, folder.glob("uffdswap-bench-*"))))
    return state


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: str(peer.name))
def test_each_peer_is_measured_and_undone(peer: Peer, own_temporary_folder: Path) -> None:
    require(peer)
    before = machine_state()
    report, _stderr = run_bench("uniform-rw", *TINY, "--against", peer.name)
    (result,) = report["results"]
    assert set(result["runs"]) == {"uffdswap", peer.name}
    assert all(run["accesses"] > 0 for runs in result["runs"].values() for run in runs)
    assert result["ratio"][peer.name]["pages_per_second"]["median"] > 0
    limited = {name: runs[0] for name, runs in result["runs"].items() if name != "none"}
    for name, run in limited.items():
        assert min(run[key] for key in ("pages_in", "pages_out", "faults")) > 0, (name, run)
    assert machine_state() == before
    assert not list(own_temporary_folder.iterdir())


def test_the_same_ram_is_what_the_peer_had() -> None:
    require(find_peer("zram-lz4"))
    report, stderr = run_bench("uniform-read", *TINY, "--same-ram")
    assert report["settings"]["same_ram"]
    assert stderr.index(": zram-lz4") < stderr.index(": uffdswap with ")
    (result,) = report["results"]
    (peer,) = result["runs"]["zram-lz4"]
    assert peer["stored_peak_bytes"] >= peer["stored_bytes"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_machine_is_as_before_after_an_interruption(
    number: signal.Signals, own_temporary_folder: Path
) -> None:
    peer = find_peer("zram-lz4")
    require(peer)
    before = machine_state()
    command = [*BENCH, "uniform-rw", "--size", "32M", "--seconds", "1.2", "--warmup", "0.05"]
    process = subprocess.Popen(
        [*command, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    try:
        # Ours comes first; then the peer's swap is on, for longer than this loop sleeps.
        wait_until(lambda: "zram" in Path("/proc/swaps").read_text(), 90.0)
    finally:
        process.send_signal(number)
        stdout, _none = process.communicate(timeout=GONE_SECONDS)
    wait_until(lambda: machine_state() == before, GONE_SECONDS)
    if number != signal.SIGKILL:  # what there is by then is printed
        (result,) = json.loads(stdout)["results"]
        assert {name: len(runs) for name, runs in result["runs"].items()} == {
            "uffdswap": 1,
            "zram-lz4": 0,
        }
    wait_until(lambda: not list(own_temporary_folder.iterdir()), GONE_SECONDS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("during", ["without a limit", "1 of 1: uffdswap"], ids=["none", "ours"])
def test_files_of_an_application_are_gone_after_an_interruption(
    number: signal.Signals, during: str, own_temporary_folder: Path, tmp_path: Path
) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server")
    said = tmp_path / "said"
    command = [*BENCH, "--app", "redis", "--size", "48M", "--against", "none", "--pairs", "1"]
    with said.open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
    try:
        wait_until(lambda: during in said.read_text(), 90.0)
        wait_until(lambda: list(own_temporary_folder.rglob("uffdswap-bench-redis-*/socket")), 60.0)
    finally:
        process.send_signal(number)
        process.wait(GONE_SECONDS)
    wait_until(lambda: not list(own_temporary_folder.iterdir()), GONE_SECONDS)
    wait_until(lambda: not servers_in(own_temporary_folder), GONE_SECONDS)


def servers_in(folder: Path) -> list[psutil.Process]:
    """Return the processes that are in a folder, or were before it was removed."""
    found = psutil.process_iter(["cwd"])
    return [process for process in found if (process.info["cwd"] or "").startswith(str(folder))]


def wait_until(holds: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    assert callable(holds)
    while not holds():
        assert time.monotonic() < deadline, machine_state()
        time.sleep(0.02)


def test_wrong_content_is_an_error_and_everything_about_it_is_kept() -> None:
    work = Work("seq-read", 16 << 20, 8 << 20, seconds=0.1, warmup_seconds=0, corrupt_page=77)
    with Guardian() as guardian, pytest.raises(RunFailed, match="in page 77") as caught:
        measure_work(Bench(guardian), Uffdswap(), work, label="seq-read-1-uffdswap")
    folder = caught.value.folder
    assert str(folder) in str(caught.value)
    assert "1 of 512 words are wrong, from 256 to 256" in (folder / "stderr.txt").read_text()
    assert json.loads((folder / "stats.json").read_text())["schema"] == "uffdswap.stats/1"
    *_phases, result = map(json.loads, (folder / "workload.json").read_text().splitlines())
    (wrong,) = result["wrong"]
    assert (wrong["page"], wrong["wrong_words"], wrong["zero_words"]) == (77, 1, 0)
    assert "--corrupt 77" in (folder / "command.txt").read_text()


def failing_every_third_time(folder: Path, failure: str) -> str:
    """Write a program that fails at its third start only; return its command."""
    program = folder / "third.sh"
    count = folder / "count"
    program.write_text(f'echo >> {count}\n[ "$(wc -l < {count})" != 3 ] || {failure}\n')
    return f"sh {program}"


@pytest.mark.parametrize(
    ("failure", "what"),
    [("{ echo first; echo last >&2; exit 3; }", "its status was 3"), ("kill -9 $$", "signal 9")],
    ids=["status", "killed"],
)
def test_a_failed_run_is_told_and_the_others_count(tmp_path: Path, failure: str, what: str) -> None:
    # The first start finds out how much memory it needs; the third is the second of round 1.
    command = failing_every_third_time(tmp_path, failure)
    arguments = ("--app", command, "--resident", "32M", "--against", "none", "--pairs", "2")
    report, stderr = run_bench(*arguments, status=1)
    (result,) = report["results"]
    assert [run["round"] for run in result["runs"]["uffdswap"]] == [1, 2]
    assert [run["round"] for run in result["runs"]["none"]] == [2]
    assert result["ratio"]["none"]["wall_seconds"]["median"] > 0
    (told,) = result["failures"]
    assert (told["contender"], told["round"]) == ("none", 1)
    assert what in told["what"] and what in stderr
    assert (Path(told["folder"]) / "stderr.txt").exists()


def test_a_run_that_does_not_end_is_ended_and_its_stacks_are_kept() -> None:
    command = "sh -c 'sleep 0; [ -z \"$_UFFDSWAP_SOCKET$LD_PRELOAD\" ] || sleep 600'"
    arguments = ("--app", command, "--resident", "32M", "--against", "none", "--pairs", "1")
    report, _stderr = run_bench(*arguments, "--timeout", "1", status=1)
    (told,) = report["results"][0]["failures"]
    assert told["contender"] == "uffdswap" and "within 1 s" in told["what"]
    assert "sleep 600" in (Path(told["folder"]) / "processes.txt").read_text()


@pytest.mark.parametrize("app", READY, ids=lambda app: str(app.name))
def test_each_ready_application_is_right_at_half_of_its_memory(app: ReadyApp) -> None:
    try:
        app.require()
    except UffdswapError as error:
        pytest.skip(str(error))
    arguments = ("--app", app.name, "--size", "16M", "--pairs", "1", "--against", "none")
    report, _stderr = run_bench(*arguments)
    (result,) = report["results"]
    assert result["limit_bytes"] == result["size_bytes"] // 2
    (ours,) = result["runs"]["uffdswap"]
    assert ours["pages_out"] > 0
    assert ours["cpu_seconds"] > 0


@pytest.mark.parametrize("content", ["text", "mixed", "random"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_workload_finds_its_own_content_right(content: str, threads: int) -> None:
    command = [workload_path(), "--pattern", "zipf-rw", "--content", content, "--size", "8M"]
    command += ["--threads", str(threads), "--accesses", "30000", "--warmup", "0", "--settle", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["accesses"] == 30000
    assert result["audited_pages"] == 2048
    assert result["wrong_pages"] == 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_workload_knows_every_pattern(pattern: str) -> None:
    command = [workload_path(), "--pattern", pattern, "--content", "text", "--size", "4M"]
    command += ["--accesses", "20000", "--warmup", "0", "--settle", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["accesses"] == 20000
    assert result["wrong_pages"] == 0


def test_the_guardian_undoes_in_reverse_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "setting"
    file.write_text("third")
    with Guardian() as guardian:
        guardian.note("write", path=str(file), text="first")
        guardian.note("write", path="/nonexistent/file", text="")
        guardian.note("write", path=str(file), text="second")
        with pytest.raises(UffdswapError, match="/nonexistent/file"):
            guardian.undo()
    assert file.read_text() == "first"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_without_rights_it_refuses_and_says_so() -> None:
    code = "import os; from uffdswap.bench.peers import find_peer; os.setuid(65534)\n"
    code += "find_peer('zram-lz4').check()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "needs root; run it with sudo" in done.stderr


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="needs root and setpriv, to go without CAP_SYS_PTRACE",
)
def test_where_no_session_can_start_it_refuses_once_as_run_does() -> None:
    def stderr_of(*arguments: str) -> str:
        drop = ("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")
        command = [*drop, *BENCH[:-1], *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0 and not done.stdout
        return done.stderr

    (line,) = stderr_of("bench", *TINY, "--against", "none").splitlines()
    assert line == stderr_of("run", "--resident", "16M", "true").strip()
