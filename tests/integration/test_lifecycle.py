# SPDX-License-Identifier: MIT
# Goal: whatever a program does to its memory, it finds the bytes it would find without us.
# Method: evict a range, do one thing to it, check every byte; the same program run bare agrees.
"""Life of mappings, address spaces, threads and system calls over evicted memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .fixtures import RunFunction
from .harness import Programs

RESIDENT = "8M"

CHECKS = {
    "lifecycle_map": (
        "munmap",
        "dontneed",
        "dontneed_present",
        "free",
        "patchwork",
        "brk",
        "mremap_grow",
        "mremap_shrink",
        "mremap_move",
        "mremap_middle",
        "mremap_dontunmap",
        "mremap_over",
        "mremap_while_growing",
        "mprotect_readonly",
        "mprotect_none",
        "mlock",
        "mremap_locked",
        "populate",
        "cold",
        "map_fixed",
        "foreign_mappings",
        "dev_zero",
        "growsdown",
        "hugepage",
        "shm_remap",
        "shm_remap_evicted",
        "shm_remap_other",
        "executable",
        "many_mappings",
        "holes",
        "guards",
        "guards_growing",
        "guards_removed",
        "guards_passing",
    ),
    "lifecycle_fork": (
        "fork_tree",
        "fork_cow",
        "fork_present",
        "fork_orphan",
        "fork_while_writing",
        "wipeonfork",
        "dontfork",
        "dontfork_late",
        "wipeonfork_late",
        "wipeonfork_undone",
        "raw_clone",
        "raw_clone_grow",
        "fork_dontunmap",
        "fork_moves",
        "vfork",
        "posix_spawn",
        "exec_arguments",
        "exec_self",
        "process_vm_readv",
        "ptrace_peek",
        "followed",
        "fork_exec_many",
    ),
    "lifecycle_thread": (
        "thread_stacks",
        "thread_exit",
        "thread_killed",
        "first_thread_exit",
        "exit_group",
        "cold_exit",
        "robust_mutex",
        "robust_mutex_cold",
        "two_on_one_page",
        "many_threads",
        "signals_while_faulting",
        "longjmp_out_of_faults",
        "sigaltstack",
    ),
    "lifecycle_io": (
        "read_write",
        "direct_io",
        "vectors",
        "pipe",
        "socket",
        "vmsplice",
        "futex",
        "io_uring",
        "io_uring_registered",
        "own_userfaultfd",
        "small_arguments",
    ),
}

# It talks to the test that looks at the agent meanwhile: test_end_of_targets.py.
INTERACTIVE = {"fork_exec_many"}


def cases() -> list[tuple[str, str]]:
    """Return every check with its program."""
    return [
        (program, check)
        for program, checks in CHECKS.items()
        for check in checks
        if check not in INTERACTIVE
    ]


@pytest.mark.parametrize(("program", "check"), cases(), ids=map("-".join, cases()))
def test_memory_is_as_without_us(
    program: str, check: str, programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run([programs(program), check, RESIDENT], resident=RESIDENT)
    outcome.require_ok(paged=True, may_vanish=check.startswith("guards"))
    assert f"{check}: ok" in outcome.stdout, outcome.describe()


@pytest.mark.parametrize("check", ("fork_moves", "fork_dontunmap", "raw_clone_grow"))
def test_what_is_on_a_disk_is_found_where_it_has_moved(
    check: str, programs: Programs, uffdswap_run: RunFunction, tmp_path: Path
) -> None:
    """Reads of one page for several who share it, each at another place, are under way at once."""
    limit = "24M"
    command = [programs("lifecycle_fork"), check, limit]
    outcome = uffdswap_run(command, memory=limit, options=("--disk", str(tmp_path)))
    outcome.require_ok(paged=True)


def test_a_child_that_moves_what_its_parent_moves_finds_it(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    """Whether the child has seen its parent's move is asked while it moves that memory itself."""
    for seed in range(3):
        command = [programs("lifecycle_fork"), "fork_moves", RESIDENT, seed]
        uffdswap_run(command, resident=RESIDENT, stress=5000).require_ok(paged=True)


def test_a_thread_that_has_just_begun_ends_as_without_us(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    """Its stack is what --stress begins at most often, and nobody knew of it before that."""
    limit = "16M"
    for seed in range(16):
        command = [programs("lifecycle_thread"), "cold_exit", limit, seed]
        uffdswap_run(command, resident=limit, stress=20_000).require_ok(paged=True)


def test_a_thread_ends_as_without_us_where_reclaim_has_to_wait(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    """The look at which threads there are is not put off for as long as it was kept waiting."""
    limit = "16M"
    for seed in range(4):
        outcome = uffdswap_run(
            [programs("lifecycle_thread"), "cold_exit", limit, seed],
            resident=limit,
            stress=20_000,
            freeze_ms=200,
            freeze_only="uffdswap-reclai",
        )
        outcome.require_ok(paged=True)
        if outcome.stops is None:
            pytest.skip("ptrace(PTRACE_SEIZE) of other programs is not permitted")


def test_a_thread_in_a_namespace_of_its_own_is_seen_to_move_memory(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    """Its number there is what the kernel tells, and not the one that it has for the agent."""
    below = ("unshare", "--fork", "--pid")
    if subprocess.run([*below, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no permission for a PID namespace")
    command = [*below, programs("lifecycle_map"), "mremap_locked", RESIDENT]
    uffdswap_run(command, resident=RESIDENT, timeout=30).require_ok(paged=True)


@pytest.mark.parametrize("program", CHECKS)
def test_checks_hold_on_the_bare_kernel(
    program: str, programs: Programs, bare_run: RunFunction
) -> None:
    for check in set(CHECKS[program]) - INTERACTIVE:
        outcome = bare_run([programs(program), check])
        assert outcome.returncode in {0, 77}, outcome.describe()
        assert not outcome.left_over, outcome.describe()


@pytest.mark.parametrize("program", CHECKS)
def test_every_check_has_its_test(program: str, programs: Programs) -> None:
    done = subprocess.run(
        [programs(program), "--list"], capture_output=True, text=True, check=True, timeout=10
    )
    assert tuple(done.stdout.split()) == CHECKS[program]
