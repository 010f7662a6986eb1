# SPDX-License-Identifier: MIT
"""Count words in a large dict, look them up in no order, change them: `dict_words.py BYTES`.

Everything about an entry follows from its number, so each look-up is checked, and all entries are
at the end.
"""

from __future__ import annotations

import random
import sys

BYTES_AN_ENTRY = 260  # key, list, two numbers, and the entry's share of the table
STEPS_AN_ENTRY = 0.03


def word(number: int) -> str:
    """Return the word with this number."""
    return f"word-{number * 2_654_435_761 % (1 << 32):08x}"


def main() -> int:
    """Build, use, check."""
    count = int(sys.argv[1]) // BYTES_AN_ENTRY
    words = {word(number): [number * 3 + 1000, number * 17 + 1000] for number in range(count)}
    changes = bytearray(count)
    draw = random.Random(1).randrange
    wrong = 0
    for step in range(int(count * STEPS_AN_ENTRY)):
        number = draw(count)
        entry = words[word(number)]
        wrong += entry[0] != number * 3 + 1000 + changes[number]
        if step % 4 == 0 and changes[number] < 255:
            entry[0] += 1
            changes[number] += 1
    for number in range(count):
        expected = [number * 3 + 1000 + changes[number], number * 17 + 1000]
        wrong += words[word(number)] != expected
    if not wrong and len(words) == count:
        return 0
    print(f"dict: {wrong} entries are WRONG", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
