# SPDX-License-Identifier: MIT
# Goal: the document has every key of its schema, and the file is whole or as it was.
# Method: counters made up; the schema of docs/reference; real files, pipes and closed folders.
"""The final statistics and their file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from uffdswap._lib import Statistics as Counters
from uffdswap.errors import SetupFailed
from uffdswap.protocol import Statistics
from uffdswap.statistics import Ending, StatsFile, document, summary

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"

# The contract of the design: these keys are for ever.
CONTRACT: dict[str, Any] = {
    "schema": "uffdswap.stats/1",
    "command": [],
    "exit_status": 0,
    "signal": None,
    "wall_seconds": 1.0,
    "limits": {"memory_bytes": None, "resident_bytes": 0},
    "peak": {"resident_bytes": 0, "ram_bytes": 0, "disk_bytes": 0},
    "targets": 1,
    "faults": {
        **dict.fromkeys(("total", "hole", "standby", "zero", "same", "ram", "disk"), 0),
        "prefetched_pages": 0,
        "prefetch_proven_pages": 0,
        "latency_us": dict.fromkeys(("p50", "p90", "p99", "p999", "max"), 0),
    },
    "evictions": dict.fromkeys(
        ("pages", "unshared", "clean", "zero", "same", "equal", "compressed", "incompressible"), 0
    ),
    "tiers": {
        tier: dict.fromkeys(("pages", "original_bytes", "stored_bytes", "segments"), 0)
        for tier in ("ram", "disk")
    },
    "swap": dict.fromkeys(
        (
            "descriptors",
            "metadata_bytes",
            "demoted_segments",
            "promoted_segments",
            "compacted_segments",
            "packed_pages",
        ),
        0,
    ),
    "cpu_seconds": {"agent_user": 0, "agent_system": 0},
    "integrity": {"verified_pages": 0, "poisoned_pages": 0},
}


def report(**changes: Any) -> dict[str, Any]:
    """Return a document in which every counter has a value of its own."""
    counters = {name: 1000 + i for i, name in enumerate(Counters.field_names())}
    ending = Ending(
        command=("sort", "x"),
        exit_status=0,
        signal=None,
        wall_seconds=1.5,
        memory_limit_bytes=1 << 30,
        resident_limit_bytes=None,
    )
    statistics = Statistics(
        counters=counters,
        handshakes_refused=3,
        user_seconds=0.5,
        system_seconds=0.25,
        remaining=0,
    )
    return document(ending.replaced(**changes), statistics)


def keys_start_with(found: Any, expected: Any, place: str = "") -> None:
    """Demand the keys of the contract in their order; more may follow."""
    if isinstance(expected, dict):
        names = list(expected)
        assert list(found)[: len(names)] == names, place
        for name in names:
            keys_start_with(found[name], expected[name], f"{place}.{name}")


def test_keys_are_those_of_the_contract_and_new_ones_come_last() -> None:
    keys_start_with(report(), CONTRACT)


def test_document_is_valid_by_its_schema() -> None:
    schema = json.loads((REFERENCE / "stats.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for found in (
        report(),
        report(exit_status=None, signal=9),
        report(exit_status=125, signal=9),
        report(memory_limit_bytes=None),
    ):
        jsonschema.validate(json.loads(json.dumps(found)), schema)


def test_schema_demands_every_key_of_the_contract() -> None:
    schema = json.loads((REFERENCE / "stats.schema.json").read_text())
    full = report()
    for name, value in CONTRACT.items():
        without = {key: found for key, found in full.items() if key != name}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(without, schema)
        for inner in value if isinstance(value, dict) else ():
            part = {key: found for key, found in full[name].items() if key != inner}
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({**full, name: part}, schema)


def test_no_counter_is_used_twice() -> None:
    values: list[int] = []

    def collect(found: Any) -> None:
        for value in found.values():
            if isinstance(value, dict):
                collect(value)
            elif isinstance(value, int) and value >= 1000:
                values.append(value)

    collect({name: found for name, found in report().items() if name != "limits"})
    assert len(values) == len(set(values))


def test_latency_is_in_microseconds() -> None:
    p50_ns = 1000 + Counters.field_names().index("latency_p50_ns")
    assert report()["faults"]["latency_us"]["p50"] == p50_ns / 1000


def test_every_key_is_in_the_reference() -> None:
    text = (REFERENCE / "statistics.md").read_text()

    def names(found: dict[str, Any], prefix: str = "") -> list[str]:
        return [
            name
            for key, value in found.items()
            for name in (
                names(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
            )
        ]

    missing = [name for name in names(report()) if f"| `{name}` |" not in text]
    assert not missing


def test_summary_is_one_short_line() -> None:
    line = summary(report())
    assert "\n" not in line
    assert len(line) < 120


# --- The file ------------------------------------------------------------------------------------


def test_file_appears_whole_and_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    file = StatsFile(str(path))
    assert not path.exists()
    file.write(report())
    assert json.loads(path.read_text()) == json.loads(json.dumps(report()))
    assert list(tmp_path.iterdir()) == [path]


def test_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    path.write_text("old")
    path.chmod(0o640)
    file = StatsFile(str(path))
    assert path.read_text() == "old"
    file.close()
    file.close()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    file = StatsFile(str(path))
    file.write({})
    assert path.read_text() == "{}\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_link_is_followed_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("folder/stats.json")
    StatsFile(str(link)).write({})
    assert link.is_symlink()
    assert (tmp_path / "folder/stats.json").read_text() == "{}\n"


def test_pipe_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    StatsFile(str(path)).write({"a": 1})
    assert json.loads(os.read(reader, 4096)) == {"a": 1}
    os.close(reader)


def test_pipe_without_a_name_is_written_to() -> None:
    reader, writer = os.pipe()
    StatsFile(f"/dev/fd/{writer}").write({"a": 1})
    assert json.loads(os.read(reader, 4096)) == {"a": 1}
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("name", ["stats.json", "/dev/stdout"])
def test_what_the_program_wrote_to_the_same_file_stays(tmp_path: Path, name: str) -> None:
    code = (
        "import os, sys; from uffdswap.statistics import StatsFile; file = StatsFile(sys.argv[1]);"
        "os.write(1, b'the program\\n'); file.write({})"
    )
    path = tmp_path / "stats.json"
    with path.open("w") as output:
        command = [sys.executable, "-c", code, name]
        subprocess.run(command, stdout=output, cwd=tmp_path, check=True, timeout=60)
    assert path.read_text() == "the program\n{}\n"


@pytest.mark.parametrize("name", ["missing/stats.json", ".", "file/stats.json", "x" * 300])
def test_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupFailed, match="cannot write the statistics"):
        StatsFile(str(tmp_path / name))
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_pipe_without_a_reader_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SetupFailed, match="cannot write the statistics"):
        StatsFile(str(tmp_path / "pipe"))


def test_full_disk_leaves_the_old_file() -> None:
    file = StatsFile("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        file.write(report())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_new_file_in_a_closed_folder_is_a_matter_of_permission() -> None:
    path = "/etc/uffdswap-test-there-is-no-such-file"
    os.seteuid(65534)
    try:
        with pytest.raises(SetupFailed, match=f"to {path}: Permission denied; give --stats"):
            StatsFile(path)
    finally:
        os.seteuid(0)
