# SPDX-License-Identifier: MIT
# Goal: who runs without a limit is told of once, with the cause, and nobody else is.
# Method: real processes without a session, looked at as the agent looks.
"""Processes that no limit holds for."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from uffdswap import procfs
from uffdswap.runtime import shim_path
from uffdswap.unmanaged import LOOK_SECONDS, Lookout, Watch

SLEEP = ("/bin/sleep", "100")
NOBODY = 65534


class Crowd:
    """Processes, and what is told of them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.texts: list[str] = []
        self.lookout = Lookout(self.texts.append, is_preloaded=True)

    def start(self, command: Sequence[str], variables: Mapping[str, str], **popen: object) -> int:
        """Start a program and wait until it runs."""
        process = subprocess.Popen(command, env=dict(variables), cwd="/", **popen)  # type: ignore[call-overload]
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        wait_for_state(process.pid, "S")
        return int(process.pid)

    def look(
        self, *pids: int, managed: Sequence[int] = (), known: Sequence[int] | None = None
    ) -> list[str]:
        """Look as often as it takes; return what was told."""
        for _time in range(3):
            assert self.lookout.look(pids, managed, known) >= LOOK_SECONDS
        texts, self.texts[:] = list(self.texts), []
        return texts


def wait_for_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + 20
    while (stat := procfs.stat_of(pid)) is not None and stat.state != state:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_named(pid: int, name: bytes) -> None:
    deadline = time.monotonic() + 20
    while (stat := procfs.stat_of(pid)) is not None and (stat.name, stat.state) != (name, "S"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with ExitStack() as stack:
        yield Crowd(stack)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("static")
    source = folder / "static.c"
    source.write_text("#include <unistd.h>\nint main(void) { return sleep(100); }\n")
    program = folder / "static"
    subprocess.run(["gcc", "-static", str(source), "-o", str(program)], check=True, timeout=60)
    return str(program)


def preloaded(**variables: str) -> dict[str, str]:
    return {"LD_PRELOAD": shim_path(), **variables}


def in_session(folder: Path) -> dict[str, str]:
    """Return the variables of a process whose session's socket is there."""
    socket = folder / "socket"
    socket.touch()
    return preloaded(_UFFDSWAP_SOCKET=str(socket))


def test_static_program_is_told_of_once(crowd: Crowd, static: str) -> None:
    pids = [crowd.start([static], preloaded()) for _ in range(3)]
    (text,) = crowd.look(*pids)
    assert text.startswith(f"process {pids[0]} (static) runs without a limit: it is linked static")
    assert crowd.look(*pids) == []


def test_one_look_is_not_enough(crowd: Crowd, static: str) -> None:
    crowd.lookout.look([crowd.start([static], preloaded())], ())
    assert crowd.texts == []


def test_managed_process_is_not_told_of(crowd: Crowd, static: str) -> None:
    pid = crowd.start([static], preloaded())
    assert crowd.look(pid, managed=[pid]) == []
    assert len(crowd.look(pid)) == 1  # it has executed something, say


def test_stopped_process_is_not_told_of_before_it_goes_on(crowd: Crowd, static: str) -> None:
    pid = crowd.start([static], preloaded())
    os.kill(pid, signal.SIGSTOP)
    wait_for_state(pid, "T")
    assert crowd.look(pid) == []
    os.kill(pid, signal.SIGCONT)
    wait_for_state(pid, "S")
    assert len(crowd.look(pid)) == 1


def test_descendants_are_found_whichever_thread_has_made_them(crowd: Crowd, static: str) -> None:
    code = f"""
import os, threading
def make():
    os.posix_spawn({static!r}, ["static"], dict(os.environ))
    threading.Event().wait()
threading.Thread(target=make).start()
"""
    parent = crowd.start([sys.executable, "-I", "-S", "-c", code], os.environ)
    deadline = time.monotonic() + 20
    while not (children := procfs.descendants_of([parent]) - {parent}):
        assert time.monotonic() < deadline
    (child,) = children
    wait_until_named(child, b"static")  # it is its parent still between vfork and exec
    texts = crowd.look(parent, managed=[parent])
    os.kill(child, signal.SIGKILL)
    (text,) = texts
    assert "(static) runs without a limit" in text


@pytest.mark.parametrize("variables", [{}, {"LD_PRELOAD": "/other.so"}], ids=["none", "another"])
def test_environment_without_the_shim_is_named(crowd: Crowd, variables: dict[str, str]) -> None:
    (text,) = crowd.look(crowd.start(SLEEP, variables, stderr=subprocess.DEVNULL))
    assert text.endswith("LD_PRELOAD is not in its environment any more")


def test_disabled_process_is_not_told_of(crowd: Crowd) -> None:
    assert crowd.look(crowd.start(SLEEP, {"UFFDSWAP_DISABLE": "1"})) == []


def test_shim_that_cannot_be_seen_is_named(crowd: Crowd) -> None:
    variables = {"LD_PRELOAD": "/nonexistent/libuffdswap.so"}
    (text,) = crowd.look(crowd.start(SLEEP, variables, stderr=subprocess.DEVNULL))
    assert "it runs where /nonexistent/libuffdswap.so is not (a container, a chroot)" in text
    assert "make /nonexistent visible there" in text


def test_shim_that_cannot_be_loaded_is_named(crowd: Crowd, tmp_path: Path) -> None:
    shim = tmp_path / "libuffdswap.so"
    shim.write_text("no library")
    variables = {"LD_PRELOAD": str(shim)}
    (text,) = crowd.look(crowd.start(SLEEP, variables, stderr=subprocess.DEVNULL))
    assert f"it could not load {shim}" in text
    assert not crowd.lookout.has_told_of_shim


def test_socket_that_cannot_be_seen_is_named(crowd: Crowd) -> None:
    pid = crowd.start(SLEEP, preloaded(_UFFDSWAP_SOCKET="/nonexistent/session/socket"))
    (text,) = crowd.look(pid)
    assert "it runs where /nonexistent/session/socket is not" in text
    assert crowd.lookout.has_told_of_shim


def test_process_with_the_shim_that_could_not_join_tells_itself(
    crowd: Crowd, tmp_path: Path
) -> None:
    pid = crowd.start(SLEEP, in_session(tmp_path))
    assert crowd.look(pid, known=[pid]) == []


def test_process_with_the_shim_that_has_said_nothing_is_told_of(
    crowd: Crowd, tmp_path: Path
) -> None:
    pid = crowd.start(SLEEP, in_session(tmp_path))
    (text,) = crowd.look(pid, known=[])
    assert "it was forked by a bare system call (clone, clone3)" in text


def test_filter_of_system_calls_is_named(crowd: Crowd, tmp_path: Path) -> None:
    # PR_SET_NO_NEW_PRIVS, and a filter of one instruction that allows everything.
    code = """
import ctypes, os, struct
libc = ctypes.CDLL(None)
filter = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000), 8)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(filter)), 16)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execv("/bin/sleep", ["sleep", "100"])
"""
    variables = in_session(tmp_path)
    pid = crowd.start([sys.executable, "-I", "-S", "-c", code], variables)
    wait_until_named(pid, b"sleep")
    (text,) = crowd.look(pid, known=[])
    assert "its filter of system calls (seccomp)" in text


def test_look_that_does_not_end_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    silence = threading.Event()
    monkeypatch.setattr(Lookout, "look", lambda *_arguments: 5.0 if silence.wait(20) else 0.0)
    watch = Watch(is_preloaded=True)
    fd = watch.begin([], [], None)
    assert select.select([fd], [], [], 0.1)[0] == []
    silence.set()
    assert select.select([fd], [], [], 20)[0] == [fd]
    assert watch.end(fd) == ([], 5.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to start a process of another user")
def test_other_user_is_named(crowd: Crowd) -> None:
    (text,) = crowd.look(crowd.start(SLEEP, {}, user=NOBODY, group=NOBODY, extra_groups=[]))
    assert f"it is user {NOBODY}'s" in text


def test_many_names_are_not_told_of_without_end(crowd: Crowd, tmp_path: Path) -> None:
    programs = [tmp_path / f"program{number}" for number in range(20)]
    for program in programs:
        program.symlink_to(SLEEP[0])
    pids = [crowd.start([str(program), "100"], {}) for program in programs]
    assert len(crowd.look(*pids)) == 16
