# SPDX-License-Identifier: MIT
"""The resource limits that a user has set for the program, and that uffdswap runs into.

Once for launcher, agents and standing agent: which to lift, and which to name when one of them is
behind an error.
"""

from __future__ import annotations

import errno
import resource

__all__ = ("behind", "in_words", "lift")

_BEHIND = {
    errno.EMFILE: {"NOFILE": "-n"},
    errno.ENOMEM: {"AS": "-v", "DATA": "-d"},
    errno.EFBIG: {"FSIZE": "-f"},
    errno.EAGAIN: {"NPROC": "-u"},
}
_LIFTED = ("NOFILE", "AS", "DATA", "FSIZE", "CPU")


def lift(*names: str) -> None:
    """Lift some limits, all of ours if none is named, as far as that goes without rights."""
    for name in names or _LIFTED:
        kind = getattr(resource, f"RLIMIT_{name}")
        _soft, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (hard, hard))


def behind(error: int | None, *, here: bool = False) -> list[str]:
    """Return the options of ulimit whose limits may be the cause of an error.

    With `here`, only those that this process has and cannot lift.
    """
    return [
        option
        for name, option in _BEHIND.get(error or 0, {}).items()
        if not here or _hard(name) != resource.RLIM_INFINITY
    ]


def in_words(error: OSError) -> str:
    """Say what went wrong here, and which hard limit to raise if one is behind it."""
    text = error.strerror or str(error)
    options = [f"ulimit -H{option[1:]}" for option in behind(error.errno, here=True)]
    return f"{text}; raise the hard limit ({' or '.join(options)})" if options else text


def _hard(name: str) -> int:
    return resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
