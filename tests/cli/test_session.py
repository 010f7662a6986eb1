# SPDX-License-Identifier: MIT
# Goal: whoever dies, nothing runs on without its limit, nothing is lost in silence, nothing stays.
# Method: kill launcher, agent and program at every stage, and look at all processes and files.
"""Life and death of a session."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from integration.harness import processes_below, wait_until

from .launching import LIMIT, UFFDSWAP, Launch, error_lines, is_running, python, run, uffdswap

# Prints its process and waits for a line.
WAITER = "import os; os.write(1, f'{os.getpid()}\\n'.encode()); input()"

# The same with a child, and a grandchild that is an orphan in a session of its own.
FAMILY = """
import os, sys
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, f"{os.getpid()} ".encode())
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write, f"{os.getpid()}\\n".encode())
        else:
            os._exit(0)
    os.execlp("sleep", "sleep", "1000")
found = b""
while not found.endswith(b"\\n"):
    found += os.read(read, 100)
os.write(1, str(os.getpid()).encode() + b" " + found)
input()
"""


def runtime_folder() -> Path:
    return Path(os.environ["XDG_RUNTIME_DIR"]) / "uffdswap"


def require_gone(*pids: int) -> None:
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid), f"process {pid} is gone")  # type: ignore[misc]


def session_folder(launch: Launch) -> Path:
    return Path(launch.socket_path()).parent


# --- The agent -----------------------------------------------------------------------------------


def test_death_of_the_agent_kills_the_program_and_says_so() -> None:
    with Launch(python(WAITER)) as launch:
        program = int(launch.line())
        agent, folder = launch.agent().pid, session_folder(launch)
        os.kill(agent, signal.SIGKILL)
        status, _stdout, stderr = launch.end()
        assert status == 125
        (line,) = error_lines(stderr)
        assert f"the agent (process {agent}) was killed by signal 9" in line
        require_gone(program, agent)
        assert not folder.exists()


def test_death_of_the_agent_kills_children_and_orphans() -> None:
    with Launch(python(FAMILY)) as launch:
        pids = [int(pid) for pid in launch.line().split()]
        os.kill(launch.agent().pid, signal.SIGKILL)
        assert launch.end()[0] == 125
        require_gone(*pids)


def test_death_of_the_agent_leaves_no_statistics_and_the_old_file(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text("old")
    with Launch(python(WAITER), options=(*LIMIT, "--stats", str(stats))) as launch:
        launch.line()
        os.kill(launch.agent().pid, signal.SIGKILL)
        status, _stdout, stderr = launch.end()
    assert status == 125
    assert any("no statistics" in line for line in error_lines(stderr))
    assert stats.read_text() == "old"
    assert list(tmp_path.iterdir()) == [stats]


def test_agent_outlives_every_other_signal() -> None:
    with Launch(python(WAITER)) as launch:
        launch.line()
        for name in ("TERM", "HUP", "INT", "QUIT", "USR1", "USR2", "PIPE", "TSTP"):
            os.kill(launch.agent().pid, getattr(signal, f"SIG{name}"))
        assert run("true").returncode == 0  # long enough for the signals to have done their work
        launch.send_line()
        assert launch.finish() == (0, b"", b"")


def test_agent_has_nothing_of_the_launcher_s_but_stderr(tmp_path: Path) -> None:
    with (
        (tmp_path / "inherited").open("w") as file,
        Launch(python(WAITER), pass_fds=(file.fileno(),)) as launch,
    ):
        launch.line()
        agent = Path(f"/proc/{launch.agent().pid}")
        targets = {fd.name: str(fd.readlink()) for fd in (agent / "fd").iterdir()}
        stderr = Path(f"/proc/{launch.pid}/fd/2").readlink()
        assert targets["0"] == targets["1"] == "/dev/null"
        assert targets["2"] == str(stderr)
        assert not any("inherited" in target for target in targets.values())
        assert os.getsid(int(agent.name)) == int(agent.name)
        assert (agent / "cwd").readlink() == Path("/")


# --- The launcher --------------------------------------------------------------------------------


def test_death_of_the_launcher_ends_everything() -> None:
    with Launch(python(FAMILY)) as launch:
        pids = [int(pid) for pid in launch.line().split()]
        agent, folder = launch.agent().pid, session_folder(launch)
        os.kill(launch.pid, signal.SIGKILL)
        status, _stdout, stderr = launch.end()
        assert status == -signal.SIGKILL
        assert "the launcher is gone" in stderr.decode()
        require_gone(*pids, agent)
        wait_until(lambda: not folder.exists(), "the session's folder is removed")


def test_launcher_leaves_nothing_behind() -> None:
    with Launch(python(WAITER)) as launch:
        program = int(launch.line())
        below = [process.pid for process in processes_below(launch.pid)]
        assert program in below
        folder = session_folder(launch)
        assert folder.parent == runtime_folder()
        launch.send_line()
        assert launch.finish() == (0, b"", b"")
        assert not folder.exists()
        assert not any(is_running(pid) for pid in below)


def test_refused_launch_leaves_no_agent(tmp_path: Path) -> None:
    before = set(runtime_folder().iterdir())
    mark = f"{tmp_path}"
    for arguments in (["-m", "12x", "true"], [*LIMIT, "no-such-program"], [*LIMIT, "/etc"]):
        assert uffdswap("run", *arguments, env={**os.environ, "TMPDIR": mark}).returncode >= 125
    assert set(runtime_folder().iterdir()) == before
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        assert f"TMPDIR={mark}".encode() not in environment or not is_running(int(folder.name))


def test_orphans_are_reaped() -> None:
    code = """
import os, time
for i in range(50):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
os.write(1, b"done\\n")
input()
"""
    with Launch(python(code)) as launch:
        assert launch.line() == "done"

        def zombies() -> int:
            count = 0
            for process in processes_below(launch.pid):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # reaped just now
                    state = Path(f"/proc/{process.pid}/stat").read_bytes()
                    count += state.rpartition(b") ")[2].startswith(b"Z")
            return count

        wait_until(lambda: zombies() == 0, "all orphans are reaped")
        launch.send_line()
        assert launch.finish() == (0, b"", b"")


def test_program_s_own_waiting_is_not_disturbed() -> None:
    """Hands and orphans are the launcher's children, never the program's."""
    code = """
import os
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("no child")
print(len(os.listdir("/proc/self/task")), "thread")
"""
    done = run(*python(code))
    assert (done.returncode, done.stdout) == (0, b"no child\n1 thread\n")


def test_bug_in_the_launcher_does_not_leave_a_program_without_its_agent() -> None:
    code = """
import sys
from uffdswap import cli, protocol
from uffdswap.launch import Launcher
def on_target(self, message):
    raise RuntimeError("a bug")
Launcher._on_target = on_target
sys.exit(cli.main())
"""
    launcher = (sys.executable, "-P", "-c", code, "run")
    with Launch(("sleep", "1000"), launcher=launcher) as launch:
        status, _stdout, stderr = launch.end()
        assert status == 125
        assert b"RuntimeError: a bug" in stderr
        assert not processes_below(launch.pid)


# --- Children that outlive the program -----------------------------------------------------------


def test_launcher_ends_with_the_program_and_the_agent_with_the_last_target(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # The daemon waits for somebody to open the pipe, then says what it could still allocate.
    code = f"""
import os, sys
os.write(1, b"ready\\n")
os.read(0, 1)
if os.fork():
    os._exit(3)
os.setsid()
for fd in range(3): os.close(fd)
memory = bytearray(64 << 20)
with open({str(pipe)!r}, "w") as file:
    file.write(str(os.getpid()))
with open({str(pipe)!r}) as file:
    file.read()
"""
    with Launch(python(code)) as launch:
        assert launch.line() == "ready"
        agent = launch.agent().pid
        # Ends, and nobody keeps its stdout and stderr open: otherwise this would time out.
        status, stdout, stderr = launch.finish()
        assert (status, stdout, stderr) == (3, b"", b"")
    daemon = int(pipe.read_text())
    assert is_running(daemon)
    assert is_running(agent)
    folder = next(path for path in runtime_folder().iterdir() if path.name.startswith(f"{agent}-"))
    pipe.write_text("go")
    require_gone(daemon, agent)
    wait_until(lambda: not folder.exists(), "the agent removes its folder")


def test_folder_of_a_session_that_lingers_is_not_stale(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    shell = f"echo ready; read line; exec >/dev/null 2>&1; cat {pipe} & exit 0"
    with Launch(("sh", "-c", shell)) as launch:
        assert launch.line() == "ready"
        agent = launch.agent().pid
        assert launch.finish()[0] == 0
    assert run("true").returncode == 0  # cleans up what is stale
    assert any(path.name.startswith(f"{agent}-") for path in runtime_folder().iterdir())
    pipe.write_text("go")
    require_gone(agent)


# --- Descriptors ---------------------------------------------------------------------------------


FDS_OF_A_TARGET = 7  # userfaultfd, pidfd, area, maps, pagemap, smaps, connection


def count_fds(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_launcher_holds_a_target_s_descriptors_as_long_as_it_lives() -> None:
    code = """
import subprocess, sys
print("ready", flush=True)
for line in sys.stdin:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    print("started", flush=True)
    sys.stdin.readline()
    child.stdin.close()
    child.wait()
    print("ended", flush=True)
"""
    with Launch(python(code)) as launch:
        assert launch.line() == "ready"
        wait_until(lambda: count_fds(launch.pid) > FDS_OF_A_TARGET, "the program is held")
        alone = count_fds(launch.pid)
        for _turn in range(3):
            launch.send_line()
            assert launch.line() == "started"
            wait_until(
                lambda: count_fds(launch.pid) >= alone + FDS_OF_A_TARGET, "the child is held"
            )
            launch.send_line()
            assert launch.line() == "ended"
            wait_until(lambda: count_fds(launch.pid) == alone, "it is let go")
        assert launch.finish() == (0, b"", b"")


def test_launcher_runs_with_few_descriptors_and_raises_its_own_limit() -> None:
    shell = 'ulimit -Sn 24; exec "$@"'
    code = """
import os, resource
children = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os.execlp("sleep", "sleep", "1000")
    children.append(pid)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
input()
for pid in children:
    os.kill(pid, 9)
"""
    launcher = ("bash", "-c", shell, "bash", *UFFDSWAP, "run")
    with Launch(python(code), launcher=launcher) as launch:
        assert launch.line() == "24"
        wait_until(lambda: count_fds(launch.pid) > 20 * 5, "duplicates of all targets are held")
        launch.send_line()
        assert launch.finish() == (0, b"", b"")


def test_stopped_launcher_does_not_hold_the_session_up() -> None:
    """The agent must not wait for a launcher that does not read, nor lose what it has to say."""
    code = """
import os, subprocess, sys
for line in sys.stdin:
    for _ in range(40):
        subprocess.run(["true"], check=True)
    print("done", flush=True)
"""
    with Launch(python(code), options=(*LIMIT, "-v")) as launch:
        launch.send_line()
        assert launch.line() == "done"
        os.kill(launch.pid, signal.SIGSTOP)
        launch.send_line()
        assert launch.line() == "done"
        os.kill(launch.pid, signal.SIGCONT)
        status, _stdout, stderr = launch.finish()
    assert status == 0
    told = [line for line in error_lines(stderr) if "is target" in line]
    assert len(told) >= 81


# --- Running out of memory -----------------------------------------------------------------------


def test_statistics_of_a_program_that_was_killed_by_us_say_125(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    hog = "import os\nx = []\nwhile True: x.append(os.urandom(1 << 20))"
    options = ["-m", "64M", "--no-disk", "--stats", str(stats)]
    command = [*UFFDSWAP, "run", *options, "--", *python(hog)]
    done = subprocess.run(command, capture_output=True, timeout=100, check=False)
    assert done.returncode == 125
    assert "out of memory" in error_lines(done.stderr)[0]
    report = json.loads(stats.read_text())
    assert (report["exit_status"], report["signal"]) == (125, signal.SIGKILL)
