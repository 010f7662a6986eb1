# SPDX-License-Identifier: MIT
# Goal: a running session can be looked at, limited anew, parked and restored, and no byte changes.
# Method: real programs that check their own memory, and the command line as users type it.
"""Control of running sessions."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from uffdswap import control, procfs, protocol
from uffdswap.cli import main

from .fixtures import StartFunction
from .harness import MIB, REPOSITORY, Session, run_command, wait_until

PROGRAM = REPOSITORY / "tests" / "programs" / "control_idle.py"
SIZE_MIB = 96
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


class Controlled:
    """A session whose program waits for commands, and the commands of uffdswap for it."""

    def __init__(self, session: Session, runtime: Path) -> None:
        self.session = session
        self._runtime = runtime
        session.wait_for_output("ready")
        self.pid = int(re.findall(r"ready (\d+)", session.output())[0])
        self.sockets = runtime / "uffdswap"

    def command(self, *words: object, status: int = 0) -> str:
        done = run_command(*words, runtime=self._runtime)
        assert done.returncode == status, f"{words}\n{done.stdout}\n{done.stderr}"
        assert bool(done.stderr) == bool(status), done.stderr
        return done.stderr if status else done.stdout

    def json(self, *words: object) -> dict[str, Any]:
        report = json.loads(self.command(*words, "--json"))
        assert isinstance(report, dict)
        return report

    def status(self) -> dict[str, Any]:
        (session,) = self.json("status", self.pid)["sessions"]
        assert isinstance(session, dict)
        return session

    def target(self, pid: int = 0) -> dict[str, Any]:
        pid = pid or self.pid
        (target,) = [one for one in self.status()["targets"] if one["pid"] == pid]
        assert isinstance(target, dict)
        return target

    def resident_bytes(self) -> int:
        """Return what the kernel says is resident and anonymous."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"RssAnon:\s+(\d+) kB", text)[0]) * 1024

    def tell(self, line: str, answer: str) -> None:
        before = self.session.output().count(answer)
        self.session.send_line(line)
        wait_until(lambda: self.session.output().count(answer) > before, f"{line}: {answer}")

    def check(self) -> None:
        self.tell("check", "right")
        assert "WRONG" not in self.session.output()

    def finish(self) -> None:
        self.session.finish().require_ok()

    def socket_path(self) -> str:
        (path,) = self.sockets.glob("*/ctrl")
        return str(path)


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    folder = tmp_path / "r"
    folder.mkdir()
    return folder


@pytest.fixture
def start(start_session: StartFunction, runtime: Path) -> Callable[..., Controlled]:
    def run(size_mib: int = SIZE_MIB, **options: Any) -> Controlled:
        command = [sys.executable, "-S", "-E", PROGRAM, str(size_mib)]
        options = {"memory": "1G", **options}
        environment = {"XDG_RUNTIME_DIR": str(runtime)}
        return Controlled(start_session(command, env=environment, **options), runtime)

    return run


# --- status --------------------------------------------------------------------------------------


def test_status_tells_limits_and_sizes_apart(start: Any) -> None:
    one = start(resident="64M")
    wait_until(lambda: one.resident_bytes() <= 64 * MIB, "the limit holds")
    status = one.status()
    assert status["limits"] == {"memory_bytes": 1 << 30, "resident_bytes": 64 * MIB}
    assert status["program_pid"] == one.pid
    target = one.target()
    assert target["command"].startswith("python")
    assert target["evicted_bytes"] >= (SIZE_MIB - 64) * MIB
    pages = target["evicted_pages"]
    kinds = ("zero", "same", "standby", "object")
    assert pages["total"] == sum(pages[kind] for kind in kinds)
    stored = sum(status["stored_bytes"].values())
    assert 0 < stored < status["evicted_bytes"]
    assert 0 < status["used_share"] < 0.2
    one.check()
    after = one.target()
    counters = one.status()["counters"]
    sources = ("zero", "same", "standby", "ram", "disk")
    assert after["faults"] == sum(counters[f"faults_{source}"] for source in sources) > 0
    assert after["faults"] >= after["refaults"]
    one.finish()


def test_status_tells_what_is_not_managed(start: Any) -> None:
    one = start(64)
    target = one.target()["unmanaged_bytes"]
    assert MIB < target["file"] < target["total"] < 32 * MIB  # the heap of 64 MiB is managed
    assert target["total"] == sum(target.values()) - target["total"]
    assert one.status()["unmanaged_bytes"].keys() == target.keys()
    header, session, row = one.command("status", "--bytes", one.pid).splitlines()
    column = header.split().index("UNMANAGED")
    assert int(session.split()[column]) > MIB
    assert int(row.split()[column - 1]) > MIB  # a target's row has no limit
    one.finish()


def test_status_table_has_a_row_a_session_and_a_row_a_target(start: Any) -> None:
    one = start()
    header, session, target = one.command("status", one.pid).splitlines()
    assert header.split()[:4] == ["PID", "COMMAND", "LIMIT", "RESIDENT"]
    assert session.split()[:4] == [str(one.status()["launcher_pid"]), "session", "1.00", "GiB"]
    assert target.split()[0] == str(one.pid)
    exact = one.command("status", "--bytes", one.pid).splitlines()[1]
    assert exact.split()[2] == str(1 << 30)
    one.finish()


def test_session_is_found_by_launcher_agent_and_target(start: Any) -> None:
    one = start(8)
    status = one.status()
    for pid in (status["launcher_pid"], status["agent_pid"], one.pid):
        assert one.json("status", pid)["sessions"][0]["agent_pid"] == status["agent_pid"]
    one.finish()


def test_helper_task_stands_for_its_program(start: Any) -> None:
    one, other = start(8), start(8)
    helpers = []
    for program in (one, other):
        launcher_pid = program.status()["launcher_pid"]
        names = {pid: procfs.stat_of(pid) for pid in procfs.children_of(launcher_pid)}
        helpers += [pid for pid, stat in names.items() if stat is not None and stat.is_hands]
    report = one.json("park", helpers[0])
    assert report["pid"] == one.pid
    assert report["moved_bytes"] >= 8 * MIB
    assert one.json("restore", helpers[0])["moved_bytes"] >= 8 * MIB
    found = one.json("status", one.pid, *helpers, other.pid)["sessions"]
    assert [session["program_pid"] for session in found] == [one.pid, other.pid]
    said = one.command("status", one.pid, os.getpid(), status=3)
    assert f"no session has the process {os.getpid()}" in said
    one.finish()
    other.finish()


def test_two_sessions_at_once_are_told_apart(start: Any) -> None:
    one, other = start(8, memory="300M"), start(8, memory="400M")
    assert len(one.json("status")["sessions"]) == 2
    assert one.status()["limits"]["memory_bytes"] == 300 * MIB
    assert other.status()["limits"]["memory_bytes"] == 400 * MIB
    one.command("set", one.pid, "--memory", "500M")
    assert one.status()["limits"]["memory_bytes"] == 500 * MIB
    assert other.status()["limits"]["memory_bytes"] == 400 * MIB
    one.finish()
    other.finish()


def test_process_of_no_session_is_status_3(start: Any) -> None:
    one = start(8)
    for words in (["status", "1"], ["park", "1"], ["set", "1", "--memory", "1G"]):
        assert "no session has the process 1: it runs, but not under" in one.command(
            *words, status=3
        )
    assert "there is no such process" in one.command("restore", 2**22 + 1, status=3)
    one.finish()


def test_stopped_agent_is_told_of_with_what_helps(
    start: Any, runtime: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    one = start(size_mib=4)
    agent_pid = one.status()["agent_pid"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(control, "_ANSWER_SECONDS", 1.0)
    os.kill(agent_pid, signal.SIGSTOP)
    try:
        for pid in (agent_pid, one.pid, one.session.pid):
            assert main(["set", str(pid), "-m", "1G"]) == 1
            assert capfd.readouterr().err == (
                f"uffdswap: the session of process {agent_pid} does not answer;"
                f" is it stopped? try: kill -CONT {agent_pid}\n"
            )
    finally:
        os.kill(agent_pid, signal.SIGCONT)
    one.finish()


def test_stale_socket_is_recognised_and_removed(start: Any, runtime: Path) -> None:
    stale = runtime / "uffdswap" / "1-12345"  # process 1 did not start then
    one = start(8)
    stale.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(stale / "ctrl"))
    assert len(one.json("status")["sessions"]) == 1
    assert not stale.exists()
    one.finish()


def test_nothing_is_left_of_the_control_socket(start: Any) -> None:
    one = start(8)
    assert Path(one.socket_path()).stat().st_mode & 0o777 == 0o600
    one.finish()
    assert not list(one.sockets.glob("*"))


# --- set -----------------------------------------------------------------------------------------


def test_set_below_what_is_resident_shrinks_and_back_up_lets_grow(start: Any) -> None:
    one = start()
    report = one.json("set", one.pid, "--resident", "32M")
    assert report["limits"] == {"memory_bytes": 1 << 30, "resident_bytes": 32 * MIB}
    wait_until(lambda: one.resident_bytes() <= 32 * MIB, "the new limit is met")
    one.check()
    assert one.resident_bytes() <= 32 * MIB
    one.command("set", one.pid, "--resident", "max")
    one.check()
    assert one.resident_bytes() >= SIZE_MIB * MIB
    one.finish()


def test_second_set_while_the_first_is_being_met_wins(start: Any) -> None:
    one = start(256)
    for limit in ("200M", "16M", "150M", "24M"):
        one.command("set", one.pid, "--resident", limit)
    wait_until(lambda: one.resident_bytes() <= 24 * MIB, "the last limit is met")
    one.command("set", one.pid, "--memory", "max", "--resident", "64M")
    assert one.status()["limits"] == {"memory_bytes": None, "resident_bytes": 64 * MIB}
    one.check()
    one.finish()


def test_budget_that_leaves_next_to_nothing_is_told_of(start: Any) -> None:
    one = start()
    one.command("set", one.pid, "--memory", "10M")
    one.session.send_line("check")
    one.session.wait_for_error("the program crawls")
    one.command("set", one.pid, "--memory", "max", "--resident", "64M")
    one.check()
    one.finish()


def test_budget_too_small_for_what_has_left_is_refused(start: Any) -> None:
    one = start(options=("--no-disk",))
    one.command("park", one.pid)
    assert "are kept in RAM for what has left already" in one.command(
        "set", one.pid, "--memory", "4M", status=1
    )
    assert one.status()["limits"]["memory_bytes"] == 1 << 30
    one.check()
    one.finish()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "give --memory or --resident"),
        (["--memory", "1X"], "is not a size"),
        (["--memory", "1"], "too small a limit"),
    ],
)
def test_set_that_makes_no_sense_is_a_usage_error(start: Any, words: list[str], text: str) -> None:
    one = start(8)
    assert text in one.command("set", one.pid, *words, status=2)
    one.finish()


# --- reclaim, park, restore ----------------------------------------------------------------------


def test_reclaim_evicts_about_as_much_as_was_said(start: Any) -> None:
    one = start()
    before = one.resident_bytes()
    report = one.json("reclaim", one.pid, "40M")
    assert report["schema"] == "uffdswap.reclaim/1"
    assert 40 * MIB <= report["moved_bytes"] <= 43 * MIB
    assert one.resident_bytes() <= before - 39 * MIB
    one.check()
    one.finish()


PINNED_MIB = 16
PINNED = f"""
import ctypes, mmap, os, struct, sys
size = {PINNED_MIB} << 20
pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, size, 4096):
    pages[page : page + 8] = struct.pack("q", page | 1)
libc = ctypes.CDLL(None, use_errno=True)
ring = libc.syscall(425, 4, (ctypes.c_char * 120)())  # io_uring_setup
vector = struct.pack("QQ", ctypes.addressof(ctypes.c_char.from_buffer(pages)), size)
if libc.syscall(427, ring, 0, vector, 1):  # io_uring_register
    print("no ring")
print("ready", os.getpid(), flush=True)
sys.stdin.readline()
sys.exit(any(struct.unpack_from("q", pages, page)[0] != page | 1 for page in range(0, size, 4096)))
"""


def test_pinned_memory_is_not_asked_for_again_at_once(
    start_session: StartFunction, runtime: Path
) -> None:
    """A page that is pinned costs three commands a lap; the sweep makes nine without effect."""
    environment = {"XDG_RUNTIME_DIR": str(runtime)}
    command = [sys.executable, "-I", "-c", PINNED]
    one = Controlled(start_session(command, env=environment, memory="1G"), runtime)
    if "no ring" in one.session.output():
        pytest.skip("io_uring cannot register 16 MiB of buffers here")
    one.command("reclaim", one.pid, "1G")
    assert one.resident_bytes() >= PINNED_MIB * MIB
    pages = PINNED_MIB * MIB // 4096
    refused = one.status()["counters"]["evict_refused"]
    assert pages <= refused <= 6 * pages, f"{refused} refusals of {pages} pages"
    one.session.send_line("")
    one.finish()


def test_parked_process_is_at_a_few_mib_and_a_touch_wakes_only_what_is_touched(start: Any) -> None:
    one = start()
    assert one.json("park", one.pid)["moved_bytes"] >= SIZE_MIB * MIB
    assert one.resident_bytes() < 8 * MIB
    status = one.status()
    assert status["stored_bytes"]["standby"] == 0
    assert status["stored_bytes"]["ram"] < 0.7 * SIZE_MIB * MIB
    assert one.resident_bytes() < 8 * MIB  # looking at it does not wake it
    one.tell("touch", "touched")
    assert one.resident_bytes() < 16 * MIB
    one.check()
    one.finish()


def test_restore_brings_everything_back(start: Any) -> None:
    one = start()
    one.command("park", one.pid)
    report = one.json("restore", one.pid)
    assert report["moved_bytes"] >= SIZE_MIB * MIB
    assert one.target()["evicted_bytes"] == report["evicted_bytes"] == 0
    assert re.fullmatch(r"\S+ \S+ brought back\n", one.command("restore", one.session.pid))
    assert one.resident_bytes() >= SIZE_MIB * MIB
    faults = one.target()["faults"]
    one.check()
    assert one.target()["faults"] == faults  # nothing was left to bring in
    one.finish()


def test_restore_stops_at_the_limit_and_evicts_nothing(start: Any) -> None:
    one = start(resident="48M")
    one.command("park", one.pid)
    before = one.status()["counters"]["evicted_pages"]
    report = one.json("restore", one.pid)
    assert 32 * MIB < report["moved_bytes"] < 48 * MIB
    assert report["limits"] == {"memory_bytes": 1 << 30, "resident_bytes": 48 * MIB}
    assert report["evicted_bytes"] >= SIZE_MIB * MIB - report["moved_bytes"]
    said = one.command("restore", one.pid)
    assert re.fullmatch(
        r".* brought back; .* MiB stay out: the limit of 48.0 MiB leaves no room\n", said
    )
    assert one.resident_bytes() <= 48 * MIB
    assert one.status()["counters"]["evicted_pages"] == before
    one.check()
    one.finish()


def test_parked_again_and_again_nothing_is_lost(start: Any) -> None:
    one = start(32)
    for _ in range(5):
        one.command("park", one.pid)
        one.check()
        one.command("park", one.pid)
        one.command("restore", one.pid)
    one.check()
    one.finish()


@contextlib.contextmanager
def no_descriptors_left(pid: int) -> Iterator[None]:
    """Keep a process from opening anything for as long as this lasts."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_fork_waits_for_a_descriptor_and_says_so(start: Any) -> None:
    one = start(options=("--no-disk",))
    one.command("park", one.pid)
    with no_descriptors_left(one.session.agent().pid):
        one.session.send_line("fork")
        one.session.wait_for_error("waits in fork")
        assert "child" not in one.session.output()
    wait_until(lambda: "child" in one.session.output(), "the child")
    child = int(re.findall(r"child (\d+)", one.session.output())[0])
    os.kill(child, signal.SIGUSR1)
    one.tell("wait", "child right")
    one.check()
    one.finish()
    assert one.session.errors().count("waits in fork") == 1


def test_first_page_from_a_disk_waits_for_descriptors_and_says_so(
    start: Any, tmp_path: Path
) -> None:
    one = start(options=("--disk", str(tmp_path)))
    one.command("park", one.pid)
    with no_descriptors_left(one.session.agent().pid):
        one.session.send_line("touch")
        one.session.wait_for_error("page on a disk")
    wait_until(lambda: "touched" in one.session.output(), "the page")
    one.check()
    one.finish()


def test_fork_is_parked_with_the_session_and_alone(start: Any) -> None:
    one = start(32)
    one.tell("fork", "child")
    child = int(re.findall(r"child (\d+)", one.session.output())[0])
    one.command("park", child)
    assert one.target(child)["resident_bytes"] < 8 * MIB
    assert one.resident_bytes() >= 32 * MIB  # the parent was not meant
    report = one.json("park", one.status()["launcher_pid"])
    assert report["targets"] == 2
    assert one.resident_bytes() < 8 * MIB
    one.check()
    os.kill(child, signal.SIGUSR1)
    one.tell("wait", "child right")
    one.finish()


def test_target_that_ends_while_it_is_parked_ends_the_request(start: Any) -> None:
    one = start(256)
    with control.Client(one.socket_path(), one.pid) as client:
        client._socket.send(protocol.encode(control.Park(pid=one.pid)))
        os.kill(one.pid, signal.SIGKILL)
        client._socket.settimeout(30)
        try:
            data = client._socket.recv(protocol.MESSAGE_BYTES_MAX)
        except ConnectionResetError:
            data = b""
    # Its end, or that of the agent with it, which may not have read the request.
    assert not data or isinstance(
        protocol.decode(data, control.REPLIES), control.Moved | control.Failed
    )
    assert one.session.finish().returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


# --- Bad company ---------------------------------------------------------------------------------


def test_garbage_on_the_socket_harms_nobody(start: Any) -> None:
    one = start(8)
    path = one.socket_path()
    for data in (b"garbage", b"\xff" * 60000, b'{"v":1}', b'{"v":2,"type":"park","pid":1}', b"[]"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(path)
            client.send(data)
            reply = protocol.decode(client.recv(65536), control.REPLIES)
            assert isinstance(reply, control.Failed)
            assert reply.kind == "protocol"
            assert client.recv(65536) == b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(path)
        client.send(b"x" * 150000)  # longer than any message
        assert isinstance(protocol.decode(client.recv(65536), control.REPLIES), control.Failed)
    one.check()
    assert one.status()["program_pid"] == one.pid
    one.finish()


@pytest.mark.parametrize(
    "change",
    [{"priority": 2**40}, {"path": "/tmp/\0"}, {"path": "/tmp/\ud800"}],
)
def test_value_that_no_tier_can_have_is_refused(start: Any, change: dict[str, Any]) -> None:
    one = start(8)
    request = {"v": 1, "type": "tieradd", "path": "/tmp", "cap_bytes": None, "name": None}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(one.socket_path())
        client.send(json.dumps({**request, "priority": 0, **change}).encode())
        assert isinstance(protocol.decode(client.recv(65536), control.REPLIES), control.Failed)
    one.check()
    one.finish()


def test_client_that_does_not_read_holds_nobody_up(start: Any) -> None:
    one = start(8)
    clients = []
    for _ in range(20):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(one.socket_path())
        client.setblocking(False)
        clients.append(client)
        try:
            for _ in range(200):
                client.send(protocol.encode(control.Status(after_id=0)))
        except OSError:
            pass  # dropped, or full: either is fine
    assert one.status()["program_pid"] == one.pid
    for client in clients:
        client.close()
    one.finish()


@needs_root
def test_another_user_is_not_listened_to(start: Any) -> None:
    one = start(8)
    path = one.socket_path()
    script = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "os.set_blocking(s.fileno(), True)\n"
        "s.connect(sys.argv[1]); s.send(sys.argv[2].encode())\n"
        "print('answer' if s.recv(65536) else 'hung up')\n"
    )
    # Folder and socket keep others out; open them, so that only the check of credentials is left.
    folders = [Path(path).parent, *Path(path).parent.parents]
    modes = {folder: folder.stat().st_mode & 0o7777 for folder in folders}
    try:
        for folder in folders:
            folder.chmod(modes[folder] | 0o011)
        Path(path).chmod(0o666)
        message = protocol.encode(control.Park(pid=one.pid)).decode()
        done = subprocess.run(
            [sys.executable, "-c", script, path, message],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        for folder in folders:
            folder.chmod(modes[folder])
    assert "answer" not in done.stdout
    gone = ("ConnectionReset", "BrokenPipe")
    assert done.stdout == "hung up\n" or any(word in done.stderr for word in gone), done.stderr
    assert one.target()["evicted_bytes"] == 0
    one.finish()
