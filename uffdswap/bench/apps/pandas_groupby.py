# SPDX-License-Identifier: MIT
"""Group a table of sales by shop and by day: `pandas_groupby.py BYTES`.

Prices are whole cents, so sums are exact, and each answer is worked out a second time without
pandas.
"""

from __future__ import annotations

import sys

BYTES_A_ROW = 62  # the columns, and what grouping needs besides
SHOPS = 20_000
DAYS = 365


def main() -> int:
    """Make the table, group it, compare."""
    import numpy as np  # noqa: PLC0415 # pandas need not be there to look at this file
    import pandas as pd  # noqa: PLC0415

    rows = int(sys.argv[1]) // BYTES_A_ROW
    generator = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            "shop": generator.integers(SHOPS, size=rows, dtype=np.int32),
            "day": generator.integers(DAYS, size=rows, dtype=np.int16),
            "pieces": generator.integers(1, 9, size=rows),
            "cents": generator.integers(99, 99_999, size=rows).astype(np.float64),
        }
    )
    right = True
    for key, groups in (("shop", SHOPS), ("day", DAYS), ("shop", SHOPS)):
        found = table.groupby(key)[["pieces", "cents"]].agg(["sum", "max"])
        found = found.reindex(range(groups), fill_value=0)
        for column in ("pieces", "cents"):
            expected = np.bincount(table[key], weights=table[column], minlength=groups)
            right = right and np.array_equal(found[column, "sum"], expected)
        right = right and float(found["cents", "max"].max()) == float(table["cents"].max())
    if right:
        return 0
    print("pandas-groupby: a sum is WRONG", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
