#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Be a notebook that somebody left open: load data, sit idle, wake up and go on.

    uffdswap run --resident 64M -- python examples/notebook.py --size 400M --idle 5

While it sits there its memory is worth more to others. The first cell after the pause uses what
the cells before it have left, and finds every value as it was.
"""

import argparse
import hashlib
import pickle
import random
import sys
import time

ROWS_PER_FRAME = 20_000
ROW_BYTES_ABOUT = 190  # what CPython needs for a row: a tuple, a float and a short string
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

Frame = list[tuple[int, float, str]]


def load(number: int) -> Frame:
    """Cell 1: load one data frame."""
    values = random.Random(number)
    return [
        (row, values.random(), f"sensor {values.randrange(100)}") for row in range(ROWS_PER_FRAME)
    ]


def digest(frame: Frame) -> str:
    """Cell 2: sum up a frame, down to the last bit of every value."""
    return hashlib.blake2b(pickle.dumps(frame), digest_size=16).hexdigest()


def size(text: str) -> int:
    """Read a size such as 512M."""
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1] in UNITS else int(text)


def main() -> int:
    """Run the cells, idle, run one more."""
    parser = argparse.ArgumentParser(description="Load data, sit idle, wake up and check.")
    parser.add_argument("--size", type=size, default=size("300M"), help="of the data (300M)")
    parser.add_argument("--idle", type=float, default=3.0, metavar="SECONDS")
    options = parser.parse_args()

    count = max(1, options.size // (ROWS_PER_FRAME * ROW_BYTES_ABOUT))
    frames = [load(number) for number in range(count)]
    digests = [digest(frame) for frame in frames]
    print(f"{count * ROWS_PER_FRAME:,} rows loaded, idle for {options.idle:g} s", flush=True)
    time.sleep(options.idle)

    began = time.monotonic()
    wrong = sum(digest(frame) != old for frame, old in zip(frames, digests, strict=True))
    verdict = "all as it was" if not wrong else f"{wrong} frames WRONG"
    print(f"awake again: {verdict}, {time.monotonic() - began:.1f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
