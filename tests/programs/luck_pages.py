# SPDX-License-Identifier: MIT
"""Hold MIB of pages that do not compress, and know what is in each.

Usage: luck_pages.py MIB. Prints "ready PID"; then each line of input is a command: "churn N SEED"
checks N random pages, rewrites a third of them and says "churned"; "check" checks all of them
and says "right". Of a page that is not what it should be it says "WRONG page ..." and ends.
"""

import mmap
import os
import random
import sys

PAGE = 4096


class Pages:
    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._versions = [0] * count
        for number in range(count):
            self._write(number)

    def _content(self, number: int) -> bytes:
        return random.Random(number << 20 | self._versions[number]).randbytes(PAGE)

    def _write(self, number: int) -> None:
        self._memory[number * PAGE : (number + 1) * PAGE] = self._content(number)

    def _check(self, number: int) -> None:
        if self._memory[number * PAGE : (number + 1) * PAGE] != self._content(number):
            print(f"WRONG page {number}, version {self._versions[number]}", flush=True)
            sys.exit(1)

    def churn(self, times: int, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(times):
            number = chance.randrange(len(self._versions))
            self._check(number)
            if chance.random() < 1 / 3:
                self._versions[number] += 1
                self._write(number)

    def check(self) -> None:
        for number in range(len(self._versions)):
            self._check(number)


def main() -> None:
    pages = Pages(int(sys.argv[1]) * 256)
    print("ready", os.getpid(), flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        if command == "churn":
            pages.churn(*map(int, numbers))
            print("churned", flush=True)
        elif command == "check":
            pages.check()
            print("right", flush=True)


if __name__ == "__main__":
    main()
