# SPDX-License-Identifier: MIT
"""Keep several programs running that check themselves, until told to stop.

Usage: soak_crowd.py COUNT SEED COMMAND..., each COMMAND one argument, split like a shell does;
{seed} in it becomes a number. Prints "ready PID"; programs that end, or are killed by SIGKILL, are
followed by others. When its input ends it waits for those that run and says "right"; if any has
ended otherwise it says "WRONG", which and how, and ends at once.
"""

import os
import random
import select
import shlex
import subprocess
import sys
import time

KILLED = -9


class Crowd:
    def __init__(self, count: int, seed: int, commands: list[str]) -> None:
        self._chance = random.Random(seed)
        self._commands = commands
        self._running: list[subprocess.Popen[bytes]] = []
        self._wanted = count

    def refill(self) -> None:
        while len(self._running) < self._wanted:
            command = self._chance.choice(self._commands)
            words = shlex.split(command.format(seed=self._chance.randrange(1 << 30)))
            self._running.append(
                subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            )

    def collect(self) -> None:
        for program in list(self._running):
            status = program.poll()
            if status is None:
                continue
            self._running.remove(program)
            if status not in (0, KILLED):
                print("WRONG", program.args, "ended with", status, flush=True)
                for other in self._running:
                    other.kill()
                sys.exit(1)

    def is_empty(self) -> bool:
        return not self._running


def main() -> None:
    crowd = Crowd(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    print("ready", os.getpid(), flush=True)
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        crowd.refill()
        crowd.collect()
    while not crowd.is_empty():
        crowd.collect()
        time.sleep(0.05)
    print("right", flush=True)


if __name__ == "__main__":
    main()
