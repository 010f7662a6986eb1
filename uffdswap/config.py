# SPDX-License-Identifier: MIT
"""The settings of a session: what they are, and where each came from.

An option on the command line wins over its environment variable, `UFFDSWAP_` and the option's name.
Both arrive here as text; from here on values have types, and errors name the place where the value
was written.
"""

from __future__ import annotations

import os

from .errors import UsageError
from .record import Record
from .units import parse_size_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = (
    "NO_BUDGET",
    "ON_FULL",
    "POLICIES",
    "Disk",
    "RunConfig",
    "parse_disk",
    "parse_limit",
    "resolve",
)

POLICIES = ("clock",)
"""Replacement policies there are, the default first."""

ON_FULL = ("wait", "kill")
"""What can be done when every tier is full."""

DISK_DEFAULT = "/var/tmp"
"""Where the disk tier is if nobody says so: a place on a disk, as file systems go."""

NO_BUDGET = "without --memory nothing goes to a disk tier but what is parked (uffdswap park)"
"""What to know of a disk tier in a session that has no budget of RAM."""

STRESS_MAX_PAGES_PER_SECOND = 2**32 - 1

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_DISK_SMALLEST_BYTES = 2 * 2**20
_NAMES = (
    *("memory", "resident", "disk", "no_disk", "no_disk_encryption"),
    *("on_full", "policy", "stats", "stress", "quiet", "verbose"),
)
_FLAG_VALUES = {"1": 1, "true": 1, "yes": 1, "on": 1, "0": 0, "false": 0, "no": 0, "off": 0}


class Setting(Record):
    """A value as it was written, and the place."""

    text: str
    source: str


class Disk(Record):
    """The place of a disk tier, and its cap; None is none."""

    path: str
    cap_bytes: int | None

    def __str__(self) -> str:
        """Return it as it is written."""
        return self.path if self.cap_bytes is None else f"{self.path}:{self.cap_bytes}"


class RunConfig(Record):
    """Everything `uffdswap run` can be told. Limits are None for no limit.

    Disk tiers are in the order in which they are filled. `on_full` is None for what suits best:
    wait where another disk tier would help, else kill.
    """

    memory_bytes: int | None
    resident_bytes: int | None
    disks: tuple[Disk, ...]
    disks_are_forbidden: bool
    disk_is_encrypted: bool
    on_full: str | None
    policy: str
    stats_path: str | None
    stress_pages_per_second: int
    verbosity: int
    sources: dict[str, str]

    @property
    def has_forgotten_limit(self) -> bool:
        """Whether there is nothing to do by now, though nobody has said `max`."""
        return not self.sources.keys() & {"memory", "resident", "stress"}


def resolve(
    options: Mapping[str, str],
    environment: Mapping[str, str],
    whole_bytes: Callable[[], int] | None = None,
) -> RunConfig:
    """Return the configuration from options (by name, as text) and environment.

    `whole_bytes` tells what 100% is; by default the memory of the machine or its cgroup. Raises
    `UsageError` for the first value that cannot be used.
    """
    settings = _collect(options, environment)
    whole_bytes = whole_bytes or _available_memory_bytes
    memory_bytes = _limit(settings.get("memory"), whole_bytes)
    return RunConfig(
        memory_bytes=memory_bytes,
        resident_bytes=_limit(settings.get("resident"), whole_bytes),
        disks=_disks(settings, is_useful=memory_bytes is not None),
        disks_are_forbidden=bool(_flag(settings.get("no_disk"))),
        disk_is_encrypted=not _flag(settings.get("no_disk_encryption")),
        on_full=_choice(settings.get("on_full"), ON_FULL),
        policy=_policy(settings.get("policy")),
        stats_path=settings["stats"].text if "stats" in settings else None,
        stress_pages_per_second=_stress(settings.get("stress")),
        verbosity=_flag(settings.get("verbose")) - _flag(settings.get("quiet")),
        sources={name: setting.source for name, setting in settings.items()},
    )


def _collect(options: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, Setting]:
    settings = {}
    for name in _NAMES:
        variable = f"UFFDSWAP_{name.upper()}"
        if name in options:
            settings[name] = Setting(text=options[name], source=f"--{name.replace('_', '-')}")
        elif environment.get(variable):
            settings[name] = Setting(text=environment[variable], source=variable)
    return settings


def _available_memory_bytes() -> int:
    from .machine import available_memory_bytes  # noqa: PLC0415 # needed for percentages only

    return available_memory_bytes()


def _limit(setting: Setting | None, whole_bytes: Callable[[], int]) -> int | None:
    return None if setting is None else parse_limit(setting.text, setting.source, whole_bytes)


def parse_limit(text: str, source: str, whole_bytes: Callable[[], int]) -> int | None:
    """Read a limit, None for `max`. `source` is where it was written, for the `UsageError`."""
    limit_bytes = parse_size_of(source, text, whole_bytes)
    if limit_bytes is not None and limit_bytes < _PAGE_BYTES:
        raise UsageError(
            f'{source}: "{text}" is too small a limit',
            cause=f"one page is {_PAGE_BYTES} bytes",
            remedy="give a size, or max for no limit",
        )
    return limit_bytes


def _disks(settings: Mapping[str, Setting], *, is_useful: bool) -> tuple[Disk, ...]:
    """Return the disk tiers, one a line of the setting. Only a budget sends anything to a disk."""
    setting = settings.get("disk")
    without = settings.get("no_disk")
    if without is not None and _flag(without):
        if setting is not None and setting.source == "--disk":
            what = f"--disk and {without.source} exclude each other"
            raise UsageError(what, remedy="give one of them")
        return ()
    if setting is None:
        return (Disk(path=DISK_DEFAULT, cap_bytes=None),) if is_useful else ()
    return tuple(parse_disk(text, setting.source) for text in setting.text.split("\n"))


def parse_disk(text: str, source: str) -> Disk:
    """Read PATH[:SIZE]. `source` is where it was written, for the `UsageError`.

    >>> parse_disk("/srv/swap:4G", "--disk")
    Disk(path='/srv/swap', cap_bytes=4294967296)
    >>> parse_disk("/srv:1/swap", "--disk")
    Disk(path='/srv:1/swap', cap_bytes=None)
    """
    path, cap_bytes = _place_and_cap(text, source)
    if not path or (cap_bytes is not None and cap_bytes < _DISK_SMALLEST_BYTES):
        raise UsageError(
            f'{source}: "{text}" is not a place and a size',
            cause="a disk tier has a path and, if it has a cap, at least 2 MiB",
            remedy="give for example /var/tmp:4G",
        )
    if path.endswith("/") and not os.path.isdir(path):
        raise UsageError(
            f"{source}: there is no folder {path}",
            remedy="make it, or leave out the slash for a file",
        )
    return Disk(path=os.path.abspath(path), cap_bytes=cap_bytes)


def _place_and_cap(text: str, source: str) -> tuple[str, int | None]:
    """Split PATH[:SIZE]. Names of files may have colons, but not right behind what is there."""
    path, colon, size = text.rpartition(":")
    if not colon or "/" in size:
        return text, None
    if size[:1].isdecimal():
        return path, parse_size_of(source, size, lambda: 0)
    if not path or os.path.lexists(text) or not os.path.exists(path):
        return text, None
    try:
        return path, parse_size_of(source, size)
    except UsageError as error:
        raise UsageError(
            f'{source}: "{size}" after {path}: is not a size',
            cause=f"{path} is there, so what follows its colon has to be its cap",
            remedy=f"give for example {path}:4G, or {path} alone",
        ) from error


def _policy(setting: Setting | None) -> str:
    if setting is None:
        return POLICIES[0]
    if setting.text not in POLICIES:
        what = f'{setting.source}: there is no policy "{setting.text}"'
        raise UsageError(what, remedy=f"there is: {', '.join(POLICIES)}")
    return setting.text


def _choice(setting: Setting | None, choices: tuple[str, ...]) -> str | None:
    if setting is None:
        return None
    if setting.text not in choices:
        what = f'{setting.source}: "{setting.text}" is none of the choices'
        raise UsageError(what, remedy=f"give {' or '.join(choices)}")
    return setting.text


def _stress(setting: Setting | None) -> int:
    if setting is None:
        return 0
    text = setting.text.strip()
    if text.isascii() and text.isdecimal() and len(text) < 12:
        rate = int(text)
        if 0 < rate <= STRESS_MAX_PAGES_PER_SECOND:
            return rate
    raise UsageError(
        f'{setting.source}: "{setting.text}" is not a rate',
        remedy="give a whole number of pages a second, for example 20000",
    )


def _flag(setting: Setting | None) -> int:
    """Read a switch: how often it was given, or yes or no."""
    if setting is None:
        return 0
    text = setting.text.strip().lower()
    if text in _FLAG_VALUES:
        return _FLAG_VALUES[text]
    if text.isascii() and text.isdecimal() and len(text) < 4:
        return int(text)
    what = f'{setting.source}: "{setting.text}" is neither yes nor no'
    raise UsageError(what, remedy="give 1 or 0")
