# SPDX-License-Identifier: MIT
# Goal: a program the shim cannot get into is refused before it runs, and no other program is.
# Method: real programs, and copies of one with single bytes of the header changed.
"""Finding a program, and what can be known from its file."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from uffdswap.elf import Program, check, find, refusal
from uffdswap.errors import BadProgram, ProgramNotExecutable, ProgramNotFound

NOBODY = 65534
MACHINE_OFFSET = 18
SHELL = "/bin/sh"


def executable(path: Path, content: bytes | str, mode: int = 0o755) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def checked(path: Path | str) -> None:
    check(find((str(path),), {}))


def shell_with(tmp_path: Path, offset: int, data: bytes) -> Path:
    """Return a copy of the shell with some bytes of its header changed."""
    content = bytearray(Path(SHELL).read_bytes())
    content[offset : offset + len(data)] = data
    return executable(tmp_path / "program", bytes(content))


@pytest.fixture(scope="module")
def static_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    source = folder / "static.c"
    source.write_text("int main(void) { return 0; }\n")
    program = folder / "static"
    subprocess.run(["gcc", "-static", source, "-o", program], check=True, timeout=60)
    return program


# --- Finding -------------------------------------------------------------------------------------


def test_program_is_searched_on_the_path_in_order(tmp_path: Path) -> None:
    for folder in "abc":
        (tmp_path / folder).mkdir()
    executable(tmp_path / "a/tool", "not executable", mode=0o644)
    executable(tmp_path / "b/tool", "#!/bin/sh\n")
    executable(tmp_path / "c/tool", "#!/bin/sh\n")
    path = ":".join(str(tmp_path / folder) for folder in "abc")
    assert find(("tool", "x"), {"PATH": path}) == Program(
        path=str(tmp_path / "b/tool"), arguments=("tool", "x")
    )


def test_path_with_a_slash_is_not_searched() -> None:
    assert find((SHELL,), {"PATH": "/nowhere"}).path == SHELL


def test_empty_entry_of_the_path_is_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "tool", "#!/bin/sh\n")
    monkeypatch.chdir(tmp_path)
    assert find(("tool",), {"PATH": "/nowhere:"}).path == "./tool"


def test_without_a_path_there_is_a_default() -> None:
    assert find(("sh",), {}).path == "/bin/sh"


@pytest.mark.parametrize("name", ["", "no-such-program", "/no/such/program", "/dev/null/x"])
def test_missing_program_is_not_found(name: str) -> None:
    with pytest.raises(ProgramNotFound):
        find((name,), {"PATH": "/bin"})


def test_file_that_may_not_be_executed_is_told_apart(tmp_path: Path) -> None:
    executable(tmp_path / "tool", "#!/bin/sh\n", mode=0o644)
    with pytest.raises(ProgramNotExecutable, match="chmod"):
        find((str(tmp_path / "tool"),), {})
    with pytest.raises(ProgramNotExecutable):
        find(("tool",), {"PATH": f"/nowhere:{tmp_path}"})


def test_folder_is_not_a_program(tmp_path: Path) -> None:
    with pytest.raises(ProgramNotExecutable, match="folder"):
        find((str(tmp_path),), {})


def test_text_without_a_first_line_is_a_shell_script(tmp_path: Path) -> None:
    script = str(executable(tmp_path / "script", "echo hello\n"))
    assert find((script, "a"), {}) == Program(path="/bin/sh", arguments=("/bin/sh", script, "a"))


def test_kernel_s_refusals_are_told_apart() -> None:
    assert isinstance(refusal("x", FileNotFoundError(2, "No such file")), ProgramNotFound)
    assert isinstance(refusal("x", OSError(8, "Exec format error")), ProgramNotExecutable)


# --- Checking ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sh", "python3", "env", "cat"])
def test_ordinary_program_is_fine(name: str) -> None:
    check(find((name,), dict(os.environ)))


def test_script_of_an_ordinary_program_is_fine(tmp_path: Path) -> None:
    checked(executable(tmp_path / "script", "#! /bin/sh -e\necho\n"))


def test_loader_itself_is_fine() -> None:
    content = Path(SHELL).read_bytes()
    start = content.index(b"/ld-")
    first = content.rindex(b"\0", 0, start) + 1
    checked(content[first : content.index(b"\0", start)].decode())


def test_static_program_is_refused(static_program: Path) -> None:
    with pytest.raises(BadProgram, match="statically"):
        checked(static_program)


def test_script_of_a_script_of_a_static_program_is_refused(
    tmp_path: Path, static_program: Path
) -> None:
    inner = executable(tmp_path / "inner", f"#!{static_program}\n")
    with pytest.raises(BadProgram, match="statically"):
        checked(executable(tmp_path / "outer", f"#!{inner} -x\n"))


@pytest.mark.parametrize("line", ["#!/no/such/interpreter\n", "#!\n", "#!   \n"])
def test_script_without_its_interpreter_is_not_found(tmp_path: Path, line: str) -> None:
    with pytest.raises(ProgramNotFound, match="first line"):
        checked(executable(tmp_path / "script", line))


def test_script_that_interprets_itself_ends(tmp_path: Path) -> None:
    script = tmp_path / "script"
    checked(executable(script, f"#!{script}\n"))


def test_program_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadProgram, match="made for RISC-V"):
        checked(shell_with(tmp_path, MACHINE_OFFSET, struct.pack("<H", 243)))


def test_32_bit_program_is_refused(tmp_path: Path) -> None:
    ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x1000, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    interpreter = b"/lib/ld-linux.so.2\0"
    entry = struct.pack("<IIIIIIII", 3, 84, 0, 0, len(interpreter), len(interpreter), 4, 1)
    with pytest.raises(BadProgram, match="made for 32-bit x86"):
        checked(executable(tmp_path / "program", ident + header + entry + interpreter))


def test_program_of_another_c_library_is_refused(tmp_path: Path) -> None:
    content = Path(SHELL).read_bytes()
    start = content.index(b"/ld-linux")
    content = content[:start] + b"/ld-musl-" + content[start + 9 :]
    with pytest.raises(BadProgram, match="another C library"):
        checked(executable(tmp_path / "program", content))


@pytest.mark.parametrize("length", [4, 20, 63, 64, 100, 4096])
def test_cut_off_program_does_not_confuse_the_check(tmp_path: Path, length: int) -> None:
    program = executable(tmp_path / "program", Path(SHELL).read_bytes()[:length])
    try:
        checked(program)
    except BadProgram as error:
        assert "statically" in str(error)


@pytest.mark.parametrize("offset", range(32, 64))
def test_nonsense_in_the_header_does_not_confuse_the_check(tmp_path: Path, offset: int) -> None:
    program = shell_with(tmp_path, offset, b"\xff")
    try:
        checked(program)
    except BadProgram as error:
        assert "statically" in str(error)


def test_program_that_cannot_be_read_is_left_to_the_handshake(tmp_path: Path) -> None:
    missing = Program(path=str(executable(tmp_path / "program", b"\x7fELF")), arguments=("x",))
    check(missing)


# --- Rights --------------------------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")


def require_setuid_to_count(path: Path) -> None:
    if os.statvfs(path).f_flag & os.ST_NOSUID:
        pytest.skip(f"{path} is on a file system mounted nosuid")


@needs_root
@pytest.mark.parametrize(("mode", "word"), [(0o4755, "setuid"), (0o2755, "setgid")])
def test_program_that_gains_rights_is_refused(tmp_path: Path, mode: int, word: str) -> None:
    require_setuid_to_count(tmp_path)
    program = Path(shutil.copy("/bin/true", tmp_path / "program"))
    os.chown(program, NOBODY, NOBODY)
    program.chmod(mode)
    with pytest.raises(BadProgram, match=word):
        checked(program)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6755])
def test_program_with_rights_one_has_already_is_fine(tmp_path: Path, mode: int) -> None:
    program = Path(shutil.copy("/bin/true", tmp_path / "program"))
    os.chown(program, os.geteuid(), os.getegid())
    program.chmod(mode)
    checked(program)


@needs_root
def test_setgid_without_group_execution_is_no_right(tmp_path: Path) -> None:
    program = Path(shutil.copy("/bin/true", tmp_path / "program"))
    os.chown(program, 0, NOBODY)
    program.chmod(0o2745)
    checked(program)


@needs_root
def test_script_with_rights_in_its_interpreter_is_refused(tmp_path: Path) -> None:
    require_setuid_to_count(tmp_path)
    program = Path(shutil.copy("/bin/true", tmp_path / "program"))
    os.chown(program, NOBODY, NOBODY)
    program.chmod(0o4755)
    with pytest.raises(BadProgram, match="setuid"):
        checked(executable(tmp_path / "script", f"#!{program}\n"))
