# SPDX-License-Identifier: MIT
# Goal: programs that join by the shim alone are managed, and are never left with zeros.
# Method: a real standing agent, real programs that check their memory, and kills at bad moments.
"""The standing agent."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from uffdswap import wire

from .harness import MIB, REPOSITORY, wait_until

PROGRAM = REPOSITORY / "tests" / "programs" / "control_idle.py"
PRELOADED = (sys.executable, "-S", "-E", str(PROGRAM))
UFFDSWAP = (sys.executable, "-m", "uffdswap")
SIZE_MIB = 64


# What the shim maps is not inherited.
SAYS_IF_MANAGED = "print('/memfd:uffdswap-area' in open('/proc/self/maps').read(), flush=True)"
FORK = "if not os.fork(): exec(child)"


class Joined:
    """A program that was started without a launcher."""

    def __init__(
        self,
        standing_agent: Standing,
        size_mib: int,
        program: Sequence[str] = PRELOADED,
        **variables: str,
    ) -> None:
        environment = standing_agent.environment | {
            "LD_PRELOAD": standing_agent.shim,
            "UFFDSWAP_SOCKET": str(standing_agent.path),
            **variables,
        }
        self._output = standing_agent.folder / f"output{len(standing_agent.programs)}"
        command = [*program, str(size_mib)]
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=output, text=True
            )
        standing_agent.programs.append(self)
        wait_until(lambda: "ready" in self.output(), "the program is ready")
        self.pid = self.process.pid

    def output(self) -> str:
        return self._output.read_text()

    def tell(self, line: str, answer: str) -> None:
        before = self.output().count(answer)
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        wait_until(lambda: self.output().count(answer) > before, f"{line}: {answer}")

    def check(self) -> None:
        self.tell("check", "right")
        assert "WRONG" not in self.output()

    def resident_bytes(self) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"RssAnon:\s+(\d+) kB", text)[0]) * 1024

    def finish(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(timeout=30) == 0


class Standing:
    """A standing agent in a runtime folder of its own."""

    keeps: tuple[str, ...] = ()  # of the variables that it has for itself

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.programs: list[Joined] = []
        inherited = {k: v for k, v in os.environ.items() if "UFFDSWAP" not in k or k in self.keeps}
        self.environment = inherited | {"XDG_RUNTIME_DIR": str(folder)}
        self.path = folder / "uffdswap" / "agent.socket"
        self.shim = self.command("shim-path").strip()
        self._errors = folder / "errors"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*UFFDSWAP, "agent", *options], env=self.environment, stderr=errors
            )
        wait_until(lambda: "may join" in self.errors(), "the agent listens")

    def command(self, *words: str) -> str:
        done = subprocess.run(
            [*UFFDSWAP, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def sessions(self) -> list[dict[str, Any]]:
        """Return the sessions of this agent; the user may have others on the machine."""
        found = json.loads(self.command("status", "--json"))["sessions"]
        own = {int(path.name.partition("-")[0]) for path in self.folder.glob("uffdswap/*-*")}
        return [one for one in found if one["agent_pid"] in own]

    def session_of(self, pid: int) -> dict[str, Any]:
        found = json.loads(self.command("status", "--json", str(pid)))["sessions"][0]
        assert isinstance(found, dict)
        return found

    def errors(self) -> str:
        return self._errors.read_text()

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(timeout=30) == 0

    def close(self) -> None:
        for program in self.programs:
            program.process.kill()
            program.process.wait(timeout=30)
            if program.process.stdin:
                program.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=30)
        wait_until(lambda: not list(self.folder.glob("uffdswap/*-*")), "no session is left")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Standing]]:
    started: list[Standing] = []

    def run(*options: str) -> Standing:
        started.append(Standing(tmp_path, *options))
        return started[-1]

    yield run
    for one in started:
        one.close()


def test_program_joins_by_the_shim_alone_with_its_own_budget(start: Any) -> None:
    agent = start()
    one = Joined(agent, SIZE_MIB, UFFDSWAP_RESIDENT="32M")
    assert agent.session_of(one.pid)["limits"]["resident_bytes"] == 32 * MIB
    wait_until(lambda: one.resident_bytes() <= 32 * MIB, "the limit is met")
    one.check()
    assert one.resident_bytes() <= 32 * MIB
    one.finish()
    wait_until(lambda: not agent.sessions(), "the session ends with its program")
    agent.stop()
    assert not agent.path.exists()


@pytest.mark.parametrize(
    "part",
    ["os.posix_spawn(sys.executable, [sys.executable, '-c', child], os.environ)", FORK],
    ids=["spawn", "fork"],
)
def test_child_of_a_program_that_ends_at_once_has_its_limit(start: Any, part: str) -> None:
    agent = start("--memory", "64M")
    code = f"import os, sys; child = {SAYS_IF_MANAGED!r}\n{part}\nos._exit(0)"
    for _round in range(5):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code],
            env=agent.environment | {"LD_PRELOAD": agent.shim, "UFFDSWAP_SOCKET": str(agent.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("True\n", ""), agent.errors()
    wait_until(lambda: not agent.sessions(), "the sessions end with their last program")


def test_default_budget_is_the_agents(start: Any) -> None:
    agent = start("--memory", "300M")
    one, other = Joined(agent, 8), Joined(agent, 8, UFFDSWAP_MEMORY="200M")
    assert agent.session_of(one.pid)["limits"]["memory_bytes"] == 300 * MIB
    assert agent.session_of(other.pid)["limits"]["memory_bytes"] == 200 * MIB
    one.finish()
    other.finish()


def test_empty_variable_of_a_program_counts_as_not_set(start: Any) -> None:
    agent = start("--memory", "300M")
    one = Joined(agent, 8, UFFDSWAP_MEMORY="", UFFDSWAP_DISK="")
    assert agent.session_of(one.pid)["limits"]["memory_bytes"] == 300 * MIB
    one.finish()


def test_place_of_a_program_is_seen_from_its_folder(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "place").mkdir()
    agent = start()
    monkeypatch.chdir(tmp_path)
    one = Joined(agent, 8, UFFDSWAP_MEMORY="200M", UFFDSWAP_DISK="place:9M\n/var/tmp")
    paths = [tier["path"] for tier in agent.session_of(one.pid)["tiers"]]
    assert paths == [None, str(tmp_path / "place"), "/var/tmp"]
    one.finish()


@pytest.mark.parametrize("option", ["--memory", "--resident", "--disk", "--on-full"])
def test_empty_option_is_no_silent_lack_of_a_limit(option: str) -> None:
    done = subprocess.run(
        [*UFFDSWAP, "agent", option, ""], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f'uffdswap: {option}: "" is ')


def places(agent: Standing, program: Joined) -> list[str | None]:
    return [tier["path"] for tier in agent.session_of(program.pid)["tiers"]]


def test_agent_without_a_disk_has_no_program_with_one(start: Any, tmp_path: Path) -> None:
    own = {"UFFDSWAP_NO_DISK": "0", "UFFDSWAP_DISK": str(tmp_path), "UFFDSWAP_MEMORY": "200M"}
    agent = start("--memory", "300M", "--no-disk")
    programs = [Joined(agent, 8), Joined(agent, 8, **own)]
    assert [places(agent, one) for one in programs] == [[None], [None]]
    for one in programs:
        one.finish()


def test_agent_takes_its_options_from_its_environment(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UFFDSWAP_MEMORY", "300M")
    monkeypatch.setenv("UFFDSWAP_NO_DISK", "1")
    monkeypatch.setattr(Standing, "keeps", ("UFFDSWAP_MEMORY", "UFFDSWAP_NO_DISK"))
    done = subprocess.run(
        [*UFFDSWAP, "agent", "--disk", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--disk and UFFDSWAP_NO_DISK exclude each other" in done.stderr
    agent = start()
    one = Joined(agent, 8, UFFDSWAP_NO_DISK="", UFFDSWAP_MEMORY="")
    assert agent.session_of(one.pid)["limits"]["memory_bytes"] == 300 * MIB
    assert places(agent, one) == [None]
    one.finish()


def refusal_at_the_start(folder: Path, *command: str) -> str:
    """Return the one line of an agent that ends before it serves anybody."""
    done = subprocess.run(
        command,
        env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    return line


def test_machine_that_cannot_do_it_is_an_error_at_the_start(tmp_path: Path) -> None:
    without = ["setpriv", "--bounding-set=-sys_ptrace"] if os.geteuid() == 0 else []
    if without and not shutil.which(without[0]):
        pytest.skip("needs setpriv, to go without CAP_SYS_PTRACE")
    line = refusal_at_the_start(tmp_path, *without, *UFFDSWAP, "agent")
    assert line.startswith("uffdswap: the agent may not follow forks (no CAP_SYS_PTRACE): ")


def test_as_many_programs_may_join_as_the_hard_limit_on_descriptors_allows(start: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        agent = start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_program_does_not_wait_for_a_session_that_cannot_be_started(start: Any) -> None:
    agent = start()
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (13, 13))
    one = Joined(agent, 8)
    (line,) = agent.errors().splitlines()[1:]
    assert line.startswith(f"uffdswap: process {one.pid} is not managed: cannot create ")
    assert line.endswith("; raise the hard limit (ulimit -Hn)")
    one.finish()
    agent.stop()


def test_place_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path) -> None:
    place = tmp_path / "nothing" / "here"
    command = (*UFFDSWAP, "agent", "--memory", "30M", "--disk", str(place))
    line = refusal_at_the_start(tmp_path, *command)
    assert line.startswith(f"uffdswap: cannot use {place} as a disk tier: ")
    assert not (tmp_path / "uffdswap" / "agent.socket").exists()


def test_program_whose_place_cannot_be_used_has_its_limit(start: Any, tmp_path: Path) -> None:
    place = tmp_path / "place" / "below"
    place.mkdir(parents=True)
    agent = start("--memory", "300M", "--disk", str(place))
    Joined(agent, 8).finish()
    assert "without a disk tier" not in agent.errors()
    shutil.rmtree(place.parent)
    one = Joined(agent, 8)
    assert agent.session_of(one.pid)["limits"]["memory_bytes"] == 300 * MIB
    assert f"going without a disk tier: cannot use {place}" in agent.errors()
    other = Joined(agent, 8, UFFDSWAP_DISK=f"{place}/too", UFFDSWAP_MEMORY="200M")
    assert agent.session_of(other.pid)["limits"]["memory_bytes"] == 200 * MIB
    assert f"going without a disk tier: cannot use {place}/too" in agent.errors()
    one.finish()
    other.finish()


def test_children_are_of_the_same_session_and_are_parked_with_it(start: Any) -> None:
    agent = start()
    one = Joined(agent, SIZE_MIB)
    agent.command("park", str(one.pid))
    one.tell("fork", "child")
    child = int(re.findall(r"child (\d+)", one.output())[0])
    session = agent.session_of(one.pid)
    assert agent.session_of(child)["agent_pid"] == session["agent_pid"]
    assert {target["pid"] for target in session["targets"]} == {one.pid, child}
    one.check()
    os.kill(child, signal.SIGUSR1)
    one.tell("wait", "child right")
    one.finish()


def test_executed_child_is_of_the_same_session(start: Any, tmp_path: Path) -> None:
    agent = start()
    script = "echo $$; exec sh -c 'echo $_UFFDSWAP_SOCKET; read line; exit 0'"
    environment = agent.environment | {
        "LD_PRELOAD": agent.shim,
        "UFFDSWAP_SOCKET": str(agent.path),
    }
    with subprocess.Popen(
        ["sh", "-c", script],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdin
        pid = int(process.stdout.readline())
        assert process.stdout.readline().startswith(str(tmp_path))
        assert len(agent.sessions()) == 1
        assert agent.session_of(pid)["counters"]["targets_total"] == 2
        process.stdin.close()
        assert process.wait(timeout=30) == 0


def test_program_goes_on_when_the_standing_agent_is_told_to_end(start: Any) -> None:
    agent = start()
    one = Joined(agent, SIZE_MIB)
    agent.command("park", str(one.pid))
    agent.stop()
    assert "1 session goes on" in agent.errors()
    assert agent.session_of(one.pid)["targets"][0]["evicted_bytes"] >= SIZE_MIB * MIB
    one.check()
    agent.command("park", str(one.pid))
    one.check()
    one.finish()


def test_program_is_killed_when_the_standing_agent_is_killed(start: Any) -> None:
    agent = start()
    one = Joined(agent, SIZE_MIB)
    agent.command("park", str(one.pid))
    agent.process.kill()
    agent.process.wait(timeout=30)
    assert one.process.wait(timeout=30) == -signal.SIGKILL
    assert "WRONG" not in one.output()
    assert "the standing agent is gone; killing the targets of this session" in agent.errors()
    assert "launcher" not in agent.errors()


def test_program_and_children_are_killed_when_their_agent_is_killed(start: Any) -> None:
    agent = start()
    one, other = Joined(agent, SIZE_MIB), Joined(agent, 8)
    agent.command("park", str(one.pid))
    one.tell("fork", "child")
    child = int(re.findall(r"child (\d+)", one.output())[0])
    os.kill(agent.session_of(one.pid)["agent_pid"], signal.SIGKILL)
    assert one.process.wait(timeout=30) == -signal.SIGKILL
    wait_until(lambda: not Path(f"/proc/{child}/maps").read_bytes(), "the child is gone")
    wait_until(lambda: "they were killed" in agent.errors(), "it is told")
    other.check()  # the other session is not touched
    other.finish()


def test_program_without_an_agent_runs_alone(start: Any) -> None:
    agent = start()
    agent.stop()
    one = Joined(agent, 8)
    one.check()
    one.finish()


def test_setting_that_makes_no_sense_is_told_and_the_program_runs_alone(start: Any) -> None:
    agent = start()
    one = Joined(agent, 8, UFFDSWAP_MEMORY="1X")
    assert 'UFFDSWAP_MEMORY: "1X" is not a size' in agent.errors()
    assert not agent.sessions()
    one.finish()


# --- Linked --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a program that was linked as the documentation says."""
    program = tmp_path_factory.mktemp("linked") / "linked"
    done = subprocess.run(
        [*UFFDSWAP, "link-flags"], capture_output=True, text=True, timeout=60, check=True
    )
    source = REPOSITORY / "tests" / "programs" / "linked.c"
    # Ubuntu's compiler has --as-needed from the start; there the flags must see to it.
    command = ["gcc", "-O2", "-Wl,--as-needed", str(source), *shlex.split(done.stdout)]
    subprocess.run([*command, "-o", str(program)], timeout=100, check=True)
    return str(program)


def is_managed(program: Joined) -> bool:
    return "ready, managed 1" in program.output()


def test_linked_program_joins_without_preload_and_is_held_to_its_limit(
    start: Any, linked: str
) -> None:
    agent = start()
    one = Joined(agent, SIZE_MIB, [linked], LD_PRELOAD="", UFFDSWAP_MEMORY="32M")
    assert is_managed(one)
    assert agent.session_of(one.pid)["limits"]["memory_bytes"] == 32 * MIB
    wait_until(lambda: one.resident_bytes() <= 32 * MIB, "the budget is met")
    one.check()
    assert one.resident_bytes() <= 32 * MIB
    one.finish()
    wait_until(lambda: not agent.sessions(), "the session ends with its program")


@pytest.mark.parametrize("parked", [False, True], ids=["nothing-evicted", "all-evicted"])
def test_forked_child_of_a_linked_program_is_managed(start: Any, linked: str, parked: bool) -> None:
    agent = start()
    one = Joined(agent, SIZE_MIB, [linked], LD_PRELOAD="")
    if parked:
        agent.command("park", str(one.pid))
    one.tell("fork", "child")
    ((child, managed),) = re.findall(r"child (\d+), managed (\d)", one.output())
    assert managed == "1"
    assert agent.session_of(int(child))["agent_pid"] == agent.session_of(one.pid)["agent_pid"]
    one.check()
    os.kill(int(child), signal.SIGUSR1)
    one.tell("wait", "child right")
    one.finish()


def test_linked_program_without_an_agent_runs_alone(start: Any, linked: str) -> None:
    agent = start()
    agent.stop()
    one = Joined(agent, 8, [linked], LD_PRELOAD="")
    assert not is_managed(one)
    one.check()
    one.finish()
    unasked = Joined(agent, 8, [linked], LD_PRELOAD="", UFFDSWAP_SOCKET="")
    assert not is_managed(unasked)
    unasked.finish()


def test_linked_program_that_is_disabled_runs_alone(start: Any, linked: str) -> None:
    agent = start()
    one = Joined(agent, 8, [linked], LD_PRELOAD="", UFFDSWAP_DISABLE="1")
    assert not is_managed(one)
    assert not agent.sessions()
    one.finish()


@pytest.mark.parametrize("preload", ["{shim}", "{copy}", "{shim}:{copy}"])
def test_program_with_the_shim_twice_joins_once(
    start: Any, linked: str, tmp_path: Path, preload: str
) -> None:
    agent = start()
    copy = tmp_path / "other.so"
    shutil.copy(agent.shim, copy)
    preload = preload.format(shim=agent.shim, copy=copy)
    one = Joined(agent, SIZE_MIB, [linked], LD_PRELOAD=preload, UFFDSWAP_RESIDENT="32M")
    assert is_managed(one)
    assert agent.session_of(one.pid)["counters"]["targets_total"] == 1
    wait_until(lambda: one.resident_bytes() <= 32 * MIB, "the limit is met")
    one.check()
    one.finish()


def test_linked_program_under_run_is_of_its_session(linked: str, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    command = [*UFFDSWAP, "run", "--resident", "32M", "--stats", str(stats), "--", linked, "64"]
    done = subprocess.run(
        command, input="check\n", capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ready, managed 1\nright\n"
    found = json.loads(stats.read_text())
    assert found["targets"] == 1
    assert found["evictions"]["pages"] > 0


# --- The agent's place, and its visitors ---------------------------------------------------------


def test_second_agent_at_the_same_place_is_refused_and_a_dead_ones_place_is_taken(
    start: Any,
) -> None:
    agent = start()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        agent.command("agent")
    assert "another agent does" in caught.value.stderr
    assert "not managed" not in agent.errors()
    agent.process.kill()
    agent.process.wait(timeout=30)
    assert agent.path.exists()
    again = start()
    one = Joined(again, 8)
    assert again.session_of(one.pid)
    one.finish()


def test_garbage_and_silence_harm_nobody(start: Any) -> None:
    agent = start()
    hello = (wire.MAGIC, wire.WIRE_VERSION, wire.HELLO_JOIN, 0, 0, 0, 0)
    wrong = wire.HELLO.pack(hello[0], 99, *hello[2:])
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    silent.connect(str(agent.path))
    for data in (b"x", b"\0" * 4000, wrong, wire.HELLO.pack(*hello[:2], 1, *hello[3:])):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(agent.path))
            client.send(data)
            assert wire.WELCOME.unpack(client.recv(200))[2] == wire.WELCOME_REFUSED
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(agent.path))
        client.send(wire.HELLO.pack(*hello))  # asks for a session, and is gone
    one = Joined(agent, 8)
    one.check()
    one.finish()
    silent.close()


def test_wire_is_spoken_as_the_shim_speaks_it() -> None:
    header = (REPOSITORY / "native" / "shim" / "wire.h").read_text()

    def value(name: str) -> int:
        (text,) = re.findall(rf"\b{name}(?: =)? (\w+?)u?,?(?: |\n)", header)
        return int(text, 0)

    assert value("USW_WIRE_MAGIC") == wire.MAGIC
    assert value("USW_WIRE_VERSION") == wire.WIRE_VERSION
    assert value("USW_HELLO_JOIN") == wire.HELLO_JOIN
    assert value("USW_HELLO_GIVE_UP") == wire.HELLO_GIVE_UP
    assert value("USW_WELCOME_REFUSED") == wire.WELCOME_REFUSED
    assert value("USW_WELCOME_SESSION") == wire.WELCOME_SESSION
    assert wire.WELCOME.size == 16 + value("USW_SOCKET_PATH_BYTES")
