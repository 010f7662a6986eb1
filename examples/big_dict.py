#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Build a Python dict that does not fit into the memory it may use, and work with it.

    uffdswap run --resident 100M -- python examples/big_dict.py --entries 2000000

Word counts are the classic: keys are words, values say how often and where. Entries are looked up
at random, changed and deleted; the expected content follows from the entry's number.
"""

import argparse
import random
import sys

Entry = dict[str, int]


def word(number: int) -> str:
    """Return the word with this number."""
    return f"word-{number * 2_654_435_761 % (1 << 32):08x}"


def entry(number: int) -> Entry:
    """Return what is known about the word."""
    return {"count": number % 1000 + 1, "first": number * 17, "last": number * 17 + number % 31}


def build(count: int) -> dict[str, Entry]:
    """Make the dict."""
    return {word(number): entry(number) for number in range(count)}


def change(words: dict[str, Entry], count: int, seed: int) -> set[int]:
    """Count some words once more; return which."""
    changed = set(random.Random(seed).sample(range(count), count // 20))
    for number in changed:
        words[word(number)]["count"] += 1
    return changed


def delete(words: dict[str, Entry], count: int) -> None:
    """Delete every tenth word."""
    for number in range(0, count, 10):
        del words[word(number)]


def count_wrong(words: dict[str, Entry], count: int, changed: set[int]) -> int:
    """Look at every word, in the order of the numbers, and count those that are not right."""
    wrong = 0
    for number in range(count):
        expected = None if number % 10 == 0 else entry(number)
        if expected and number in changed:
            expected["count"] += 1
        wrong += words.get(word(number)) != expected
    return wrong


def main() -> int:
    """Build, change, delete, check."""
    parser = argparse.ArgumentParser(description="Work with a dict larger than the limit.")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    words = build(options.entries)
    changed = change(words, options.entries, options.seed)
    delete(words, options.entries)
    wrong = count_wrong(words, options.entries, changed)
    verdict = "all right" if not wrong else f"{wrong} WRONG"
    print(f"{len(words):,} words of {options.entries:,} left, {len(changed):,} changed: {verdict}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
