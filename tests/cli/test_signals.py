# SPDX-License-Identifier: MIT
# Goal: every signal reaches the program once, from where it should, and the shell's job control
# works as if the launcher were not there.
# Method: a program that prints each signal it gets; real signals, and a real shell on a terminal.
"""Signals and job control."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator

import pytest
from integration.harness import wait_until

from .launching import LIMIT, UFFDSWAP, Launch, is_running, python

# Prints its process, then each signal as it comes, and what it reads. It waits for both by
# descriptor: Python runs no handler for a signal that comes just before it begins to read.
LISTENER = """
import os, select, signal
def tell(number, frame):
    os.write(1, f"got {signal.Signals(number).name}\\n".encode())
woken, waker = os.pipe()
os.set_blocking(waker, False)
signal.set_wakeup_fd(waker)
for name in ("TERM", "HUP", "INT", "QUIT", "USR1", "USR2", "WINCH", "CONT", "TSTP"):
    signal.signal(getattr(signal, f"SIG{name}"), tell)
os.write(1, f"ready {os.getpid()}\\n".encode())
data = b"\\n"
while data:
    ready, _, _ = select.select([0, woken], [], [])
    if woken in ready:
        os.read(woken, 4096)
    if 0 in ready:
        data = os.read(0, 65536)
        for line in data.splitlines(True):
            os.write(1, b"line " + line)
"""

# Runs a launcher that has less patience; `run` takes 10 s and 5 s.
IMPATIENT = """
import os, sys
from uffdswap.cli._execute import die_of, print_line
from uffdswap.config import resolve
from uffdswap.launch import Launcher, Patience
from uffdswap.spawn import start_agent
agent = start_agent()
tell = lambda level, text: print_line(text)
patience = Patience(term_seconds=float(sys.argv[1]))
command = tuple(sys.argv[sys.argv.index("--") + 1:])
launcher = Launcher(resolve({"memory": "1G"}, {}), command, agent, tell, patience)
outcome = launcher.run(os.environ)
sys.exit(outcome.exit_status if outcome.signal is None else die_of(outcome.signal))
"""


def ready(launch: Launch) -> int:
    """Wait for the listener and return its process."""
    word, pid = launch.line().split()
    assert word == "ready"
    return int(pid)


@pytest.mark.parametrize("name", ["TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH", "CONT", "TSTP"])
def test_signal_to_the_launcher_reaches_the_program(name: str) -> None:
    with Launch(python(LISTENER)) as launch:
        ready(launch)
        launch.process.send_signal(getattr(signal, f"SIG{name}"))
        assert launch.line() == f"got SIG{name}"
        launch.send_line("still here")
        assert launch.line() == "line still here"
        assert launch.finish() == (0, b"", b"")


def test_interrupt_to_the_launcher_alone_is_kept() -> None:
    with Launch(python(LISTENER)) as launch:
        ready(launch)
        launch.process.send_signal(signal.SIGINT)
        launch.process.send_signal(signal.SIGUSR1)
        assert launch.line() == "got SIGUSR1"  # nothing before it
        assert launch.finish() == (0, b"", b"")


def test_many_signals_arrive_in_the_end() -> None:
    with Launch(python(LISTENER)) as launch:
        ready(launch)
        for _ in range(20):
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                launch.process.send_signal(number)
        launch.process.send_signal(signal.SIGHUP)
        wanted = {"got SIGHUP", "got SIGUSR1", "got SIGUSR2"}  # in any order, equal ones merged
        while wanted:
            wanted.discard(launch.line())
        assert launch.finish()[0] == 0


def test_program_that_dies_of_a_forwarded_signal_takes_the_launcher_along() -> None:
    with Launch(("sleep", "100")) as launch:
        wait_until(lambda: b"sleep" in children(launch.pid), "the program runs")
        launch.process.send_signal(signal.SIGTERM)
        assert launch.finish() == (-signal.SIGTERM, b"", b"")


def children(pid: int) -> bytes:
    """Return the names of a process's children."""
    names = b""
    with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:  # noqa: PTH123
        for child in file.read().split():
            with contextlib.suppress(OSError), open(b"/proc/%s/comm" % child, "rb") as comm:  # noqa: PTH123
                names += comm.read()
    return names


def test_signal_before_there_is_a_program_ends_the_launch() -> None:
    with Launch(("sleep", "100")) as launch:
        wait_until(lambda: signals_are_blocked(launch.pid), "the launcher takes signals")
        launch.process.send_signal(signal.SIGTERM)
        assert launch.finish()[0] == -signal.SIGTERM


def signals_are_blocked(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
        text = file.read()
    found = re.search(r"SigBlk:\t(\w+)", text)
    assert found
    return bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_second_term_within_the_grace_time_is_only_a_term() -> None:
    with Launch(python(LISTENER)) as launch:
        ready(launch)
        for _ in range(2):
            launch.process.send_signal(signal.SIGTERM)
            assert launch.line() == "got SIGTERM"
        assert launch.finish() == (0, b"", b"")


def test_second_term_after_the_grace_time_kills() -> None:
    launcher = (sys.executable, "-P", "-c", IMPATIENT, "0.01")
    with Launch(python(LISTENER), launcher=launcher, options=()) as launch:
        program = ready(launch)
        launch.process.send_signal(signal.SIGTERM)
        assert launch.line() == "got SIGTERM"
        time.sleep(0.05)  # longer than the grace time: it is time itself that is tested
        launch.process.send_signal(signal.SIGTERM)
        assert launch.end()[0] == -signal.SIGKILL
        assert not is_running(program)


# --- Stopping ------------------------------------------------------------------------------------


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        return file.read().rpartition(b") ")[2].split()[0].decode()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTTIN, signal.SIGTTOU])
def test_launcher_stops_with_its_program_and_both_go_on(number: signal.Signals) -> None:
    # A process group of its own, so that it is not an orphaned one, which the kernel never stops.
    with Launch(python(LISTENER), process_group=0) as launch:
        program = ready(launch)
        os.kill(program, number)
        _pid, status = os.waitpid(launch.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert os.WSTOPSIG(status) == number
        assert state(program) == "T"
        os.kill(launch.pid, signal.SIGCONT)
        assert launch.line() == "got SIGCONT"
        launch.send_line("on")
        assert launch.line() == "line on"
        assert launch.finish() == (0, b"", b"")


def test_program_that_stops_itself_twice_is_followed_twice() -> None:
    code = "import os, signal\nfor i in range(2):\n os.kill(os.getpid(), signal.SIGSTOP)"
    with Launch(python(code), process_group=0) as launch:
        for _ in range(2):
            _pid, status = os.waitpid(launch.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            os.kill(launch.pid, signal.SIGCONT)
        assert launch.finish()[0] == 0


def test_tstp_to_the_group_stops_once() -> None:
    """`kill -TSTP %1; bg`: the launcher must not pass on, after CONT, what came before it."""
    command = ("sh", "-c", "echo $$; exec cat")
    with Launch(command, process_group=0) as launch:
        program = int(launch.line())
        for _ in range(6):  # in which of two orders the launcher finds the signals is chance
            os.killpg(launch.pid, signal.SIGTSTP)
            _pid, status = os.waitpid(launch.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            wait_until(lambda: state(program) == "T", "the program has stopped")
            os.killpg(launch.pid, signal.SIGCONT)
            wait_until(lambda: state(launch.pid) == "S", "the launcher waits for its program")
            time.sleep(0.1)  # it is to stay so
            assert (state(launch.pid), state(program)) == ("S", "S")
        assert launch.finish() == (0, b"", b"")


# --- A terminal ----------------------------------------------------------------------------------


class Shell:
    """An interactive bash on a terminal of its own."""

    PROMPT = "prompt> "

    def __init__(self) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            environment = {**os.environ, "PS1": self.PROMPT, "TERM": "dumb", "HISTFILE": ""}
            environment.pop("PROMPT_COMMAND", None)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], environment)
        self.wait_for(self.PROMPT)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, pattern: str, seconds: float = 30.0) -> str:
        """Read until a pattern appears; return everything up to its end."""
        read = ""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, read):
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            try:
                data = os.read(self._fd, 1) if ready else b""  # no more than belongs to it
            except OSError:
                data = b""
            if not data:
                pytest.fail(f"no {pattern!r} on the terminal, but {read!r}")
            read += data.decode(errors="replace")
        return read

    def run(self, *command: str) -> None:
        words = " ".join(f"'{word}'" for word in (*UFFDSWAP, "run", *LIMIT, "--", *command))
        self.type(f"{words}\n")

    def status(self) -> int:
        """Return the status of the last command."""
        self.type("echo status=$?\n")
        return int(self.wait_for(r"status=\d+\r\n").rpartition("=")[2])

    def close(self) -> None:
        os.close(self._fd)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def shell() -> Iterator[Shell]:
    shell = Shell()
    yield shell
    shell.close()


@pytest.fixture
def listener(tmp_path: object) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", f"{tmp_path}/listener.py")


@pytest.fixture
def listening(shell: Shell, listener: tuple[str, ...]) -> Shell:
    with open(listener[-1], "w") as file:  # noqa: PTH123
        file.write(LISTENER)
    shell.run(*listener)
    shell.wait_for(r"ready \d+")
    return shell


@pytest.mark.parametrize(
    ("key", "name"), [("\x03", "INT"), ("\x1c", "QUIT"), ("\x1a", "TSTP")], ids=["C", "\\", "Z"]
)
def test_key_of_the_terminal_reaches_the_program_once(
    listening: Shell, key: str, name: str
) -> None:
    listening.type(key)
    listening.wait_for(f"got SIG{name}")
    listening.type("a line\n")
    text = listening.wait_for("line a line")
    assert "got" not in text
    listening.type("\x04")
    listening.wait_for(Shell.PROMPT)
    assert listening.status() == 0


def test_ctrl_c_ends_program_and_launcher(shell: Shell) -> None:
    shell.run("sh", "-c", "echo running; exec sleep 100")
    shell.wait_for("running\r\n")
    shell.type("\x03")
    shell.wait_for(Shell.PROMPT)
    assert shell.status() == 128 + signal.SIGINT


def test_ctrl_z_stops_the_job_and_fg_goes_on(shell: Shell) -> None:
    shell.run("sh", "-c", "echo running; exec cat")
    shell.wait_for("running\r\n")
    shell.type("\x1a")
    shell.wait_for(r"Stopped.*\r\n")
    shell.wait_for(Shell.PROMPT)
    shell.type("jobs -s\n")
    assert "Stopped" in shell.wait_for(Shell.PROMPT)
    shell.type("fg\n")
    shell.wait_for(r"cat'\r\n")  # the shell names the job that it goes on with
    shell.type("one line\n")
    shell.wait_for("one line\r\none line\r\n")
    shell.type("\x04")
    shell.wait_for(Shell.PROMPT)
    assert shell.status() == 0


def test_stopped_job_goes_on_in_the_background(shell: Shell) -> None:
    shell.run("sh", "-c", "echo running; sleep 1000 & wait; echo over")
    shell.wait_for("running\r\n")
    shell.type("\x1a")
    shell.wait_for(r"Stopped.*\r\n")
    shell.wait_for(Shell.PROMPT)
    shell.type("bg\n")
    shell.wait_for(Shell.PROMPT)
    shell.type("jobs -r\n")
    assert "Running" in shell.wait_for(r"Running.*\r\n")
    shell.wait_for(Shell.PROMPT)
    shell.type("kill %1; wait %1\n")
    shell.wait_for(Shell.PROMPT)


def test_background_job_that_reads_is_stopped_and_fg_lets_it_read(shell: Shell) -> None:
    words = " ".join(f"'{word}'" for word in (*UFFDSWAP, "run", *LIMIT, "--", "cat"))
    shell.type(f"{words} &\n")
    shell.wait_for(Shell.PROMPT)
    deadline = time.monotonic() + 30
    while "Stopped" not in jobs(shell):
        assert time.monotonic() < deadline
    shell.type("fg\n")
    shell.wait_for(r"cat'\r\n")  # the shell names the job that it goes on with
    shell.type("one line\n")
    shell.wait_for("one line\r\none line\r\n")
    shell.type("\x04")
    shell.wait_for(Shell.PROMPT)


def jobs(shell: Shell) -> str:
    shell.type("jobs; echo end\n")
    # The shell may tell of a change between the two: "end", "[1]+  Stopped ...", prompt.
    return shell.wait_for(r"(?s)end\r\n.*?prompt> ")


def test_summary_is_shown_on_a_terminal_and_not_with_quiet(shell: Shell) -> None:
    shell.run("true")
    text = shell.wait_for(Shell.PROMPT)
    assert re.search(r"uffdswap: peak \S+ \S+ resident", text)
    shell.run("-q")  # becomes the program's name: the option belongs in front
    assert "127" in shell.wait_for(Shell.PROMPT) + str(shell.status())
    words = " ".join(f"'{word}'" for word in (*UFFDSWAP, "run", "-q", *LIMIT, "--", "true"))
    shell.type(f"{words}\n")
    text = shell.wait_for(Shell.PROMPT)
    assert "uffdswap: " not in text


def test_program_has_the_terminal(shell: Shell) -> None:
    shell.run("sh", "-c", "test -t 0 && test -t 1 && test -t 2 && stty size && echo yes")
    shell.wait_for("yes\r\n")
    shell.wait_for(Shell.PROMPT)
    assert shell.status() == 0


def test_shell_inside_has_job_control_of_its_own(shell: Shell) -> None:
    shell.run("bash", "--norc", "--noprofile", "--noediting", "-i")
    shell.wait_for(Shell.PROMPT)
    shell.type("sh -c 'echo running; exec sleep 1000'\n")
    shell.wait_for("running\r\n")
    shell.type("\x03")
    shell.wait_for(Shell.PROMPT)
    assert shell.status() == 128 + signal.SIGINT
    shell.type("exit 6\n")
    shell.wait_for(Shell.PROMPT)
    assert shell.status() == 6
