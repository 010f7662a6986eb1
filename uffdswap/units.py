# SPDX-License-Identifier: MIT
"""Sizes and durations, as people write and read them, and text that is shown to them.

Pure functions, apart from everything else so that they can be tested by their properties. `K`, `M`,
`G`... and `KiB`... are powers of 1024, `KB`... powers of 1000, in any case. Numbers are read in
whole-number arithmetic: no size is changed by rounding in floating point.
"""

from __future__ import annotations

from .errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = (
    "SIZE_MAX_BYTES",
    "format_duration",
    "format_size",
    "parse_size",
    "parse_size_of",
    "printable",
)

SIZE_MAX_BYTES = 2**63 - 1
"""The largest size there is: what fits a signed file offset."""

_PREFIXES = "KMGTPE"
_EXAMPLES = "write for example 512M, 1.5G, 500MB, 50% or max"
_DIGITS = frozenset("0123456789")
_FACTORS: dict[str, int] = {"": 1, "B": 1}
for _power, _prefix in enumerate(_PREFIXES, start=1):
    _FACTORS[_prefix] = _FACTORS[f"{_prefix}IB"] = 1024**_power
    _FACTORS[f"{_prefix}B"] = 1000**_power


def parse_size(text: str, whole_bytes: Callable[[], int] | None = None) -> int | None:
    """Read a size in bytes; None for `max`.

    `whole_bytes` tells what 100% is, and is only called for a percentage; without it there are no
    percentages. Raises `UsageError` for anything that is not wholly understood.

    >>> parse_size("512M"), parse_size("500MB"), parse_size("1.5KiB"), parse_size("max")
    (536870912, 500000000, 1536, None)
    >>> parse_size("50%", lambda: 4096)
    2048
    """
    text = text.strip()
    if text.lower() == "max":
        return None
    number, unit = _split(text)
    if unit == "%":
        return _percentage(text, number, whole_bytes)
    return _scaled(text, number, _factor(text, unit))


def parse_size_of(
    source: str, text: str, whole_bytes: Callable[[], int] | None = None
) -> int | None:
    """Read a size as `parse_size()` does, and name in a refusal what it was given for.

    >>> parse_size_of("--memory", "512M")
    536870912
    """
    try:
        return parse_size(text, whole_bytes)
    except UsageError as error:
        what = f"{source}: {error.what}"
        raise UsageError(what, cause=error.cause, remedy=error.remedy) from error


def _split(text: str) -> tuple[str, str]:
    """Split into a decimal number and what follows it."""
    end = 0
    while end < len(text) and (text[end] in _DIGITS or text[end] == "."):
        end += 1
    number, unit = text[:end], text[end:].strip()
    whole, _point, fraction = number.partition(".")
    if not whole or "." in fraction or number.endswith("."):
        raise UsageError(f'"{text}" is not a size', remedy=_EXAMPLES)
    return number, unit


def _factor(text: str, unit: str) -> int:
    """Return how many bytes a unit is."""
    factor = _FACTORS.get(unit.upper())
    if factor is not None:
        return factor
    cause = f'"{unit}" after the number is not a unit'
    raise UsageError(f'"{text}" is not a size', cause=cause, remedy=_EXAMPLES)


def _scaled(text: str, number: str, factor: int, divisor: int = 1) -> int:
    """Return number * factor / divisor, rounded down."""
    whole, _point, fraction = number.partition(".")
    if factor == 1 and fraction:
        cause = "there are no fractions of a byte"
        raise UsageError(f'"{text}" is not a size', cause=cause, remedy=_EXAMPLES)
    if len(number) > 40:
        cause = "it has too many digits"
        raise UsageError(f'"{text[:20]}..." is not a size', cause=cause, remedy=_EXAMPLES)
    size_bytes: int = int(whole + fraction) * factor // (10 ** len(fraction) * divisor)
    if size_bytes > SIZE_MAX_BYTES:
        cause, remedy = "a size is less than 8E", "write max for no limit"
        raise UsageError(f'"{text}" is too large', cause=cause, remedy=remedy)
    return size_bytes


def _percentage(text: str, number: str, whole_bytes: Callable[[], int] | None) -> int:
    if whole_bytes is None:
        cause, remedy = "a percentage has no meaning here", "write for example 512M or 1.5G"
        raise UsageError(f'"{text}" is not a size', cause=cause, remedy=remedy)
    if _scaled(text, number, 1000) > 100_000:
        cause = "there is no more than 100%"
        raise UsageError(f'"{text}" is too large', cause=cause, remedy=_EXAMPLES)
    return _scaled(text, number, whole_bytes(), divisor=100)


def format_size(size_bytes: int) -> str:
    """Write a size with three significant digits and a binary unit.

    >>> format_size(0), format_size(4096), format_size(641728512), format_size(1610612736)
    ('0 B', '4.00 KiB', '612 MiB', '1.50 GiB')
    """
    if size_bytes < 1000:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for prefix in _PREFIXES:
        value /= 1024
        if value < 999.5 or prefix == _PREFIXES[-1]:
            break
    return f"{_three_digits(value)} {prefix}iB"


def format_duration(seconds: float) -> str:
    """Write a duration with at most three significant digits.

    >>> format_duration(41e-6), format_duration(0.0012), format_duration(75.2)
    ('41.0 us', '1.20 ms', '75.2 s')
    """
    value, unit = seconds * 1e6, "us"
    for larger in ("ms", "s"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{_three_digits(value)} {unit}"


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def printable(text: str) -> str:
    r"""Return a text of somebody else's as one line that any terminal takes.

    >>> printable("a \x1b[31m name\n\udcff")
    'a \\x1b[31m name\\n\\xff'
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is no text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
