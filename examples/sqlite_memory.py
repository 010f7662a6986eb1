#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Fill an in-memory SQLite database that is larger than the memory it may use, and query it.

    uffdswap run --resident 100M -- python examples/sqlite_memory.py --orders 800000

Every number in a row follows from the row's number, so each answer can be computed a second time
without the database. SQLite's own integrity check has the last word.
"""

import argparse
import sqlite3
import sys

CUSTOMERS = 5000
SPREAD = 7919  # has no factor in common with CUSTOMERS
SCHEMA = """
CREATE TABLE orders (
    id INTEGER PRIMARY KEY, customer INTEGER NOT NULL, cents INTEGER NOT NULL, note TEXT NOT NULL
)
"""

Order = tuple[int, int, int, str]


def customer_of(number: int) -> int:
    """Return who placed the order with this number."""
    return number * SPREAD % CUSTOMERS


def cents_of(number: int) -> int:
    """Return what the order with this number costs."""
    return number * 104_729 % 100_000


def order(number: int) -> Order:
    """Make the order with this number."""
    customer, cents = customer_of(number), cents_of(number)
    note = f"order {number} of customer {customer}: parcel {number * 31 % 9973}, " * 6
    return number, customer, cents, note


def require(found: object, expected: object, what: str) -> None:
    """Stop the program if an answer is wrong."""
    if found != expected:
        raise SystemExit(f"WRONG {what}: {found!r}, expected {expected!r}")


def check_sums(database: sqlite3.Connection, count: int) -> None:
    """Sum up every customer's orders, and do the same without the database."""
    expected = [0] * CUSTOMERS
    for number in range(count):
        expected[customer_of(number)] += cents_of(number)
    query = "SELECT customer, sum(cents) FROM orders GROUP BY customer"
    for customer, total in database.execute(query):
        require(total, expected[customer], f"sum of customer {customer}")
        expected[customer] = 0
    require(sum(expected), 0, "sum of the customers without an order")


def check_lookups(database: sqlite3.Connection, count: int) -> None:
    """Fetch orders from all over the table."""
    for step in range(20_000):
        number = step * 48_271 % count
        row = database.execute("SELECT * FROM orders WHERE id = ?", (number,)).fetchone()
        require(row, order(number), f"order {number}")


def check_index(database: sqlite3.Connection, count: int) -> None:
    """Find a customer's orders through the index."""
    first_of = pow(SPREAD, -1, CUSTOMERS)
    for customer in range(0, CUSTOMERS, 25):
        query = "SELECT id FROM orders WHERE customer = ? ORDER BY id"
        found = [number for (number,) in database.execute(query, (customer,))]
        expected = list(range(customer * first_of % CUSTOMERS, count, CUSTOMERS))
        require(found, expected, f"orders of customer {customer}")


def main() -> int:
    """Fill, ask, check."""
    parser = argparse.ArgumentParser(description="Query an in-memory database.")
    parser.add_argument("--orders", type=int, default=800_000)
    count = parser.parse_args().orders

    database = sqlite3.connect(":memory:")
    database.execute(SCHEMA)
    database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", map(order, range(count)))
    database.execute("CREATE INDEX by_customer ON orders (customer)")
    check_sums(database, count)
    check_lookups(database, count)
    check_index(database, count)
    (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    require(verdict, "ok", "integrity check")
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = database.execute("PRAGMA page_size").fetchone()
    print(f"{count:,} orders in memory ({pages * page_bytes >> 20} MiB): every answer is right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
