# SPDX-License-Identifier: MIT
# Goal: every setting arrives with its meaning, from the place that wins; every wrong one is named.
# Method: options and environment as dicts, no process and no /proc.
"""Configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from uffdswap.config import RunConfig, resolve
from uffdswap.errors import UsageError

WHOLE_BYTES = 1 << 30


def config(environment: Mapping[str, str] | None = None, /, **options: str) -> RunConfig:
    return resolve(options, environment or {}, lambda: WHOLE_BYTES)


def test_defaults_are_no_limit_and_the_first_policy() -> None:
    found = config(memory="max")
    assert (found.memory_bytes, found.resident_bytes) == (None, None)
    assert found.policy == "clock"
    assert (found.stats_path, found.on_full) == (None, None)
    assert (found.stress_pages_per_second, found.verbosity) == (0, 0)


def test_options_have_their_meaning() -> None:
    found = config(memory="1G", resident="50%", policy="clock", stats="x.json", stress="20000")
    assert (found.memory_bytes, found.resident_bytes) == (1 << 30, 1 << 29)
    assert (found.policy, found.stats_path) == ("clock", "x.json")
    assert found.stress_pages_per_second == 20000


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({"memory": "1G"}, [("/var/tmp", None)]),
        ({"resident": "1G"}, []),
        ({"memory": "max"}, []),
        ({"memory": "1G", "no_disk": "1"}, []),
        ({"memory": "1G", "disk": "/srv/swap"}, [("/srv/swap", None)]),
        ({"memory": "1G", "disk": "/srv/swap:4G"}, [("/srv/swap", 4 << 30)]),
        ({"memory": "1G", "disk": "/srv/swap:max"}, [("/srv/swap:max", None)]),
        ({"memory": "1G", "disk": "/srv:1/swap"}, [("/srv:1/swap", None)]),
        ({"memory": "1G", "disk": "swap:2M"}, [(str(Path.cwd() / "swap"), 2 << 20)]),
        (
            {"memory": "1G", "disk": "/b:1G\n/a\n/c:2G"},
            [("/b", 1 << 30), ("/a", None), ("/c", 2 << 30)],
        ),
    ],
)
def test_disk_is_a_place_and_a_cap(
    options: dict[str, str], places: list[tuple[str, int | None]]
) -> None:
    found = config({}, **options)
    assert [(disk.path, disk.cap_bytes) for disk in found.disks] == places


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"disk": "/srv:1M"}, "not a place and a size"),
        ({"disk": ":1G"}, "not a place and a size"),
        ({"disk": ""}, "not a place and a size"),
        ({"disk": "/srv\n/srv:1M"}, '--disk: "/srv:1M" is not'),
        ({"disk": "/srv:12Q"}, "--disk: "),
        ({"disk": "/srv", "no_disk": "1"}, "exclude each other"),
    ],
)
def test_disks_that_make_no_sense(options: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        config({}, memory="1G", **options)


@pytest.mark.parametrize("size", ["-5", "abc", "G", "", " "])
def test_what_follows_the_colon_of_a_place_that_is_there_is_its_cap(
    size: str, tmp_path: Path
) -> None:
    for place in (tmp_path, f"{tmp_path}/"):
        with pytest.raises(UsageError, match=f'--disk: "{size}" after {place}: is not a size'):
            config({}, memory="1G", disk=f"{place}:{size}")


def test_slash_at_the_end_means_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for disk in (f"{tmp_path}/none/", f"{tmp_path}/none/:4G", f"{tmp_path}/file/"):
        with pytest.raises(UsageError, match=r"no folder .*/; make it, or leave out the"):
            config({}, memory="1G", disk=disk)
    assert config({}, memory="1G", disk=f"{tmp_path}/").disks[0].path == str(tmp_path)


def test_name_of_a_file_may_have_a_colon(tmp_path: Path) -> None:
    new = f"{tmp_path}/x:y"
    assert config({}, memory="1G", disk=new).disks[0].path == new
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match="x is there"):
        config({}, memory="1G", disk=new)
    (tmp_path / "x:y").touch()
    assert config({}, memory="1G", disk=new).disks[0].path == new
    (disk,) = config({}, memory="1G", disk=f"{tmp_path}:max").disks
    assert (disk.path, disk.cap_bytes) == (str(tmp_path), None)


def test_variable_that_excludes_an_option_is_named() -> None:
    with pytest.raises(UsageError, match="--disk and UFFDSWAP_NO_DISK exclude each other"):
        config({"UFFDSWAP_NO_DISK": "1"}, memory="1G", disk="/srv")


@pytest.mark.parametrize(
    ("options", "verbosity"),
    [({}, 0), ({"verbose": "2"}, 2), ({"quiet": "1"}, -1), ({"quiet": "1", "verbose": "1"}, 0)],
)
def test_verbosity_is_more_minus_less(options: dict[str, str], verbosity: int) -> None:
    assert config({}, memory="1G", **options).verbosity == verbosity


@pytest.mark.parametrize(("text", "verbosity"), [("1", 1), ("yes", 1), ("0", 0), ("off", 0)])
def test_switches_work_in_the_environment(text: str, verbosity: int) -> None:
    assert config({"UFFDSWAP_VERBOSE": text}, memory="1G").verbosity == verbosity


def test_every_option_has_its_variable() -> None:
    environment = {
        "UFFDSWAP_MEMORY": "1G",
        "UFFDSWAP_RESIDENT": "512M",
        "UFFDSWAP_DISK": "/srv:4G",
        "UFFDSWAP_NO_DISK": "0",
        "UFFDSWAP_NO_DISK_ENCRYPTION": "1",
        "UFFDSWAP_ON_FULL": "kill",
        "UFFDSWAP_POLICY": "clock",
        "UFFDSWAP_STATS": "s.json",
        "UFFDSWAP_STRESS": "7",
        "UFFDSWAP_QUIET": "1",
        "UFFDSWAP_VERBOSE": "3",
    }
    found = config(environment)
    assert found == config(
        memory="1G",
        resident="512M",
        disk="/srv:4G",
        no_disk="0",
        no_disk_encryption="1",
        on_full="kill",
        policy="clock",
        stats="s.json",
        stress="7",
        quiet="1",
        verbose="3",
    ).replaced(sources=found.sources)
    assert set(found.sources.values()) == set(environment)


def test_option_wins_over_variable_and_says_so() -> None:
    found = config({"UFFDSWAP_MEMORY": "1G", "UFFDSWAP_RESIDENT": "2G"}, memory="3G")
    assert (found.memory_bytes, found.resident_bytes) == (3 << 30, 2 << 30)
    assert found.sources == {"memory": "--memory", "resident": "UFFDSWAP_RESIDENT"}


def test_empty_variable_is_not_given() -> None:
    assert config({"UFFDSWAP_RESIDENT": ""}, memory="1G").resident_bytes is None


@pytest.mark.parametrize("options", [{}, {"policy": "clock"}, {"verbose": "1", "stats": "x"}])
def test_no_limit_at_all_may_have_been_forgotten(options: dict[str, str]) -> None:
    assert config({}, **options).has_forgotten_limit


@pytest.mark.parametrize("options", [{"memory": "max"}, {"resident": "1G"}, {"stress": "10"}])
def test_limit_that_was_thought_of_is_not_forgotten(options: dict[str, str]) -> None:
    assert not config({}, **options).has_forgotten_limit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "0"}, "--memory: .* too small"),
        ({"memory": "4095"}, "--memory: .* too small"),
        ({"resident": "1"}, "--resident: .* too small"),
        ({"resident": "0%"}, "--resident: .* too small"),
        ({"memory": "1X"}, '--memory: "1X" is not a size'),
        ({"memory": ""}, "--memory: .* not a size"),
        ({"memory": "1G", "policy": "lru"}, '--policy: .*"lru".*clock'),
        ({"memory": "1G", "on_full": "stop"}, '--on-full: "stop" .*give wait or kill'),
        ({"stress": "0"}, "--stress: .* not a rate"),
        ({"stress": "-5"}, "--stress: .* not a rate"),
        ({"stress": "1.5"}, "--stress: .* not a rate"),
        ({"stress": "1K"}, "--stress: .* not a rate"),
        ({"stress": "\u0665"}, "--stress: .* not a rate"),
        ({"stress": "4294967296"}, "--stress: .* not a rate"),
    ],
)
def test_wrong_value_is_named_with_its_place(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config({}, **options)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"UFFDSWAP_MEMORY": "12x"}, "^UFFDSWAP_MEMORY: "),
        ({"UFFDSWAP_MEMORY": "1G", "UFFDSWAP_QUIET": "maybe"}, "^UFFDSWAP_QUIET: "),
        ({"UFFDSWAP_STRESS": "many"}, "^UFFDSWAP_STRESS: "),
    ],
)
def test_wrong_variable_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(environment)


def test_error_text_is_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        config(memory="12x")
    assert "\n" not in str(caught.value)
