# SPDX-License-Identifier: MIT
# Goal: every C test program passes as it is, under ASan and UBSan, and with threads under TSan.
# Method: build each one in three build trees; exit status 0 is a pass, 77 a skip with its reason.
"""Each program of native/tests, in three builds, as one test each."""

import os
import re
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from exclusive import exclusive

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted((REPOSITORY / "native" / "tests").glob("test_*.c"))
SANITIZERS = {"plain": "", "address": "address,undefined", "thread": "thread"}
SKIPPED = 77
PROGRAM_SECONDS = 240.0

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}
# What a program has threads by: its own, or those of what it includes.
THREADS = re.compile(r'pthread_create|include "(ahead|aio|disk\w*|pack|session|shim_\w+|tier)\.h"')


def builds_of(source: Path) -> Iterator[tuple[Path, str]]:
    """Yield a program with each build that can find something in it: TSan only looks at threads."""
    has_threads = THREADS.search(source.read_text())
    return ((source, build) for build in SANITIZERS if build != "thread" or has_threads)


@pytest.mark.timeout(540)
@pytest.mark.parametrize(
    ("source", "build"),
    [pair for source in SOURCES for pair in builds_of(source)],
    ids=lambda value: str(getattr(value, "stem", value)),
)
def test_native(source: Path, build: str) -> None:
    program = build_program(source.stem, build)
    status, output = run_program(program, build)
    if status == SKIPPED:
        pytest.skip(output.strip().splitlines()[-1] if output.strip() else "no reason printed")
    assert status == 0, f"{describe(status)}; it printed:\n{output}"


@pytest.mark.parametrize(("name", "wanted"), [("compressor", 0), ("dictionary", SKIPPED)])
def test_codecs_are_built_without_zstd_too(name: str, wanted: int, tmp_path: Path) -> None:
    native = REPOSITORY / "native"
    codecs = ("base", "codec", "filter", "hash_avx2", "dense", "dictionary", "compressor")
    command = ["cc", "-std=gnu11", "-O1", "-Wall", "-Werror", "-D_GNU_SOURCE=", "-pthread"]
    command += [f"-I{native / folder}" for folder in ("src", "shim", "include", "tests")]
    command += [str(native / "src" / f"{codec}.c") for codec in codecs]
    command += [str(native / "tests" / f"test_{name}.c"), "-llz4", "-lxxhash"]
    subprocess.run([*command, "-o", tmp_path / name], timeout=120, check=True)
    assert subprocess.run([tmp_path / name], timeout=60, check=False).returncode == wanted


def test_there_are_native_tests() -> None:
    assert SOURCES


def build_program(name: str, build: str) -> Path:
    """Bring one program up to date in its build tree and return it."""
    folder = REPOSITORY / "build" / f"native-{build}"
    sanitizers = SANITIZERS[build]
    if sanitizers and not compiler_has(sanitizers):
        pytest.skip(f"the compiler cannot link -fsanitize={sanitizers}")
    with exclusive(folder / ".lock"):
        if not (folder / "build.ninja").exists():
            cmake(
                *("-S", str(REPOSITORY / "native"), "-B", str(folder), "-G", "Ninja"),
                *("-DUSW_BUILD_TESTS=ON", "-DUSW_BUILD_MODULE=OFF", "-DUSW_BUILD_SHIM=OFF"),
                *(f"-DUSW_SANITIZE={sanitizers}", f"-DUSW_WERROR={'OFF' if sanitizers else 'ON'}"),
            )
        cmake("--build", str(folder), "--target", name)
    return folder / "tests" / name


def cmake(*arguments: str) -> None:
    """Run the environment's cmake, which finds the environment's ninja, and show why it failed."""
    scripts = sysconfig.get_path("scripts")
    path = os.pathsep.join((scripts, os.environ["PATH"]))
    done = subprocess.run(
        [shutil.which("cmake", path=path) or "cmake", *arguments],
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"cmake {' '.join(arguments)}\n{done.stdout}"


def compiler_has(sanitizers: str) -> bool:
    """Try to compile and link an empty program with these sanitizers."""
    done = subprocess.run(
        ["cc", f"-fsanitize={sanitizers}", "-x", "c", "-", "-o", "/dev/null"],
        input="int main(void) { return 0; }\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode == 0


def run_program(program: Path, build: str) -> tuple[int, str]:
    """Run to the end or to the limit; return the status and what was printed."""
    command = [str(program)]
    if build == "thread":
        # TSan's map of the address space knows less randomization than newer kernels have.
        command = ["setarch", "--addr-no-randomize", *command]
    process = subprocess.Popen(
        command,
        env={**os.environ, **SANITIZER_OPTIONS},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=PROGRAM_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=10)
        pytest.fail(f"not done after {PROGRAM_SECONDS:.0f} s; it printed:\n{output}")
    return process.returncode, output


def describe(status: int) -> str:
    """Say how a program ended."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
