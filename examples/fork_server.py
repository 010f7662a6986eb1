#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Load a large table once, then fork workers that read it and write to pages they share.

    uffdswap run --resident 100M -- python examples/fork_server.py --size 300M

This is how pre-forking servers save memory: a page belongs to all workers until one of them writes
to it. Each worker checks the whole table, changes its own part, and checks again that it sees its
own changes and nobody else's; so does the parent at the end.
"""

import argparse
import hashlib
import os
import sys

ROW_BYTES = 4096
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def row(number: int, writer: int) -> bytes:
    """Return a row as this writer fills it; writer 0 is the parent."""
    digest = hashlib.blake2b(b"%d %d" % (number, writer)).hexdigest().encode()
    return (b"row %d of writer %d: " % (number, writer) + digest * 4).ljust(ROW_BYTES, b".")


def is_of(number: int, writer: int, workers: int) -> bool:
    """Tell if a worker changes this row: each one its own share, the parent none."""
    return writer > 0 and number % (4 * workers) == writer


def require_view(table: bytearray, writer: int, workers: int, *, changed: bool) -> None:
    """Check every row as this process must see it."""
    for number in range(len(table) // ROW_BYTES):
        mine = changed and is_of(number, writer, workers)
        start = number * ROW_BYTES
        if table[start : start + ROW_BYTES] != row(number, writer if mine else 0):
            raise SystemExit(f"WRONG row {number}, seen by writer {writer}")


def work(table: bytearray, writer: int, workers: int) -> None:
    """Be a worker."""
    require_view(table, writer, workers, changed=False)
    for number in range(len(table) // ROW_BYTES):
        if is_of(number, writer, workers):
            table[number * ROW_BYTES : (number + 1) * ROW_BYTES] = row(number, writer)
    require_view(table, writer, workers, changed=True)


def start_worker(table: bytearray, writer: int, workers: int) -> int:
    """Fork one worker; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work(table, writer, workers)
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def size(text: str) -> int:
    """Read a size such as 512M."""
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1] in UNITS else int(text)


def main() -> int:
    """Load, fork, wait, check."""
    parser = argparse.ArgumentParser(description="Share a large table with forked workers.")
    parser.add_argument("--size", type=size, default=size("300M"), help="of the table (300M)")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()

    table = bytearray(options.size // ROW_BYTES * ROW_BYTES)
    for number in range(len(table) // ROW_BYTES):
        table[number * ROW_BYTES : (number + 1) * ROW_BYTES] = row(number, 0)
    workers = range(1, options.workers + 1)
    pids = [start_worker(table, writer, options.workers) for writer in workers]
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    require_view(table, 0, options.workers, changed=True)
    right = ends.count(0)
    print(f"{len(table) >> 20} MiB shared by {len(pids)} workers: {right} of them found it right")
    return 0 if right == len(pids) else 1


if __name__ == "__main__":
    sys.exit(main())
