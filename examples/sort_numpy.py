#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Sort a numpy array that is larger than the memory it may use.

    uffdswap run --memory 300M -- python examples/sort_numpy.py --size 768M

The array holds temperature readings of many weather stations: a station's readings change little
from one to the next. The answer is right if the sorted array is in order and holds each reading as
often as before.
"""

import argparse
import sys

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 20


def readings(count: int, seed: int) -> NDArray[np.float64]:
    """Make readings in tenths of a degree. A block is a station: one weather, its own climate."""
    generator = np.random.default_rng(seed)
    weather = np.cumsum(generator.choice([-1, 0, 0, 0, 0, 0, 0, 1], BLOCK))
    values = np.empty(count)
    for start in range(0, count, BLOCK):
        station = np.roll(weather, generator.integers(BLOCK)) + generator.integers(-100, 300)
        values[start : start + BLOCK] = station[: count - start] / 10
    return values


def census(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count how often each reading occurs, in tenths of a degree from -3276.8 to 3276.7."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for start in range(0, len(values), BLOCK):
        tenths = np.rint(values[start : start + BLOCK] * 10).astype(np.int32)
        counts += np.bincount(tenths + (1 << 15), minlength=1 << 16)
    return counts


def in_order(values: NDArray[np.float64]) -> bool:
    """Look at all neighbours, a block at a time."""
    starts = range(0, len(values) - 1, BLOCK)
    blocks = (values[start : start + BLOCK + 1] for start in starts)
    return all(bool(np.all(block[:-1] <= block[1:])) for block in blocks)


def size(text: str) -> int:
    """Read a size such as 512M."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(float(text[:-1]) * units[text[-1]]) if text[-1] in units else int(text)


def main() -> int:
    """Make, sort, check."""
    parser = argparse.ArgumentParser(description="Sort a numpy array larger than the limit.")
    parser.add_argument("--size", type=size, default=size("512M"), help="of the array (512M)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    values = readings(options.size // 8, options.seed)
    before = census(values)
    values.sort()
    right = in_order(values) and np.array_equal(census(values), before)
    verdict = "in order, none lost" if right else "WRONG"
    print(f"sorted {len(values):,} readings ({values.nbytes >> 20} MiB): {verdict}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
