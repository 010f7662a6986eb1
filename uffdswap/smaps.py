# SPDX-License-Identifier: MIT
"""What a process's mappings are: which of them can leave, and what the others hold.

The rule is that of the data plane (native/src/maps.c), told here once for all who only look. It
needs nothing but the lines of /proc/PID/maps or smaps.
"""

from __future__ import annotations

from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ("UNMANAGED_KINDS", "managed_mappings", "unmanaged", "unmanaged_bytes")

UNMANAGED_KINDS = ("file", "shared", "locked", "huge", "other")

_OURS = "/memfd:uffdswap-area"
_COUNTED = ("Rss", "Shared_Hugetlb", "Private_Hugetlb")  # huge pages are no part of Rss


def managed_mappings(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield start and end of what would be managed, from the lines of a maps file.

    >>> list(managed_mappings(["1000-3000 rw-p 00000000 00:00 0", "3000-4000 r--p 0 00:00 0 "]))
    [(4096, 12288)]
    """
    for line in lines:
        addresses, permissions, _offset, _device, inode, *name = line.split(maxsplit=5)
        start, _dash, end = addresses.partition("-")
        if _is_managed(permissions, inode, name[0] if name else ""):
            yield int(start, 16), int(end, 16)


def _is_managed(permissions: str, inode: str, name: str) -> bool:
    anonymous = inode == "0" and (not name or name == "[heap]" or name.startswith("[anon:"))
    return anonymous and permissions == "rw-p"


def unmanaged_bytes(pid: int) -> dict[str, int] | None:
    """Return by kind what is resident in a process and can never leave, and its total.

    None if there is no such process, or it may not be looked at.
    """
    try:
        with Path(f"/proc/{pid}/smaps").open(encoding="utf-8", errors="replace") as file:
            return unmanaged(file)
    except OSError:
        return None


def unmanaged(lines: Iterable[str]) -> dict[str, int] | None:
    """Return the same from the lines of a smaps file; None if there are none, as of a zombie."""
    found = dict.fromkeys(("total", *UNMANAGED_KINDS), 0)
    mappings = 0
    header: list[str] = []
    size_bytes = 0
    has_key = False
    for line in lines:
        if not line[:1].isupper():  # addresses are in lower case
            header, size_bytes, has_key = line.split(maxsplit=5), 0, False
            mappings += 1
            continue
        name, _colon, value = line.partition(":")
        if name in _COUNTED:
            size_bytes += int(value.split()[0]) * 1024
        elif name == "ProtectionKey":
            has_key = value.strip() != "0"
        elif name == "VmFlags":  # the last line of a mapping
            kind = _kind(header, value.split(), has_key=has_key)
            if kind is not None:
                found[kind] += size_bytes
                found["total"] += size_bytes
    return found if mappings else None


def _kind(header: list[str], flags: list[str], *, has_key: bool) -> str | None:
    """Return why a mapping cannot leave; None if it can, or is our own."""
    _addresses, permissions, _offset, _device, inode, *rest = header
    name = rest[0].rstrip("\n") if rest else ""
    if name.startswith(_OURS):
        return None
    if "ht" in flags:
        return "huge"
    if permissions.endswith("s"):
        return "shared"
    if inode != "0":
        return "file"
    if has_key or not _is_managed(permissions, inode, name):
        return "other"
    return "locked" if "lo" in flags else None
