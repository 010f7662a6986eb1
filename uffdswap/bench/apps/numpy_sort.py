# SPDX-License-Identifier: MIT
"""Sort an array of measured values in place: `numpy_sort.py BYTES`.

The answer is right if the array is in order and holds every value as often as before.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 19
CENTS_MAX = 10_000


def census(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count how often each value occurs, a block at a time: no copy of the array is made."""
    counts = np.zeros(2 * CENTS_MAX + 1, dtype=np.int64)
    for start in range(0, len(values), BLOCK):
        cents = np.rint(values[start : start + BLOCK] * 100).astype(np.int64)
        counts += np.bincount(cents + CENTS_MAX, minlength=len(counts))
    return counts


def fill(values: NDArray[np.float64]) -> None:
    """Draw values with two decimals, most of them near 20."""
    generator = np.random.default_rng(1)
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK]
        part[:] = np.clip(generator.normal(20, 15, len(part)).round(2), -100, 100)


def in_order(values: NDArray[np.float64]) -> bool:
    """Look at all neighbours, a block at a time."""
    blocks = (values[start : start + BLOCK + 1] for start in range(0, len(values), BLOCK))
    return all(bool(np.all(block[:-1] <= block[1:])) for block in blocks)


def main() -> int:
    """Fill, sort, check."""
    values = np.empty(int(sys.argv[1]) // 8)
    fill(values)
    before = census(values)
    values.sort()
    if in_order(values) and np.array_equal(census(values), before):
        return 0
    print("numpy-sort: the array is WRONG after sorting", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
