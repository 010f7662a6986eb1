# SPDX-License-Identifier: MIT
"""Fixtures of the integration and the stress tests.

They are in a module of their own, because a conftest.py serves one folder only.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from .harness import Outcome, Programs, Run, Session

__all__ = ("bare_run", "programs", "start_session", "uffdswap_run")

RunFunction = Callable[..., Outcome]
StartFunction = Callable[..., Session]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Return the compiled programs."""
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def start_session(programs: Programs, tmp_path: Path) -> Iterator[StartFunction]:
    """Yield a function that starts a program under uffdswap; its result is a context manager."""
    numbers = itertools.count()

    def start(args: Sequence[str | Path], **options: Any) -> Session:
        folder = tmp_path / f"run{next(numbers)}"
        folder.mkdir()
        session = Session(Run(tuple(map(str, args)), **options), programs, folder)
        sessions.callback(session.close)
        return session

    with contextlib.ExitStack() as sessions:
        yield start


@pytest.fixture
def uffdswap_run(start_session: StartFunction) -> RunFunction:
    """Return a function that runs a program under uffdswap to its end.

    uffdswap_run(args, *, resident=None, memory=None, stress=None, timeout=90, cwd=None, env={},
    sample_rss=False) gives an `Outcome`, which is not yet judged: see `Outcome.require_ok`.
    """

    def run(args: Sequence[str | Path], **options: Any) -> Outcome:
        with start_session(args, **options) as session:
            return session.finish()

    return run


@pytest.fixture
def bare_run(uffdswap_run: RunFunction) -> RunFunction:
    """Return a function that runs a program without uffdswap, in the same way otherwise."""

    def run(args: Sequence[str | Path], **options: Any) -> Outcome:
        return uffdswap_run(args, bare=True, **options)

    return run
