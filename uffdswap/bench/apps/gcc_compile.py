# SPDX-License-Identifier: MIT
"""Compile one large C file, as generated code often is: `gcc_compile.py BYTES`.

The program that comes out is run: it adds up what its functions return, which is worked out here as
well.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

BYTES_BEFORE = 40 << 20  # what the compiler needs for nothing
BYTES_A_FUNCTION = 100_000
ENTRIES = 256
MASK = (1 << 32) - 1

FUNCTION = """
uint32_t f{number}(uint32_t x)
{{
	static const struct entry table[] = {{ {entries} }};
	for (int i = 0; i < {count}; i++)
		x = (x ^ table[i].key) * {factor}u + table[i].value;
	switch (x & 3) {{
	case 0: return x ^ {number}u;
	case 1: return x + {factor}u;
	case 2: return x * 3u;
	default: return ~x;
	}}
}}
"""
HEAD = "#include <stdint.h>\n#include <stdio.h>\nstruct entry { uint32_t key, value; };\n"


def factor_of(number: int) -> int:
    """Return the odd number a function multiplies by."""
    return (number * 2_654_435_761 & MASK) | 1


def entries_of(number: int) -> list[tuple[int, int]]:
    """Return a function's table."""
    return [(number * 31 + i & MASK, number * 17 + i * 5 & MASK) for i in range(ENTRIES)]


def function(number: int) -> str:
    """Return a function's text."""
    entries = ", ".join(f"{{{key}u, {value}u}}" for key, value in entries_of(number))
    return FUNCTION.format(number=number, entries=entries, count=ENTRIES, factor=factor_of(number))


def result(number: int, x: int) -> int:
    """Return what the function returns."""
    factor = factor_of(number)
    for key, value in entries_of(number):
        x = ((x ^ key) * factor + value) & MASK
    return (x ^ number, x + factor, x * 3, ~x)[x & 3] & MASK


def write(path: Path, count: int) -> int:
    """Write the file; return what the program will print."""
    total = 0
    with path.open("w") as file:
        file.write(HEAD)
        for number in range(count):
            file.write(function(number))
            total = (total + result(number, total)) & MASK
        file.write("int main(void)\n{\n\tuint32_t total = 0;\n")
        file.writelines(f"\ttotal += f{number}(total);\n" for number in range(count))
        file.write('\tprintf("%u\\n", total);\n\treturn 0;\n}\n')
    return total


def main() -> int:
    """Write, compile, run, compare."""
    count = max(1, (int(sys.argv[1]) - BYTES_BEFORE) // BYTES_A_FUNCTION)
    with tempfile.TemporaryDirectory(prefix="uffdswap-bench-gcc-") as folder:
        source, program = Path(folder) / "large.c", Path(folder) / "large"
        total = write(source, count)
        subprocess.run(["gcc", "-O1", "-w", "-o", str(program), str(source)], check=True)
        done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    if done.stdout == f"{total}\n":
        return 0
    print(f"gcc: the program says {done.stdout.strip()}, WRONG: not {total}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
