# SPDX-License-Identifier: MIT
"""Fill an in-memory SQLite database with orders and query it: `sqlite_orders.py BYTES`.

Everything in a row follows from its number, so each answer is worked out a second time without the
database; SQLite's own check comes last.
"""

from __future__ import annotations

import random
import sqlite3
import sys

BYTES_A_ROW = 330
CUSTOMERS = 5000
SPREAD = 7919  # has no factor in common with CUSTOMERS
LOOKUPS_A_ROW = 0.08
SCHEMA = "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, cents INTEGER, note TEXT)"

Order = tuple[int, int, int, str]


def order(number: int) -> Order:
    """Make the order with this number."""
    cents = number * 104_729 % 100_000
    note = f"order {number}, parcel {number * 31 % 9973}, {cents / 100:.2f} paid on arrival. " * 5
    return number, number * SPREAD % CUSTOMERS, cents, note


def count_wrong_lookups(database: sqlite3.Connection, count: int) -> int:
    """Fetch orders from all over the table and compare each."""
    draw = random.Random(1).randrange
    wrong = 0
    for _step in range(int(count * LOOKUPS_A_ROW)):
        number = draw(count)
        row = database.execute("SELECT * FROM orders WHERE id = ?", (number,)).fetchone()
        wrong += row != order(number)
    return wrong


def count_wrong_sums(database: sqlite3.Connection, count: int) -> int:
    """Sum up each customer's orders by the index, and without the database."""
    expected = [0] * CUSTOMERS
    for number in range(count):
        expected[number * SPREAD % CUSTOMERS] += number * 104_729 % 100_000
    found = [0] * CUSTOMERS
    query = "SELECT customer, sum(cents) FROM orders GROUP BY customer"
    for customer, cents in database.execute(query):
        found[customer] = cents
    return sum(a != b for a, b in zip(found, expected, strict=True))


def main() -> int:
    """Fill, ask, check."""
    count = int(sys.argv[1]) // BYTES_A_ROW
    database = sqlite3.connect(":memory:")
    database.execute(SCHEMA)
    database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", map(order, range(count)))
    database.execute("CREATE INDEX by_customer ON orders (customer)")
    wrong = count_wrong_lookups(database, count) + count_wrong_sums(database, count)
    (verdict,) = database.execute("PRAGMA quick_check").fetchone()
    if not wrong and verdict == "ok":
        return 0
    print(f"sqlite: {wrong} answers are WRONG, its check says {verdict}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
