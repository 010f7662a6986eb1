# SPDX-License-Identifier: MIT
"""The `uffdswap` command. `main()` is the only place that prints errors and decides on a status.

`run` has a way of its own through here: typer takes longer to import than a short program takes to
run, so a command line that is plainly right is parsed without it. Everything else, help and usage
errors included, is typer's.
"""

from __future__ import annotations

import errno
import io
import os
import sys

from ..errors import UffdswapError
from ._execute import die_of, execute, print_line
from ._parse import parse_run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    import typer

__all__ = ("app", "main")

_USAGE_STATUS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Dies of a signal where the program did."""
    arguments = sys.argv[1:] if arguments is None else arguments
    is_run = "run" in arguments[:1]
    try:
        status = _dispatch(list(arguments))
    except UffdswapError as error:
        print_line(str(error))
        return error.run_status if is_run else error.exit_status
    except KeyboardInterrupt:
        return die_of(2)
    except OSError as error:
        print_line(_in_words(error))
        return UffdswapError.run_status if is_run else UffdswapError.exit_status
    except Exception:
        if not is_run:
            raise
        sys.excepthook(*sys.exc_info())
        return UffdswapError.run_status
    return status


def _in_words(error: OSError) -> str:
    """Say what an error of the system is about, where nobody has said it yet."""
    why = error.strerror or str(error)
    if error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
        return f"cannot use {name}: {why}"
    try:
        os.getcwd()  # noqa: PTH109 # pathlib is not imported before the program starts
    except OSError as gone:
        what = "the current folder cannot be found"
        remedy = "change to one that is there, or give absolute paths"
        return str(UffdswapError(what, cause=gone.strerror or "", remedy=remedy))
    if error.errno in (errno.ENOSPC, errno.EPIPE, errno.EIO):
        return f"cannot write the output: {why}"
    return why


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["run"]:
        parsed = parse_run(arguments[1:])
        if parsed is not None:
            return execute(*parsed)
    return _dispatch_by_typer(arguments)


def _dispatch_by_typer(arguments: list[str]) -> int:
    import typer  # noqa: PLC0415 # takes longer than a short program

    if isinstance(sys.stdout, io.TextIOWrapper):  # or there is none
        sys.stdout.reconfigure(errors="backslashreplace")  # a name of a program can be anything
    try:
        status = app()(arguments, prog_name="uffdswap", standalone_mode=False)
    except typer.TyperException as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else _command_in(arguments)
        if context is not None and message() == context.get_help():
            print(message())  # there were no arguments
        else:
            print_line(f"{message().rstrip('.')}; try: {command} --help")
        return UffdswapError.run_status if "run" in arguments[:1] else _USAGE_STATUS
    return status if isinstance(status, int) else 0


def _command_in(arguments: list[str]) -> str:
    """Return the command whose option lacks its argument; typer does not say which that is."""
    words = ["uffdswap", *arguments[: 2 if arguments[:1] == ["tier"] else 1]]
    return " ".join(word for word in words if not word.startswith("-"))


def app() -> typer.Typer:
    """Return the typer application, with every command in it."""
    import typer  # noqa: PLC0415 # see above

    from .agent import agent, print_link_flags, print_shim_path  # noqa: PLC0415
    from .bench import bench  # noqa: PLC0415
    from .doctor import doctor  # noqa: PLC0415
    from .estimate import estimate  # noqa: PLC0415
    from .live import park, reclaim, restore, set_limits  # noqa: PLC0415
    from .run import command  # noqa: PLC0415
    from .status import status  # noqa: PLC0415
    from .tier import add, remove, show  # noqa: PLC0415
    from .version import uffdswap, version  # noqa: PLC0415

    application = typer.Typer(
        name="uffdswap",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # it takes [default: ...] for markup, and says <int> of switches
    )
    application.callback()(uffdswap)
    application.command(
        "run",
        context_settings={"allow_interspersed_args": False},
        options_metavar="[OPTIONS] [--]",
    )(command)
    application.command("status")(status)
    application.command("set")(set_limits)
    application.command("reclaim")(reclaim)
    application.command("park")(park)
    application.command("restore")(restore)
    tiers = typer.Typer(
        help="List, add and remove tiers of a running session.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    tiers.command("list")(show)
    tiers.command("add")(add)
    tiers.command("remove")(remove)
    application.add_typer(tiers, name="tier")
    application.command("estimate")(estimate)
    application.command("agent")(agent)
    application.command("shim-path")(print_shim_path)
    application.command("link-flags")(print_link_flags)
    application.command("bench")(bench)
    application.command("doctor")(doctor)
    application.command("version")(version)
    return application
