# SPDX-License-Identifier: MIT
# Goal: no process of a session runs without its limit in silence.
# Method: programs that execute what cannot join, and what is on stderr while they run.
"""Processes that no limit holds for."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from uffdswap.runtime import shim_path

from .fixtures import RunFunction, StartFunction
from .harness import Programs, Session, run_command, wait_until
from .places import silent_file_system

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

STATIC = """
#include <stdio.h>
int main(void) { puts("running"); fflush(stdout); return getchar() != EOF; }
"""

# Has memory that leaves, and then a grandchild of another user, forked by one.
CHANGED = """
import os, time
pages = bytearray(24 << 20)
pages[::4096] = bytes(1 for _ in pages[::4096])
if not os.fork():
    os.setuid(65534)
    if not os.fork():
        time.sleep(12)
        os._exit(0)
    os.wait()
    os._exit(0)
os.wait()
"""


# Forks below the limit, by a bare system call; the child has memory of its own, and goes on.
RAW = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void)
{
	long child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (child)
		return waitpid(child, NULL, 0) != child;
	memset(malloc(8 << 20), 1, 8 << 20);
	puts("running");
	fflush(stdout);
	return getchar() != EOF;
}
"""


def await_warning(session: Session) -> str:
    session.wait_for_output("running")
    session.wait_for_error("runs without a limit")
    outcome = session.finish()
    assert outcome.returncode == 0, outcome.describe()
    assert outcome.stderr.count("uffdswap: ") == 1, outcome.describe()
    return outcome.stderr


@pytest.mark.parametrize("script", ["exec {}", "python3 -c '{}'"])
def test_static_program_is_told_of(
    programs: Programs, start_session: StartFunction, tmp_path: Path, script: str
) -> None:
    source = tmp_path / "static.c"
    source.write_text(STATIC)
    static = programs.compile(source, ["-static"])
    word = f'import subprocess; subprocess.run(["{static}"])' if "python" in script else static
    with start_session(["sh", "-c", script.format(word)], resident="1G") as session:
        assert "(static) runs without a limit: it is linked static" in await_warning(session)


@needs_root
def test_program_that_cannot_see_the_shim_is_told_of(start_session: StartFunction) -> None:
    if not shutil.which("unshare"):
        pytest.skip("needs unshare, for a mount namespace")
    folder = str(Path(shim_path()).parent)
    script = f"mount -t tmpfs none {folder} || exit 77; exec sh -c 'echo running; exec cat'"
    with start_session(["unshare", "--mount", "sh", "-c", script], resident="1G") as session:
        errors = await_warning(session)
    assert f"it runs where {shim_path()} is not" in errors
    assert f"make {folder} visible there" in errors


@needs_root
def test_fork_of_another_user_is_told_of_once(uffdswap_run: RunFunction) -> None:
    outcome = uffdswap_run([sys.executable, "-I", "-S", "-c", CHANGED], resident="12M")
    outcome.require_ok(paged=True)
    assert outcome.stderr.count("runs without a limit: it is user 65534's") == 1, outcome.describe()
    assert "could not join" not in outcome.stderr, outcome.describe()


def test_child_of_a_bare_clone_is_told_of(
    programs: Programs, start_session: StartFunction, tmp_path: Path
) -> None:
    source = tmp_path / "raw.c"
    source.write_text(RAW)
    with start_session([programs.compile(source, [])], resident="1G") as session:
        assert "(raw) runs without a limit: it was forked by a bare" in await_warning(session)


def is_in_fuse(pid: int) -> bool:
    """Tell whether a thread waits for a file system that is a program."""
    stacks = Path(f"/proc/{pid}/task").glob("*/stack")
    return any("fuse" in stack.read_text() for stack in stacks)


@needs_root
def test_session_goes_on_where_the_root_of_a_process_does_not_answer(
    start_session: StartFunction, tmp_path: Path
) -> None:
    # What LD_PRELOAD names is looked for in the root of a process that has not loaded it.
    shim = tmp_path / "silent" / "libuffdswap.so"
    runtime = tmp_path / "r"
    runtime.mkdir()
    with start_session(
        ["sh", "-c", f"LD_PRELOAD={shim} sleep 100 & echo running; cat; kill $!"],
        resident="1G",
        env={"XDG_RUNTIME_DIR": str(runtime)},
    ) as session:
        session.wait_for_output("running")
        session.wait_for_error("cannot be preloaded")
        with silent_file_system(tmp_path):
            wait_until(lambda: is_in_fuse(session.agent().pid), "the look waits")
            done = run_command("status", runtime=runtime)
            assert done.returncode == 0, done.stderr
            assert "sleep" not in session.errors()
            session.finish().require_ok()
