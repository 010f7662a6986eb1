# SPDX-License-Identifier: MIT
"""Measure the codec on files of raw 4 KiB pages, beside zram with lz4 where that can be had.

    python tools/measure_codec.py FILE...

Needs a C compiler, and root and the zram module for the comparison, which uses a device of its own
and removes it again. Prints the tables of docs/internals/codec.md.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NATIVE = REPOSITORY / "native"
SOURCES = [NATIVE / "src" / name for name in ("base.c", "codec.c", "filter.c")]
CODECS = ("stored", "none", "shuffle8", "shuffle4", "lanes16", "xor+shuffle8")


@contextmanager
def zram_device() -> Iterator[str | None]:
    """Add a zram device and remove it in the end; None where that is not possible."""
    control = Path("/sys/class/zram-control")
    try:
        number = (control / "hot_add").read_text().strip()
    except OSError:
        yield None
        return
    try:
        yield f"zram{number}"
    finally:
        (control / "hot_remove").write_text(number)


def zram_stored_bytes(path: Path) -> int | None:
    """Write the pages to zram with lz4 and return what its allocator holds for them."""
    pages = path.read_bytes()
    with zram_device() as name:
        if name is None:
            return None
        sysfs = Path("/sys/block") / name
        (sysfs / "comp_algorithm").write_text("lz4")
        (sysfs / "disksize").write_text(str(len(pages)))
        try:
            subprocess.run(
                ["dd", f"of=/dev/{name}", "bs=1M", "oflag=direct", "status=none"],
                input=pages,
                check=True,
                timeout=60,
            )
            return int((sysfs / "mm_stat").read_text().split()[2])
        finally:
            (sysfs / "reset").write_text("1")


def run_native(paths: list[Path]) -> list[list[str]]:
    """Build measure_codec.c as the agent is built and return the words of its lines."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "measure"
        includes = [f"-I{NATIVE / name}" for name in ("src", "shim", "include")]
        source = REPOSITORY / "tools" / "measure_codec.c"
        files = [str(path) for path in (source, *SOURCES)]
        flags = ["-std=gnu11", "-O2", "-D_GNU_SOURCE="]
        link = ["-o", str(program), "-llz4", "-lxxhash"]
        subprocess.run(["cc", *flags, *includes, *files, *link], check=True, timeout=120)
        done = subprocess.run(
            [str(program), *map(str, paths)],
            check=True,
            timeout=300,
            capture_output=True,
            text=True,
        )
    return [line.split() for line in done.stdout.splitlines()]


def main() -> int:
    """Print both tables."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    lines = run_native(paths)
    totals = [0, 0]
    print("| pages of | stored | of plain LZ4 | of zram-lz4 | compress ns, plain -> ours |")
    print("|---|---|---|---|---|")
    for path, words in zip(paths, lines, strict=True):
        pages, ours, plain, ours_ns, plain_ns = map(int, words[1:6])
        zram = zram_stored_bytes(path)
        totals[0] += ours
        totals[1] += zram or 0
        ratio = f"{ours / zram:.3f}" if zram else "-"
        print(
            f"| {path.stem} | {ours / pages / 4096:.3f} | {ours / plain:.3f} | {ratio} |"
            f" {plain_ns} -> {ours_ns} |"
        )
    if totals[1]:
        print(f"| together | | | {totals[0] / totals[1]:.3f} | |")
    print("\nPages (median ns to decompress, undo and hash):\n")
    print("| pages of | " + " | ".join(CODECS) + " |")
    print("|---|" + "---|" * len(CODECS))
    for path, words in zip(paths, lines, strict=True):
        cells = [word.split(":") for word in words[6:]]
        print(f"| {path.stem} | " + " | ".join(f"{n} ({ns})" for n, ns in cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
