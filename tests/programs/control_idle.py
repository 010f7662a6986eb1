# SPDX-License-Identifier: MIT
"""Hold MIB of data that compresses by half, and check it when asked.

Usage: control_idle.py MIB. Prints "ready PID"; then "check" answers "right" or "WRONG", "touch"
reads one byte in every page of the first MiB and answers "touched", "fork" makes a child that
says "child PID" and checks when it gets SIGUSR1, and "wait" says "child right" or "WRONG" of it.
"guard" makes every sixteenth page a guard and answers "guarded", or "no guards" where the kernel
has none; "overflow" answers "stopped" while no access to one of them succeeds, or "WRONG".
"""

import mmap
import os
import random
import signal
import sys

PAGE = 4096
NOISE_BYTES = 1 << 20
MADV_GUARD_INSTALL = 102
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


def guards(pages: int) -> range:
    return range(8 * PAGE, pages * PAGE, 16 * PAGE)


def guard(memory: mmap.mmap, pages: int) -> str:
    try:
        for start in guards(pages):
            memory.madvise(MADV_GUARD_INSTALL, start, PAGE)
    except OSError:
        return "no guards"
    return "guarded"


def is_guarded(memory: mmap.mmap, pages: int) -> bool:
    """Have the kernel read the guards, since we would not survive it."""
    reader, writer = os.pipe()
    view = memoryview(memory)
    for start in guards(pages):
        try:
            os.write(writer, view[start : start + 1])
        except OSError:
            continue
        return False
    os.close(reader)
    os.close(writer)
    return True


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
        elif command == "guard":
            print(guard(memory, pages), flush=True)
        elif command == "overflow":
            print("stopped" if is_guarded(memory, pages) else "WRONG", flush=True)


if __name__ == "__main__":
    main()
