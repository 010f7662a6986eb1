# SPDX-License-Identifier: MIT
# Goal: a program that inherits orphans does not inherit the helper task that it has itself.
# Method: real subreapers and first processes of PID namespaces wait for all children there are.
"""Programs that wait for every child: supervisors, and what containers start first."""

from __future__ import annotations

import os

import pytest

from .fixtures import RunFunction
from .harness import Programs

SIZE_MIB = "24"
RESIDENT = "8M"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a PID namespace")


@pytest.mark.parametrize(
    "words",
    [(), ("subreaper",), ("subreaper", "exec")],
    ids=["ordinary", "subreaper", "subreaper-twice"],
)
def test_a_subreaper_waits_for_its_own_children_only(
    programs: Programs, uffdswap_run: RunFunction, words: tuple[str, ...]
) -> None:
    command = [programs("reaper"), SIZE_MIB, *words]
    uffdswap_run(command, resident=RESIDENT).require_ok(paged=True)


@needs_root
@pytest.mark.parametrize(
    "words",
    [(), ("exec", "exec"), ("subreaper",)],
    ids=["once", "again", "subreaper"],
)
def test_the_first_process_of_a_namespace_waits_for_its_own_children_only(
    programs: Programs, uffdswap_run: RunFunction, words: tuple[str, ...]
) -> None:
    command = ["unshare", "--pid", "--fork", programs("reaper"), SIZE_MIB, *words]
    uffdswap_run(command, resident=RESIDENT).require_ok(paged=True)
