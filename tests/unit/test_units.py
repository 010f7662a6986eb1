# SPDX-License-Identifier: MIT
# Goal: a size means what was written, or is an error; nothing is guessed and nothing rounded.
# Method: tables of both kinds; properties over all sizes in both directions.
"""Sizes and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdswap.errors import UsageError
from uffdswap.units import SIZE_MAX_BYTES, format_duration, format_size, parse_size

PREFIXES = "KMGTPE"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1", 1),
        ("4096", 4096),
        ("512B", 512),
        ("512K", 512 << 10),
        ("512k", 512 << 10),
        ("512KiB", 512 << 10),
        ("512kib", 512 << 10),
        ("500MB", 500_000_000),
        ("500mb", 500_000_000),
        ("1.5G", 3 << 29),
        ("1.5 GiB", 3 << 29),
        ("  2T  ", 2 << 40),
        ("0.001K", 1),
        ("1.0000000000000000000000001K", 1024),
        ("7.99E", 799 * 2**60 // 100),
        ("9223372036854775807", SIZE_MAX_BYTES),
    ],
)
def test_size_is_what_was_written(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["max", "MAX", " max "])
def test_max_is_no_limit(text: str) -> None:
    assert parse_size(text) is None


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("50%", 500), ("100%", 1000), ("0.1%", 1), ("33.33%", 333), ("0%", 0), ("50 %", 500)],
)
def test_percentage_is_of_the_whole(text: str, size_bytes: int) -> None:
    assert parse_size(text, lambda: 1000) == size_bytes


@pytest.mark.parametrize("text", ["1", "1G", "max"])
def test_whole_is_not_asked_for_without_a_percentage(text: str) -> None:
    def never() -> int:
        raise AssertionError("asked")

    parse_size(text, never)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "G", "x", "12x", "1GG", "1G1", "1 2", "12 34K", "1KK", "1iB", "1BB", "1Ki"),
        *("-1", "+1", "1e9", "0x10", "1_000", "1,5G", "1..5G", "1.", "1.G", ".5G", ".", "1.5.2G"),
        *(
            "1.5",
            "1.5B",
            "max1",
            "maximum",
            "%",
            "%50",
            "50%%",
            "50%G",
            "\u0661G",
            "\uff11G",
            "1\u00b2",
        ),
        *("nan", "inf", "1G\x00", "1\nG2", "9223372036854775808", "8E", "1" * 400),
    ],
)
def test_junk_is_an_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text, lambda: 1000)


@pytest.mark.parametrize("text", ["101%", "100.01%", "1000000%"])
def test_more_than_all_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="100%"):
        parse_size(text, lambda: 1000)


def test_percentage_of_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="no meaning"):
        parse_size("50%")


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        size_bytes = parse_size(text, lambda: 1 << 40)
    except UsageError:
        return
    assert size_bytes is None or 0 <= size_bytes <= SIZE_MAX_BYTES


@given(st.integers(0, SIZE_MAX_BYTES))
def test_plain_number_comes_back(size_bytes: int) -> None:
    assert parse_size(str(size_bytes)) == size_bytes


@given(st.integers(0, 2**20), st.sampled_from(PREFIXES))
def test_units_scale(number: int, prefix: str) -> None:
    power = PREFIXES.index(prefix) + 1
    for unit, base in ((prefix, 1024), (f"{prefix}iB", 1024), (f"{prefix}B", 1000)):
        expected = number * base**power
        if expected <= SIZE_MAX_BYTES:
            assert parse_size(f"{number}{unit}") == expected


@given(st.integers(0, SIZE_MAX_BYTES // 2))
def test_written_size_is_read_back_within_its_digits(size_bytes: int) -> None:
    again = parse_size(format_size(size_bytes))
    assert again is not None
    assert abs(again - size_bytes) <= size_bytes * 0.005 + 1


@given(st.integers(0, SIZE_MAX_BYTES))
def test_written_size_is_short(size_bytes: int) -> None:
    number, unit = format_size(size_bytes).split(" ")
    assert len(number.replace(".", "")) <= 3
    assert unit in {"B", *(f"{prefix}iB" for prefix in PREFIXES)}


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10 * 1024, "10.0 KiB"),
        (1023 * 1024, "1.00 MiB"),
        (999 * 1024, "999 KiB"),
        (1 << 62, "4.00 EiB"),
    ],
)
def test_size_is_written_with_three_digits(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 us"),
        (41e-6, "41.0 us"),
        (999e-6, "999 us"),
        (999.7e-6, "1.00 ms"),
        (0.5, "500 ms"),
        (75.2, "75.2 s"),
        (86400, "86400 s"),
    ],
)
def test_duration_is_written_with_three_digits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
