# SPDX-License-Identifier: MIT
# Goal: whoever belongs to whom is read right, whatever a process is called or does meanwhile.
# Method: real processes, with names that look like more fields, and limits of this process.
"""Processes in /proc, and the limits behind errors."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from pathlib import Path

import pytest

from uffdswap import limits, procfs


def test_name_that_looks_like_more_fields_is_a_name(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "100"]) as process:
        stat = procfs.stat_of(process.pid)
        assert stat is not None
        assert (stat.name, stat.parent) == (b"a) Z 1 (b", os.getpid())
        assert stat.start_time > 0
        assert process.pid in procfs.children_of(os.getpid())
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        ended = procfs.stat_of(process.pid)
        assert ended is not None
        assert ended.state == "Z"
    assert procfs.stat_of(process.pid) is None
    assert process.pid not in procfs.children_of(os.getpid())


def test_limit_is_named_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {resource.RLIMIT_AS: (5, 5), resource.RLIMIT_DATA: (5, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", known.__getitem__)
    assert limits.behind(errno.ENOMEM) == ["-v", "-d"]
    assert limits.behind(errno.ENOMEM, here=True) == ["-v"]
    assert limits.behind(errno.EPERM, here=True) == limits.behind(None) == []
    error = OSError(errno.ENOMEM, "no memory")
    assert limits.in_words(error) == "no memory; raise the hard limit (ulimit -Hv)"
    assert limits.in_words(OSError(errno.EPERM, "forbidden")) == "forbidden"
