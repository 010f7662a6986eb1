# SPDX-License-Identifier: MIT
# Goal: equal pages are stored once, and nobody sees what another process writes to its copy.
# Method: programs of few incompressible contents, which check every byte, and what was stored.
"""Equal pages."""

from __future__ import annotations

from .fixtures import RunFunction
from .harness import Programs

CONTENTS = 50
# A content may be forgotten while it is new, has 1,024 shares at most, and is stored again when
# a page comes out that was alone with it for a moment.
COPIES_MAX = 10


def test_few_contents_are_stored_a_few_times(programs: Programs, uffdswap_run: RunFunction) -> None:
    outcome = uffdswap_run([programs("equal_pages"), "300M", str(CONTENTS), "0"], resident="64M")
    outcome.require_ok(paged=True)
    evictions = outcome.stats["evictions"]
    assert evictions["equal"] > 10_000, outcome.describe()
    assert evictions["incompressible"] <= CONTENTS * COPIES_MAX, outcome.describe()


def test_who_writes_to_a_shared_page_has_it_alone(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    outcome = uffdswap_run([programs("equal_pages"), "64M", str(CONTENTS), "2"], resident="24M")
    outcome.require_ok(paged=True)
    assert "ok" in outcome.stdout
    assert outcome.stats["evictions"]["equal"] > 0, outcome.describe()


def test_equal_pages_survive_stress_and_a_small_budget(
    programs: Programs, uffdswap_run: RunFunction
) -> None:
    """Compaction, tiers and kept copies meet content that is shared."""
    outcome = uffdswap_run(
        [programs("equal_pages"), "96M", "5000", "1"], memory="48M", stress=20_000
    )
    outcome.require_ok(paged=True)
    assert "ok" in outcome.stdout
    assert outcome.stats["evictions"]["equal"] > 0, outcome.describe()
