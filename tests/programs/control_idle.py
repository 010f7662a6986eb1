# SPDX-License-Identifier: MIT
"""Hold MIB of data that compresses by half, and check it when asked.

Usage: control_idle.py MIB. Prints "ready PID"; then "check" answers "right" or "WRONG", "touch"
reads one byte in every page of the first MiB and answers "touched", "fork" makes a child that
says "child PID" and checks when it gets SIGUSR1, and "wait" says "child right" or "WRONG" of it.
"""

import mmap
import os
import random
import signal
import sys

PAGE = 4096
NOISE_BYTES = 1 << 20
NOISE = random.Random(0).randbytes(NOISE_BYTES + PAGE // 2)


def content(number: int) -> bytes:
    """Return what a page holds; no other page holds the same."""
    start = number * 2039 % NOISE_BYTES
    return NOISE[start : start + PAGE // 2] * 2


def fill(memory: mmap.mmap, pages: int) -> None:
    for number in range(pages):
        memory[number * PAGE : (number + 1) * PAGE] = content(number)


def is_right(memory: mmap.mmap, pages: int) -> bool:
    return all(
        memory[number * PAGE : (number + 1) * PAGE] == content(number) for number in range(pages)
    )


def main() -> None:
    pages = int(sys.argv[1]) * 256
    memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fill(memory, pages)
    print("ready", os.getpid(), flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "touch":
            sum(memory[i] for i in range(0, min(pages, 256) * PAGE, PAGE))
            print("touched", flush=True)
        elif command == "check":
            print("right" if is_right(memory, pages) else "WRONG", flush=True)
        elif command == "fork":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            child = os.fork()
            if child == 0:
                print("child", os.getpid(), flush=True)
                signal.sigwait({signal.SIGUSR1})
                os._exit(0 if is_right(memory, pages) else 1)
        elif command == "wait":
            print("WRONG" if os.wait()[1] else "child right", flush=True)


if __name__ == "__main__":
    main()
