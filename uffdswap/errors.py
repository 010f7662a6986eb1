# SPDX-License-Identifier: MIT
"""The exceptions that users of the package catch and that the command line prints.

Each says what failed, why, and what to do next, in that order, so that the command line needs one
line for any of them. The statuses are beside the meaning: only `main()` turns them into an exit.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

__all__ = (
    "BadProgram",
    "NoSuchSession",
    "ProgramNotExecutable",
    "ProgramNotFound",
    "ProtocolError",
    "SessionFailed",
    "SetupFailed",
    "UffdswapError",
    "UsageError",
)


class UffdswapError(Exception):
    """Something the user should know: what, why, and what to do.

    >>> print(UffdswapError("cannot open x", cause="no such file", remedy="create it"))
    cannot open x: no such file; create it
    """

    exit_status: "ClassVar[int]" = 1
    """Status of the commands other than `run`."""

    run_status: "ClassVar[int]" = 125
    """Status of `run`, which leaves the small numbers to its program."""

    def __init__(self, what: str, *, cause: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.what}: {self.cause}" if self.cause else self.what
        return f"{text}; {self.remedy}" if self.remedy else text


class UsageError(UffdswapError):
    """An option, an environment variable or their combination makes no sense."""

    exit_status = 2


class SetupFailed(UffdswapError):
    """The session could not be prepared; the program was not started."""


class BadProgram(UffdswapError):
    """The program cannot be managed: static, of another machine, or with rights of its own."""


class ProgramNotFound(UffdswapError):
    """There is no such program."""

    run_status = 127


class ProgramNotExecutable(UffdswapError):
    """The program is there and cannot be executed."""

    run_status = 126


class SessionFailed(UffdswapError):
    """The session broke after the program had started, and the program was killed."""


class NoSuchSession(UffdswapError):
    """The process that was named belongs to no session of this user."""

    exit_status = 3


class ProtocolError(UffdswapError):
    """A message on the control channel is not what the protocol allows."""
