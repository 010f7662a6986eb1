# SPDX-License-Identifier: MIT
# Goal: what cannot work is refused before the program runs: one clear line, status 125.
# Method: every kind of wrong input, with a program that would leave a file if it ran.
"""Bad input to `uffdswap run`."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .launching import LIMIT, UFFDSWAP, error_lines, python, run, script, uffdswap

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")


class Witness:
    """A program that leaves a trace if it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.command = ("touch", str(path))

    def require_refusal(
        self, done: subprocess.CompletedProcess[bytes], *words: str, status: int = 125
    ) -> None:
        """Demand the status, one line with the words, and that the program has not run."""
        text = done.stderr.decode()
        assert done.returncode == status, text
        assert done.stdout == b""
        assert len(error_lines(done.stderr)) == 1, text
        for word in words:
            assert word in text
        assert not self.path.exists()


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "it-has-run")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a static program and two loaders that load nothing."""
    folder = tmp_path_factory.mktemp("compiled")
    touch = (
        "#include <fcntl.h>\nint main(int c, char **v) { return open(v[1], O_CREAT, 0600) < 0; }\n"
    )
    (folder / "touch.c").write_text(touch)
    gcc(folder, "touch.c", "-static", "-o", "static")
    start = "void _start(void) { %s }\n"
    ends = '__asm__ volatile("syscall" :: "a"(60), "D"(0)); for (;;) ;'
    waits = 'for (;;) __asm__ volatile("syscall" :: "a"(34) : "rcx", "r11", "memory");'
    for name, body in (("ends", ends), ("waits", waits)):
        (folder / f"{name}.c").write_text(start % body)
        gcc(folder, f"{name}.c", "-O1", "-static-pie", "-nostdlib", "-o", f"loader-{name}")
        gcc(folder, "touch.c", f"-Wl,--dynamic-linker={folder}/loader-{name}", "-o", name)
    return folder


def gcc(folder: Path, *arguments: str) -> None:
    subprocess.run(["gcc", *arguments], cwd=folder, check=True, timeout=60)


needs_x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the loaders are x86-64 code")


# --- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "size"),
    [
        *(("--memory", size) for size in ("0", "4095", "12x", "", "-1", "101%")),
        *(("--resident", size) for size in ("0", "1G1")),
    ],
)
def test_bad_size(witness: Witness, option: str, size: str) -> None:
    witness.require_refusal(uffdswap("run", option, size, *witness.command), f"{option}: ")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["-m", "1G", "--policy", "lru"], "clock"),
        (["--stress", "0"], "not a rate"),
        (["--stress", "x"], "not a rate"),
        (["--memroy", "1G"], "--memroy"),
        (["--disk", "/nonexistent/x", "-m", "1G"], "cannot use /nonexistent/x as a disk tier"),
        (["--disk", f"/{'x' * 200}/y", "-m", "1G"], f"{'x' * 200}/y as a disk tier"),
        (["--disk", "/dev/null", "-m", "1G"], "neither a folder nor a file"),
        (["--disk", "/tmp", "--no-disk", "-m", "1G"], "exclude each other"),
        (["--disk", "/tmp", "--disk", "/tmp/", "-m", "1G"], "/tmp is a disk tier already"),
        (["--on-full", "stop", "-m", "1G"], '--on-full: "stop" is none of the choices'),
        (["-x"], "-x"),
        (["--quiet=1", "-m", "1G"], "--quiet"),
    ],
)
def test_bad_option(witness: Witness, options: list[str], word: str) -> None:
    witness.require_refusal(uffdswap("run", *options, *witness.command), word)


@pytest.mark.parametrize("arguments", [[], ["-m", "1G"], ["-m", "1G", "--"], ["-m"]])
def test_no_program(arguments: list[str]) -> None:
    done = uffdswap("run", *arguments)
    assert done.returncode == 125
    assert len(error_lines(done.stderr)) == 1


def test_bad_variable(witness: Witness) -> None:
    environment = {**os.environ, "UFFDSWAP_MEMORY": "12x"}
    witness.require_refusal(uffdswap("run", *witness.command, env=environment), "UFFDSWAP_MEMORY: ")


def test_variable_does_what_the_option_does(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    environment = {**os.environ, "UFFDSWAP_MEMORY": "1G", "UFFDSWAP_STATS": str(stats)}
    done = uffdswap("run", "true", env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert '"memory_bytes": 1073741824' in stats.read_text()


def test_session_inside_a_session(witness: Witness) -> None:
    environment = {**os.environ, "_UFFDSWAP_SOCKET": "/somewhere"}
    witness.require_refusal(run(*witness.command, env=environment), "already inside")


def test_disabled_shim(witness: Witness) -> None:
    environment = {**os.environ, "UFFDSWAP_DISABLE": "1"}
    done = run(*witness.command, env=environment)
    witness.require_refusal(done, "UFFDSWAP_DISABLE=1 is set", "without a limit", "unset it")


def test_shim_that_is_not_disabled() -> None:
    done = run("true", env={**os.environ, "UFFDSWAP_DISABLE": "0"})
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("options", [["--stats", "x"], ["--disk", "."]])
def test_current_folder_that_is_gone(witness: Witness, options: list[str], tmp_path: Path) -> None:
    command = (*UFFDSWAP, "run", *LIMIT, *options, "--", *witness.command)
    gone = tmp_path / "gone"
    gone.mkdir()
    script = ("sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *command)
    done = subprocess.run(script, cwd=gone, capture_output=True, timeout=60, check=False)
    words = ("the current folder cannot be found: No such file", "give absolute paths")
    witness.require_refusal(done, *words)


def test_program_that_is_not_there_is_all_that_is_told() -> None:
    done = uffdswap("run", "no-such-program")
    (line,) = error_lines(done.stderr)
    assert done.returncode == 127
    assert "no-such-program" in line


# --- Programs ------------------------------------------------------------------------------------


def test_static_program(witness: Witness, compiled: Path) -> None:
    done = run(str(compiled / "static"), str(witness.path))
    witness.require_refusal(done, "linked statically")


def test_script_of_a_static_program(witness: Witness, compiled: Path, tmp_path: Path) -> None:
    path = script(tmp_path / "script", f"#!{compiled}/static\n")
    witness.require_refusal(run(path, str(witness.path)), "linked statically")


def limited(limit: str, *command: str) -> tuple[str, ...]:
    """Return a command that runs another with a limit, as ulimit has it: `Sn 10`."""
    return ("sh", "-c", f'ulimit -{limit}; exec "$@"', "sh", *command)


def run_limited(limit: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run uffdswap itself with a limit."""
    command = limited(limit, *UFFDSWAP, "run", *LIMIT, *words)
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


def test_limit_that_leaves_the_shim_no_descriptors(witness: Witness) -> None:
    done = run(*limited("Sn 10", *witness.command))
    witness.require_refusal(done, "Too many open files", "raise the limit (ulimit -n)")


def test_program_is_refused_before_it_starts_where_descriptors_are_few(witness: Witness) -> None:
    done = run_limited("Sn 10", "--", *witness.command)
    witness.require_refusal(done, "Too many open files", "raise the limit (ulimit -n)")


@pytest.mark.parametrize("limit", ["v 300000", "f 10", "d 60000"])
def test_soft_limits_of_the_program_are_not_the_agent_s(limit: str) -> None:
    done = run_limited(f"S{limit}", "--", "sh", "-c", f"ulimit -S{limit[0]}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"{limit[2:]}\n"


def test_soft_limit_that_leaves_the_shim_no_memory_is_named(witness: Witness) -> None:
    done = run_limited("Sd 20000", "--", *witness.command)
    witness.require_refusal(done, "Cannot allocate memory; raise the limit (ulimit -v, -d)")


@pytest.mark.parametrize("limit", ["v 300000", "f 10", "d 20000", "n 16"])
def test_hard_limit_that_leaves_no_room_is_named(witness: Witness, limit: str) -> None:
    done = run_limited(limit, "-q", "--no-disk", "--", *witness.command)
    witness.require_refusal(done, f"raise the hard limit (ulimit -H{limit[0]}")


def test_later_image_without_descriptors_is_not_blamed_on_the_first(witness: Witness) -> None:
    command = " ".join(("ulimit -Sn 10; exec", *witness.command))
    done = run("sh", "-c", command)
    assert done.returncode == 125
    assert not witness.path.exists()
    (line,) = error_lines(done.stderr)
    assert re.search(r"cannot manage what process \d+ executed", line), line
    assert "ulimit -n" in line


def test_child_without_descriptors_runs_and_is_told_of(witness: Witness) -> None:
    command = " ".join(("ulimit -Sn 10;", *witness.command, "; echo over"))
    done = run("sh", "-c", command)
    assert (done.returncode, done.stdout) == (0, b"over\n")
    assert witness.path.exists()
    (line,) = error_lines(done.stderr)
    assert "is not managed" in line
    assert "ulimit -n" in line


def test_program_in_an_emulator_is_told_why(witness: Witness) -> None:
    if not (valgrind := shutil.which("valgrind")):
        pytest.skip("valgrind is not installed")
    done = run(valgrind, "-q", "--log-file=/dev/null", *witness.command)
    witness.require_refusal(done, "cannot manage", "an emulator (valgrind)")


@needs_x86
def test_program_that_ends_without_handing_itself_in(witness: Witness, compiled: Path) -> None:
    done = run(str(compiled / "ends"), str(witness.path))
    witness.require_refusal(done, "did not hand itself in before it ended")


def test_program_with_address_sanitizer_is_told_what_helps(
    witness: Witness, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gcc(compiled, "touch.c", "-fsanitize=address", "-o", "sanitized")
    command = (str(compiled / "sanitized"), str(witness.path))
    option = "verify_asan_link_order=0"
    monkeypatch.delenv("ASAN_OPTIONS", raising=False)
    done = run(*command)
    assert done.returncode == 125
    assert f"ASAN_OPTIONS={option}" in done.stderr.decode().splitlines()[-1]  # below its own line
    assert not witness.path.exists()
    monkeypatch.setenv("ASAN_OPTIONS", option)
    assert run(*command).returncode == 0
    assert witness.path.exists()


@needs_x86
def test_program_that_never_hands_itself_in(witness: Witness, compiled: Path) -> None:
    done = run(str(compiled / "waits"), str(witness.path))
    witness.require_refusal(done, "did not hand itself in within 5 s")


@pytest.fixture
def setuid_folder(tmp_path: Path) -> Path:
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip(f"{tmp_path} is on a file system mounted nosuid")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    return tmp_path


@needs_root
@pytest.mark.parametrize(("mode", "word"), [(0o4755, "setuid"), (0o2755, "setgid")])
def test_program_that_gains_rights(
    witness: Witness, setuid_folder: Path, mode: int, word: str
) -> None:
    program = Path(shutil.copy(shutil.which("touch") or "", setuid_folder / "program"))
    os.chown(program, NOBODY, NOBODY)
    program.chmod(mode)
    witness.require_refusal(run(str(program), str(witness.path)), word)


@needs_root
def test_setuid_program_of_the_own_user_runs(setuid_folder: Path) -> None:
    program = Path(shutil.copy(shutil.which("true") or "", setuid_folder / "program"))
    program.chmod(0o4755)
    assert run(str(program)).returncode == 0


# --- Files and folders ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["missing/stats.json", "", "/proc/stats.json", "/dev/null/x"])
def test_statistics_that_cannot_be_written(witness: Witness, tmp_path: Path, place: str) -> None:
    done = uffdswap("run", "-m", "1G", "--stats", str(tmp_path / place), *witness.command)
    witness.require_refusal(done, "cannot write the statistics", place.rpartition("/")[2])


def test_statistics_without_a_name(witness: Witness) -> None:
    done = uffdswap("run", *LIMIT, "--stats", "", "--", *witness.command)
    witness.require_refusal(done, "the name of the statistics file is empty; give --stats a file")


def test_statistics_are_not_touched_by_a_refusal(witness: Witness, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text("old")
    run_options = ("-m", "1G", "--stats", str(stats))
    assert uffdswap("run", *run_options, "no-such-program").returncode == 127
    assert stats.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]


@needs_root
def test_runtime_folder_of_somebody_else(witness: Witness, tmp_path: Path) -> None:
    folder = tmp_path / "uffdswap"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = run(*witness.command, env=environment)
    witness.require_refusal(done, str(folder), f"belongs to user {NOBODY}")


def test_runtime_folder_that_others_may_enter(witness: Witness, tmp_path: Path) -> None:
    (tmp_path / "uffdswap").mkdir()
    (tmp_path / "uffdswap").chmod(0o755)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    witness.require_refusal(run(*witness.command, env=environment), "chmod 700")


# --- An agent that cannot start ------------------------------------------------------------------

# Programs that take something away from themselves and then become their arguments.
WITHOUT_SYSCALL = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
userfaultfd, ioctl = {"x86_64": (323, 16), "aarch64": (282, 29)}[os.uname().machine]
load, equal, answer = 0x20, 0x15, 0x06
fail, allow, of_device = 0x00050000 | int(sys.argv[1]), 0x7FFF0000, 0xAA00
filters = [(load, 0, 0, 0), (equal, 3, 0, userfaultfd), (equal, 0, 3, ioctl),
           (load, 0, 0, 24), (equal, 0, 1, of_device), (answer, 0, 0, fail), (answer, 0, 0, allow)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *f) for f in filters))
program = struct.pack("HxxxxxxP", len(filters), ctypes.addressof(code))
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP
os.execv(sys.argv[2], sys.argv[2:])
"""
WITHOUT_PTRACE = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(24, 19, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_SYS_PTRACE
os.execv(sys.argv[1], sys.argv[1:])
"""


def run_after(prelude: tuple[str, ...], *command: str) -> subprocess.CompletedProcess[bytes]:
    launcher = [*prelude, *UFFDSWAP, "run", *LIMIT, "--", *command]
    return subprocess.run(launcher, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM], ids=["ENOSYS", "EPERM"])
def test_kernel_without_userfaultfd(witness: Witness, error: int) -> None:
    """A filter of system calls stands in for such a kernel, or for a container."""
    done = run_after(python(WITHOUT_SYSCALL, str(error)), *witness.command)
    witness.require_refusal(done, "userfaultfd")


@needs_root
def test_no_permission_is_told_with_what_would_help(witness: Witness) -> None:
    done = run_after(python(WITHOUT_PTRACE), *witness.command)
    witness.require_refusal(done, "CAP_SYS_PTRACE", "; ")
