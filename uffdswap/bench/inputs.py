# SPDX-License-Identifier: MIT
"""What the benchmark is given, looked at before anything runs or is changed.

The workload would refuse most of it as well, but once for each run, and in its own words: it knows
nothing of the options of `uffdswap bench`.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UsageError
from ..units import format_size, parse_size_of

__all__ = (
    "PAGE_BYTES",
    "read_size",
    "require_pages",
    "require_place",
    "require_pressure",
    "require_threads_fit",
)

PAGE_BYTES = 4096
_PAGES_A_THREAD = 16


def read_size(text: str) -> int:
    """Read `--size`. Raises `UsageError`, also for none at all.

    >>> read_size("32M")
    33554432
    """
    size_bytes = parse_size_of("--size", text)
    if size_bytes is None or size_bytes < PAGE_BYTES:
        is_max = size_bytes is None
        raise UsageError(
            f'--size: "{text}" is {"no amount of memory" if is_max else "too little memory"}',
            cause="" if is_max else f"one page is {PAGE_BYTES} bytes",
            remedy="write for example 512M or 1.5G",
        )
    return size_bytes


def require_threads_fit(size_bytes: int, threads: int) -> None:
    """Raise `UsageError` if there are fewer pages than the workload's threads need."""
    least_bytes = threads * _PAGES_A_THREAD * PAGE_BYTES
    if size_bytes < least_bytes:
        raise UsageError(
            f"--size: {format_size(size_bytes)} is too little for --threads {threads}",
            cause=f"each thread needs {_PAGES_A_THREAD} pages",
            remedy=f"give at least {least_bytes >> 10}K",
        )


def require_pressure(limit_bytes: int, size_bytes: int) -> None:
    """Raise `UsageError` for a limit under which no page would ever leave."""
    if limit_bytes >= size_bytes:
        raise UsageError(
            f"--resident: {format_size(limit_bytes)} leaves nothing to measure",
            cause=f"all of --size, {format_size(size_bytes)}, fits",
            remedy="give less than that, for example 50%",
        )


def require_pages(path: str) -> None:
    """Raise `UsageError` if the workload could not take its pages from a file."""
    cause = ""
    try:
        if not Path(path).exists():
            cause = "there is no such file"
        elif not Path(path).is_file():  # before it is opened: a FIFO would wait for its writer
            cause = "it is not a regular file"
        else:
            with Path(path).open("rb") as file:
                if os.fstat(file.fileno()).st_size < PAGE_BYTES:
                    cause = f"it holds no page of {PAGE_BYTES} bytes"
    except OSError as error:
        cause = error.strerror or str(error)
    if cause:
        what = f'--pages: cannot take pages from "{path}"'
        raise UsageError(what, cause=cause, remedy="give a file with data like yours")


def require_place(path: str) -> None:
    """Raise `UsageError` if a picture could not be written where it is to be."""
    folder = Path(path).parent
    if not folder.is_dir():
        cause, remedy = f'there is no folder "{folder}"', "make it, or give another path"
    elif Path(path).is_dir():
        cause, remedy = "it is a folder", "give the name of a file"
    elif not os.access(path if Path(path).exists() else folder, os.W_OK):
        cause, remedy = "you may not write there", "give another path"
    else:
        return
    raise UsageError(f'--plot: cannot write "{path}"', cause=cause, remedy=remedy)
