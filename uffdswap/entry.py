# SPDX-License-Identifier: MIT
"""Where the `uffdswap` command begins: keep what is meant for the program from the launcher.

PYTHONPATH, PYTHONINSPECT and the folder the user is in belong to the program, which is perhaps a
Python program. The command cannot be started with `-I`: pip writes its first line, and uffdswap
or what it needs may be installed where PYTHONPATH says. So what is the user's is searched last.
"""

from __future__ import annotations

import os
import sys

__all__ = ("run",)


def run() -> None:
    """Run one command and end with its status, whatever is set for the interpreter."""
    _search_the_users_folders_last()
    from .cli import main  # noqa: PLC0415 # only now it is certain whose modules these are

    status = main()
    if sys.flags.inspect:  # sys.exit() would give way to a prompt
        _flush()
        os._exit(status)
    sys.exit(status)


def _search_the_users_folders_last() -> None:
    """Look for modules in the standard library, then where packages are installed, then elsewhere.

    `resource.py` or `selectors.py` beside a program are no rare names.
    """
    library = os.path.dirname(os.__file__)
    standard = {library, os.path.join(library, "lib-dynload")}
    listed = os.environ.get("PYTHONPATH", "")
    users = set(map(os.path.abspath, listed.split(":"))) if listed else set()
    if not sys.flags.safe_path:
        users.add(os.path.abspath(sys.path[0]))  # of the script, or the current one

    def distance(folder: str) -> int:
        return 0 if folder in standard else 1 + (os.path.abspath(folder) in users)

    sys.path.sort(key=distance)


def _flush() -> None:
    import contextlib  # noqa: PLC0415 # rare

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never there
            stream.flush()
