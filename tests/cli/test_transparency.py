# SPDX-License-Identifier: MIT
# Goal: the program cannot tell the launcher from a direct start, but for two variables.
# Method: the same probe program runs bare and under `uffdswap run`; what it sees is compared.
"""What the program inherits: streams, environment, signals, limits, descriptors, process group."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from integration.harness import wait_until

from uffdswap._lib import shim_path
from uffdswap.config import NO_BUDGET

from .launching import LIMIT, UFFDSWAP, Launch, error_lines, python, run, uffdswap

PROBE = """
import json, os, resource, signal, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
fds = {}
for fd in os.listdir("/proc/self/fd"):
    try: fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError: pass
names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
seen = {
    "arguments": sys.argv, "folder": os.getcwd(), "umask": os.umask(0),
    "ignored": status["SigIgn"].strip(), "blocked": status["SigBlk"].strip(),
    "group": os.getpgrp() == int(sys.argv[1]) or os.getpgrp(), "session": os.getsid(0),
    "fds": fds, "nice": os.nice(0), "threads": status["Threads"].strip(),
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in names},
    "dumpable": status.get("CoreDumping", "").strip(),
    "environment": dict(os.environ),
}
print(json.dumps(seen))
"""

# glibc's posix_spawn() leaves its two internal signals ignored, as it does for everybody.
INTERNAL_SIGNALS = 1 << 31 | 1 << 32


def seen(*, managed: bool, **options: Any) -> dict[str, Any]:
    """Return what the probe sees, with its own standard streams taken out."""
    prefix = [*UFFDSWAP, "run", *LIMIT, "--"] if managed else []
    command = [*prefix, *python(PROBE, str(os.getpgrp()), "a b", "")]
    done = subprocess.run(
        command,
        capture_output=True,
        timeout=60,
        check=True,
        **{"stdin": subprocess.DEVNULL, **options},
    )
    assert done.stderr == b""
    found: dict[str, Any] = json.loads(done.stdout)
    found["ignored"] = int(found["ignored"], 16) & ~INTERNAL_SIGNALS
    for fd in ("1", "2"):
        found["fds"].pop(fd, None)
    return found


def differences(**options: Any) -> dict[str, Any]:
    bare, managed = (seen(managed=managed, **options) for managed in (False, True))
    assert bare.keys() == managed.keys()
    managed["environment"].pop("_UFFDSWAP_SOCKET")
    managed["environment"].pop("LD_PRELOAD")
    return {name: (bare[name], managed[name]) for name in bare if bare[name] != managed[name]}


def test_program_sees_what_it_would_see_without_us() -> None:
    assert differences() == {}


def test_soft_limits_are_the_program_s_own() -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (77, 500))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

    assert differences(preexec_fn=lower) == {}


@pytest.mark.parametrize("options", [("--resident", "1G"), ("--memory", "1G"), ("-q",)])
def test_launcher_may_open_as_much_as_there_may_be(options: tuple[str, ...]) -> None:
    """It holds several descriptors of every process of the session, whatever the limit is on."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (77, 500))

    def limits() -> tuple[int, int]:
        return resource.prlimit(launch.pid, resource.RLIMIT_NOFILE)

    with Launch(("cat",), options=options, preexec_fn=lower) as launch:
        wait_until(lambda: limits() == (500, 500), "the launcher's limit is lifted")
        assert launch.finish()[0] == 0


def test_ignored_and_blocked_signals_stay_so() -> None:
    def prepare() -> None:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGTERM])

    found = seen(managed=True, preexec_fn=prepare)
    assert differences(preexec_fn=prepare) == {}
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
        assert found["ignored"] >> (number - 1) & 1


def test_pipe_signal_is_not_ignored() -> None:
    done = run("sh", "-c", "yes | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"y\n", b"")


def test_descriptors_the_launcher_was_given_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello\n")
    with (tmp_path / "file").open() as file:
        fd = file.fileno()
        done = run("cat", f"/dev/fd/{fd}", pass_fds=(fd,))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_stay_closed(tmp_path: Path, closed: str) -> None:
    output = tmp_path / "fds"
    # In the shell itself: a pipeline's own descriptors would come and go among those listed.
    inner = f'for fd in /proc/$$/fd/*; do fds="$fds ${{fd##*/}}"; done; echo $fds > {output}'
    shell = f'"$@" {closed}; exit $?'
    lists = []
    for prefix in ([], [*UFFDSWAP, "run", *LIMIT, "--"]):
        command = ["bash", "-c", shell, "bash", *prefix, "sh", "-c", inner]
        subprocess.run(command, timeout=60, check=True, capture_output=True)
        lists.append(output.read_text())
        output.unlink()
    assert lists[0] == lists[1]


# --- Streams -------------------------------------------------------------------------------------


def test_streams_are_the_program_s_byte_for_byte() -> None:
    data = random.Random(1).randbytes(1 << 20)
    done = run("sh", "-c", "tee /dev/stderr", input=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, data)


def test_without_a_terminal_nothing_of_ours_is_printed() -> None:
    for options in ([], ["-q"]):
        done = uffdswap("run", *LIMIT, *options, "--", "true")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_verbose_tells_targets_and_a_summary_on_stderr() -> None:
    done = uffdswap("run", *LIMIT, "-v", "--", "echo", "x")
    assert (done.returncode, done.stdout) == (0, b"x\n")
    lines = error_lines(done.stderr)
    assert any("is target 1" in line for line in lines)
    assert lines[-1].startswith("peak ")


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (["--resident", "1G"], 1),
        (["--memory", "max"], 1),
        (["--memory", "max", "-q"], 0),
        (["--memory", "1G"], 0),
    ],
)
def test_disk_that_has_nothing_to_do_but_park_is_told_of(
    options: list[str], lines: int, tmp_path: Path
) -> None:
    done = uffdswap("run", *options, "--disk", str(tmp_path), "--", "true")
    assert done.returncode == 0
    assert error_lines(done.stderr) == [NO_BUDGET] * lines


def test_verbose_tells_of_a_new_file_for_a_disk_tier(tmp_path: Path) -> None:
    new = tmp_path / "new"
    (tmp_path / "empty").touch()
    for path, lines in ((new, 1), (tmp_path / "empty", 0), (tmp_path, 0)):
        done = uffdswap("run", *LIMIT, "-v", "--disk", str(path), "--", "true")
        assert done.returncode == 0, done.stderr
        line = f"made a new file for a disk tier: {path}"
        assert error_lines(done.stderr).count(line) == lines
    assert not new.exists()


def test_closed_stderr_changes_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*UFFDSWAP, "run", *LIMIT, "-v", "--", "sh", "-c", "exit 5"]
    done = subprocess.run(command, stderr=write, timeout=60, check=False)
    os.close(write)
    assert done.returncode == 5


# --- Environment ---------------------------------------------------------------------------------


def environment_inside(**options: Any) -> dict[str, str]:
    done = run("env", "-0", **options)
    assert done.returncode == 0
    pairs = (item.split("=", 1) for item in done.stdout.decode().split("\0") if item)
    return dict(pairs)


def test_environment_is_kept_and_two_variables_are_added() -> None:
    given = {**os.environ, "A": "1", "B": "", "C": "x y\nz"}
    given.pop("LD_PRELOAD", None)
    found = environment_inside(env=given)
    assert found.pop("LD_PRELOAD") == str(shim_path())
    assert Path(found.pop("_UFFDSWAP_SOCKET")).name == "socket"
    assert found == given


def test_agent_has_a_small_environment_of_its_own() -> None:
    """What is meant for the program changes nothing about how the agent runs and what it costs."""
    given = {
        **{"MALLOC_PERTURB_": "7", "MALLOC_ARENA_MAX": "1", "PYTHONTRACEMALLOC": "5"},
        **{"GLIBC_TUNABLES": "glibc.malloc.check=1", "PYTHONINSPECT": "1", "LD_BIND_NOW": "1"},
        **{"UFFDSWAP_STRESS": "1", "SOMETHING": "else"},
    }
    with Launch(("sh", "-c", "echo up; exec cat"), environment=given) as launch:
        assert launch.line() == "up"
        text = Path(f"/proc/{launch.agent().pid}/environ").read_text()
        names = {variable.partition("=")[0] for variable in text.split("\0")}
        assert not names & given.keys()
        assert {"PATH", "PYTHONPATH"} <= names


def test_preload_of_the_user_stays_in_front(tmp_path: Path) -> None:
    (tmp_path / "own.c").write_text("int own_library_is_here;\n")
    library = tmp_path / "own.so"
    command = ["gcc", "-shared", "-o", str(library), str(tmp_path / "own.c")]
    subprocess.run(command, check=True, timeout=60)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    assert environment_inside(env=environment)["LD_PRELOAD"] == f"{library}:{shim_path()}"
    done = run("grep", "-c", str(library), "/proc/self/maps", env=environment)
    assert int(done.stdout) > 0


def test_empty_preload_adds_no_separator() -> None:
    found = environment_inside(env={**os.environ, "LD_PRELOAD": ""})
    assert found["LD_PRELOAD"] == str(shim_path())


def test_modules_in_the_current_folder_are_not_taken_for_ours(tmp_path: Path) -> None:
    for name in ("json", "socket", "selectors", "uffdswap", "struct", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken')\n")
    done = run("true", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("variables", [{}, {"PYTHONINSPECT": "1"}, {"PYTHONWARNINGS": "error"}])
def test_python_variables_are_the_program_s(tmp_path: Path, variables: dict[str, str]) -> None:
    for name in (
        "resource",
        "selectors",
        "select",
        "json",
        "socket",
        "typer",
        "cffi",
        "_cffi_backend",
    ):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken')\n")
    given = {**os.environ, **variables, "PYTHONPATH": f"/nonexistent:{tmp_path}"}
    found = environment_inside(env=given)
    assert found["PYTHONPATH"] == given["PYTHONPATH"]
    for command, status in (("true", 0), ("false", 1)):
        done = run(command, env=given)
        assert (done.returncode, done.stderr) == (status, b"")
    done = uffdswap("status", env=given)
    assert (done.returncode, done.stderr) == (0, b"")


def test_package_that_only_pythonpath_finds_works(tmp_path: Path) -> None:
    """Without the search of installed packages, as where all there is comes from PYTHONPATH."""
    folders = [folder for folder in sys.path if folder.endswith("-packages")]
    import uffdswap as package  # noqa: PLC0415 # to find it

    for folder in (*map(Path, package.__path__), shim_path().parent):
        for file in folder.iterdir():
            link = tmp_path / "uffdswap" / file.name
            link.parent.mkdir(exist_ok=True)
            if not link.exists():
                link.symlink_to(file)
    environment = {**os.environ, "PYTHONPATH": ":".join([str(tmp_path), *folders])}
    command = [sys.executable, "-S", "-P", "-m", "uffdswap", "run", *LIMIT, "--", "true"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_python_of_the_agent_is_the_launcher_s(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "python3").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("true", env={**os.environ, "PATH": path})
    assert (done.returncode, done.stderr) == (0, b"")
    assert sys.executable


# --- Statistics of a real run --------------------------------------------------------------------


def test_statistics_are_valid_and_say_what_ran(tmp_path: Path) -> None:
    import jsonschema  # noqa: PLC0415 # the only test here that needs it

    stats = tmp_path / "stats.json"
    command = ("sh", "-c", "true; exit 3")
    options = ("--memory", "1G", "--resident", "512M", "--stats", str(stats))
    done = uffdswap("run", *options, "--", *command)
    assert (done.returncode, done.stderr) == (3, b"")
    report = json.loads(stats.read_text())
    reference = Path(__file__).resolve().parents[2] / "docs/reference/stats.schema.json"
    jsonschema.validate(report, json.loads(reference.read_text()))
    assert report["command"] == list(command)
    assert (report["exit_status"], report["signal"]) == (3, None)
    assert report["limits"] == {"memory_bytes": 1 << 30, "resident_bytes": 512 << 20}
    assert report["targets"] >= 1
    assert report["wall_seconds"] > 0
    assert report["cpu_seconds"]["agent_user"] > 0
    assert report["handshakes"]["refused"] == 0


def test_statistics_tell_the_signal(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    done = uffdswap("run", *LIMIT, "--stats", str(stats), "--", "sh", "-c", "kill -9 $$")
    assert done.returncode == -signal.SIGKILL
    report = json.loads(stats.read_text())
    assert (report["exit_status"], report["signal"]) == (None, signal.SIGKILL)


def test_statistics_that_fail_at_the_end_do_not_change_the_status() -> None:
    done = uffdswap("run", *LIMIT, "--stats", "/dev/full", "--", "sh", "-c", "exit 4")
    assert done.returncode == 4
    assert "No space left" in error_lines(done.stderr)[0]
