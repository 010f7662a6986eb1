# SPDX-License-Identifier: MIT
# Goal: `uffdswap run` ends exactly as its program does, and 125 to 127 mean what they say.
# Method: real programs that end in every way; status and both streams are checked.
"""Exit status of `uffdswap run`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .launching import UFFDSWAP, error_lines, python, run, script, uffdswap

KILL_ITSELF = "import os, sys; os.kill(os.getpid(), int(sys.argv[1]))"


@pytest.mark.parametrize("status", [0, 1, 7, 125, 127, 255])
def test_exit_status_is_the_programs(status: int) -> None:
    done = run("sh", "-c", f"exit {status}")
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


@pytest.mark.parametrize(
    "number",
    [
        *(signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGINT),
        *(signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGXFSZ, signal.SIGRTMIN + 3),
    ],
)
def test_launcher_dies_of_the_signal_that_killed_the_program(number: int, tmp_path: Path) -> None:
    code = f"import signal; signal.signal({int(number)}, signal.SIG_DFL)\n" if number != 9 else ""
    done = run(*python(code + KILL_ITSELF, str(int(number))), cwd=tmp_path)
    assert done.returncode == -number
    assert done.stderr == b""


def test_no_core_file_of_the_launcher(tmp_path: Path) -> None:
    command = [*UFFDSWAP, "run", "-m", "1G", "--", *python(KILL_ITSELF, str(int(signal.SIGSEGV)))]
    shell = "ulimit -c unlimited 2>/dev/null; " + '"$@"; exit 0'
    subprocess.run(["bash", "-c", shell, "bash", *command], cwd=tmp_path, timeout=60, check=True)
    cores = list(tmp_path.iterdir())
    assert len(cores) <= 1  # the program's own, where the machine keeps them in the folder


def test_without_a_limit_the_program_runs_and_a_line_says_so() -> None:
    done = uffdswap("run", "--", "true")
    assert done.returncode == 0
    (line,) = error_lines(done.stderr)
    assert "no limit" in line
    assert "--memory SIZE" in line
    assert not uffdswap("run", "-q", "--", "true").stderr
    assert not uffdswap("run", "--memory", "max", "--", "true").stderr


def test_budget_above_what_there_is_is_taken_and_a_line_says_so() -> None:
    done = uffdswap("run", "--memory", "4000T", "--", "true")
    assert done.returncode == 0
    (line,) = error_lines(done.stderr)
    assert "the budget of 3.91 PiB is more than the" in line
    assert "give --memory less" in line
    assert not uffdswap("run", "-q", "--memory", "4000T", "--", "true").stderr


def test_program_that_is_not_there_is_127() -> None:
    for name in ("no-such-program", "/no/such/program", ""):
        done = run(name)
        assert done.returncode == 127
        assert len(error_lines(done.stderr)) == 1
        assert f'"{name}"' in done.stderr.decode()


def test_file_that_is_not_executable_is_126(tmp_path: Path) -> None:
    done = run(script(tmp_path / "script", "#!/bin/sh\n", mode=0o644))
    assert done.returncode == 126
    assert "chmod +x" in error_lines(done.stderr)[0]


def test_folder_is_126(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    assert done.returncode == 126
    assert len(error_lines(done.stderr)) == 1


def test_file_of_no_known_format_is_126(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF\x00\x00junk\x00" * 20)
    (tmp_path / "program").chmod(0o755)
    done = run(str(tmp_path / "program"))
    assert done.returncode == 126
    assert "Exec format error" in error_lines(done.stderr)[0]


def test_script_without_its_interpreter_is_127(tmp_path: Path) -> None:
    done = run(script(tmp_path / "script", "#!/no/such/interpreter\n"))
    assert done.returncode == 127
    assert "/no/such/interpreter" in error_lines(done.stderr)[0]


@pytest.mark.parametrize("first_line", ["#!/bin/sh\n", ""], ids=["interpreter", "none"])
def test_script_gets_its_arguments(tmp_path: Path, first_line: str) -> None:
    path = script(tmp_path / "script", f'{first_line}printf "%s|" "$0" "$@"; exit 3\n')
    done = run(path, "a b", "", "-m")
    assert (done.returncode, done.stdout.decode()) == (3, f"{path}|a b||-m|")
    assert done.stderr == b""


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_options_after_the_program_are_its_own(separator: list[str]) -> None:
    done = uffdswap("run", "-m", "1G", *separator, "echo", "--memory", "-v", "--", "x")
    assert (done.returncode, done.stdout) == (0, b"--memory -v -- x\n")


def test_dashes_before_the_program_are_needed_once() -> None:
    done = uffdswap("run", "-m", "1G", "--", "--", "x")
    assert done.returncode == 127


# --- The rest of the command ---------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["doctor", "--help"]])
def test_help_is_on_stdout_with_status_0(arguments: list[str]) -> None:
    done = uffdswap(*arguments, env=None)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"uffdswap" in done.stdout


def test_help_of_run_names_every_option() -> None:
    text = uffdswap("run", "--help").stdout.decode()
    for option in (
        "--memory",
        "-m",
        "--resident",
        "--disk",
        "--no-disk",
        "--policy",
        "--stats",
        "--stress",
        "-q",
        "-v",
    ):
        assert option in text
    for promise in ("125", "126", "127", "UFFDSWAP_MEMORY", "share its limit"):
        assert promise in text


@pytest.mark.parametrize(
    ("command", "promise"),
    [
        ("run", "[default: /var/tmp, no cap]"),
        ("run", "[default: wait if there is a disk tier]"),
        ("run", "Usage: uffdswap run [OPTIONS] [--] {PROGRAM [ARGS]}..."),
        ("tier add", "[default: disk1, ...]"),
    ],
)
def test_help_tells_defaults_and_types_of_nothing_that_has_none(command: str, promise: str) -> None:
    text = uffdswap(*command.split(), "--help", env={"COLUMNS": "80"}).stdout.decode()
    assert promise in " ".join(text.split())
    assert "<int>" not in text
    assert "<bool>" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_list_of_commands_cuts_nothing_short() -> None:
    assert b"..." not in uffdswap("--help", env={"COLUMNS": "80"}).stdout.replace(b"[ARGS]...", b"")


def test_every_option_is_in_the_reference() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/reference/cli.md").read_text()
    for name in (
        *("memory", "resident", "disk", "no-disk", "no-disk-encryption", "policy", "stats"),
        *("stress", "quiet", "verbose"),
    ):
        assert f"`--{name}`" in text
        assert f"`UFFDSWAP_{name.upper().replace('-', '_')}`" in text


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_version_names_itself_and_python(arguments: list[str]) -> None:
    done = uffdswap(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    first, second = done.stdout.decode().splitlines()
    assert first.startswith("uffdswap ")
    assert sys.version.split()[0] in second


def test_no_command_prints_the_help() -> None:
    done = uffdswap()
    assert (done.returncode, done.stderr) == (2, b"")
    assert b"doctor" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["version", "--nonsense"], ["--nonsense"], ["doctor", "x"]]
)
def test_wrong_usage_of_other_commands_is_2(arguments: list[str]) -> None:
    done = uffdswap(*arguments)
    assert done.returncode == 2
    assert len(error_lines(done.stderr)) == 1
    assert "--help" in done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["reclaim", "1"], "Missing argument 'SIZE'; try: uffdswap reclaim --help"),
        (["tier", "remove"], "Missing argument 'NAME'; try: uffdswap tier remove --help"),
        (
            ["set", "1", "--memory"],
            "Option '--memory' requires an argument; try: uffdswap set --help",
        ),
        (
            ["tier", "add", "--pid"],
            "Option '--pid' requires an argument; try: uffdswap tier add --help",
        ),
        (["nonsense"], "No such command 'nonsense'; try: uffdswap --help"),
        (
            ["set", "1", "--memory", "1.5"],
            '--memory: "1.5" is not a size: there are no fractions of a byte; '
            "write for example 512M, 1.5G, 500MB, 50% or max",
        ),
        (
            ["set", "1", "--resident", "8E"],
            '--resident: "8E" is too large: a size is less than 8E; write max for no limit',
        ),
        (
            ["reclaim", "1", "5%"],
            'SIZE: "5%" is not a size: a percentage has no meaning here; '
            "write for example 512M or 1.5G",
        ),
        (
            ["reclaim", "1", "0"],
            "SIZE: nothing can be reclaimed of 0; give at least a page, 4K",
        ),
        (
            ["agent", "-m", "1X"],
            '--memory: "1X" is not a size: "X" after the number is not a unit; '
            "write for example 512M, 1.5G, 500MB, 50% or max",
        ),
    ],
)
def test_wrong_usage_is_one_line_with_what_to_do(arguments: list[str], line: str) -> None:
    done = uffdswap(*arguments)
    assert done.stderr.decode() == f"uffdswap: {line}\n"
    assert done.returncode == 2
    assert done.stdout == b""


def test_output_that_cannot_be_written_is_named() -> None:
    with Path("/dev/full").open("wb") as full:
        command = [*UFFDSWAP, "version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == b"uffdswap: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("arguments", [["estimate", "9" * 20], ["tier", "remove", ""]])
def test_what_cannot_be_is_one_line_of_words(arguments: list[str]) -> None:
    done = uffdswap(*arguments)
    assert done.returncode in (1, 2)
    assert len(error_lines(done.stderr)) == 1


def test_doctor_does_without_stdout() -> None:
    command = [*UFFDSWAP, "doctor", "--feature", "kernel"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_name_with_control_characters_stays_one_line() -> None:
    done = run("no\nsuch\x1b[31m")
    assert done.returncode == 127
    (line,) = error_lines(done.stderr)
    assert line.startswith('cannot run "no\\nsuch\\x1b[31m": ')


def test_name_that_the_encoding_of_stdout_lacks_is_printed(tmp_path: Path) -> None:
    program = tmp_path / "t\N{LATIN SMALL LETTER E WITH ACUTE}\x1b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "100"]) as process:
        done = uffdswap("estimate", str(process.pid), env={"PYTHONIOENCODING": "ascii"})
        process.kill()
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"(t\\xe9\\x1b)" in done.stdout
