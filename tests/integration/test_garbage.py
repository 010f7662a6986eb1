# SPDX-License-Identifier: MIT
# Goal: what is rewritten leaves garbage behind, and that stays a small part of what is stored.
# Method: a program that rewrites incompressible pages as fast as it can, in order and at random.
"""Garbage in segments."""

from __future__ import annotations

import pytest

from uffdswap.bench.counters import workload_path

from .fixtures import RunFunction
from .harness import MIB

SIZE_BYTES = 256 * MIB
GARBAGE_SHARE_MAX = 0.25
# The agent itself, standby, metadata, and segments that are empty and kept for the next.
BESIDE_BYTES = 20 * MIB


@pytest.mark.parametrize("pattern", ["seq-write", "uniform-rw"])
def test_garbage_stays_below_a_quarter(pattern: str, uffdswap_run: RunFunction) -> None:
    words = f"--pattern {pattern} --size {SIZE_BYTES} --content random --seconds 3"
    outcome = uffdswap_run([workload_path(), *words.split()], resident="48M")
    outcome.require_ok(paged=True)
    most_bytes = SIZE_BYTES / (1 - GARBAGE_SHARE_MAX) + BESIDE_BYTES
    assert outcome.stats["swap"]["compacted_segments"] > 0, outcome.describe()
    assert outcome.stats["peak"]["ram_bytes"] < most_bytes, outcome.describe()
