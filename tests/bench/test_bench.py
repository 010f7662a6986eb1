# SPDX-License-Identifier: MIT
# Goal: the benchmark measures, finds wrong content, and leaves the machine as it was.
# Method: run it on 32 MiB, also with a spoiled page, Ctrl-C, SIGTERM and SIGKILL in the middle.
"""`uffdswap bench`, as a real process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uffdswap.bench.guardian import Guardian
from uffdswap.bench.measure import Work, measure_work, workload_path
from uffdswap.bench.peers import PEERS, Peer, Uffdswap, find_peer
from uffdswap.errors import UffdswapError

BENCH = (sys.executable, "-P", "-m", "uffdswap", "bench")
TINY = ("--size", "32M", "--pairs", "1", "--seconds", "0.1", "--warmup", "0.05")
GONE_SECONDS = 30.0


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


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: str(peer.name))
def test_each_peer_is_measured_and_undone(peer: Peer) -> None:
    require(peer)
    before = machine_state()
    command = [*BENCH, "uniform-rw", *TINY, "--against", peer.name, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["schema"] == "uffdswap.bench/1"
    (result,) = report["results"]
    assert set(result["runs"]) == {"uffdswap", peer.name}
    assert all(run["accesses"] > 0 for runs in result["runs"].values() for run in runs)
    assert result["ratio"][peer.name]["pages_per_second"]["median"] > 0
    assert machine_state() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_machine_is_as_before_after_an_interruption(number: signal.Signals) -> None:
    peer = find_peer("zram-lz4")
    require(peer)
    before = machine_state()
    command = [*BENCH, "uniform-rw", "--size", "32M", "--seconds", "3"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        # Ours comes first; then the peer's swap is on, for longer than this loop sleeps.
        wait_until(lambda: "zram" in Path("/proc/swaps").read_text(), 90.0)
    finally:
        process.send_signal(number)
        process.wait(GONE_SECONDS)
    wait_until(lambda: machine_state() == before, GONE_SECONDS)


def wait_until(holds: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    assert callable(holds)
    while not holds():
        assert time.monotonic() < deadline, machine_state()
        time.sleep(0.02)


def test_wrong_content_is_an_error() -> None:
    work = Work("seq-read", 16 << 20, 8 << 20, seconds=0.1, warmup_seconds=0, corrupt_page=77)
    with Guardian() as guardian, pytest.raises(UffdswapError, match="in page 77"):
        measure_work(guardian, Uffdswap(), work)


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
