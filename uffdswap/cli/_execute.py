# SPDX-License-Identifier: MIT
"""Do what `uffdswap run` was asked to, and end as its program ended.

Apart from the command in run.py so that it needs no typer, see `uffdswap.cli`.
"""

from __future__ import annotations

import os
import sys

from ..spawn import start_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("die_of", "execute", "print_line")


def execute(options: Mapping[str, str], command: tuple[str, ...]) -> int:
    """Run a program with options as they were written; return the status to end with.

    Does not return if the program was killed by a signal: the launcher then dies of it, too.
    """
    agent = start_agent()  # before the imports below, which take as long as its start
    try:
        from ..config import resolve  # noqa: PLC0415

        config = resolve(options, os.environ)
        from ..launch import Launcher  # noqa: PLC0415
    except BaseException:
        agent.abandon()
        raise

    def tell(level: int, text: str) -> None:
        if level < 0 or level <= config.verbosity:
            print_line(text)

    outcome = Launcher(config, command, agent, tell).run(os.environ)
    if outcome.report is not None and _wants_summary(config.verbosity):
        from ..statistics import summary  # noqa: PLC0415

        print_line(summary(outcome.report))
    if outcome.signal is not None:
        return die_of(outcome.signal)
    assert outcome.exit_status is not None
    return outcome.exit_status


def print_line(text: str) -> None:
    """Print one line of ours on stderr. Whatever is wrong with that, the program goes on."""
    from ..units import printable  # noqa: PLC0415 # the agent has been started by now

    try:  # noqa: SIM105 # contextlib is not imported before the agent has been started
        os.write(2, f"uffdswap: {printable(text)}\n".encode())
    except OSError:
        pass


def _wants_summary(verbosity: int) -> bool:
    return verbosity > 0 or (verbosity == 0 and os.isatty(2))


def die_of(number: int) -> int:
    """End this process by a signal, without a core file; the program may have left one.

    Returns what a shell would show for it, for signals that do not end a process.
    """
    import contextlib  # noqa: PLC0415 # rare
    import resource  # noqa: PLC0415
    import signal  # noqa: PLC0415

    from .._libc import forbid_core_dump  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):
        forbid_core_dump()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):
            stream.flush()
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    return 128 + number
