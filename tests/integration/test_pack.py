# SPDX-License-Identifier: MIT
# Goal: cold pages are compressed denser while RAM is tight, and every one of them comes back right.
# Method: a program that checks the tags of all that it touches, in a budget that it never fits.
"""Packing."""

from __future__ import annotations

from pathlib import Path

from uffdswap.bench.counters import workload_path

from .fixtures import RunFunction

SECONDS = "2"


def work(pattern: str, size: str) -> list[str]:
    words = f"--pattern {pattern} --size {size} --content text --seconds {SECONDS}"
    return [workload_path(), *words.split()]


def test_cold_pages_are_packed_in_a_tight_budget(uffdswap_run: RunFunction) -> None:
    outcome = uffdswap_run(work("uniform-rw", "160M"), memory="130M")
    outcome.require_ok(paged=True)
    assert outcome.stats["swap"]["packed_pages"] > 0, outcome.describe()
    assert outcome.stats["evictions"]["packed"] > 0, outcome.describe()


def test_what_is_packed_goes_to_a_disk_and_back(uffdswap_run: RunFunction, tmp_path: Path) -> None:
    outcome = uffdswap_run(
        work("uniform-rw", "256M"), memory="64M", options=("--disk", str(tmp_path))
    )
    outcome.require_ok(paged=True)
    assert outcome.stats["swap"]["packed_pages"] > 0, outcome.describe()
    assert outcome.stats["faults"]["disk"] > 0, outcome.describe()


def test_what_holds_only_packed_is_not_out_of_memory(uffdswap_run: RunFunction) -> None:
    """As LZ4 leaves it, this takes 30 MiB more than the budget."""
    outcome = uffdswap_run(work("zipf-read", "192M"), memory="112M", options=("--no-disk",))
    outcome.require_ok(paged=True)
    assert outcome.stats["peak"]["ram_bytes"] < (112 + 32) << 20, outcome.describe()


def test_what_is_packed_and_only_read_is_not_packed_again(uffdswap_run: RunFunction) -> None:
    outcome = uffdswap_run(work("uniform-read", "192M"), memory="112M", options=("--no-disk",))
    outcome.require_ok(paged=True)
    assert outcome.stats["evictions"]["clean"] > 1000, outcome.describe()


def test_nothing_is_packed_where_only_residency_is_bounded(uffdswap_run: RunFunction) -> None:
    outcome = uffdswap_run(work("uniform-rw", "96M"), resident="48M")
    outcome.require_ok(paged=True)
    assert outcome.stats["swap"]["packed_pages"] == 0
    assert outcome.stats["evictions"]["packed"] == 0
