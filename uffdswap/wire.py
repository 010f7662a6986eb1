# SPDX-License-Identifier: MIT
"""The part of native/shim/wire.h that is spoken in Python, before a process is a target."""

from __future__ import annotations

import struct

__all__ = (
    "HELLO",
    "HELLO_GIVE_UP",
    "HELLO_JOIN",
    "MAGIC",
    "WELCOME",
    "WELCOME_REFUSED",
    "WELCOME_SESSION",
    "WIRE_VERSION",
)

HELLO = struct.Struct("=IIIIQQQ")
WELCOME = struct.Struct("=IIII108s")
MAGIC = 0x75737731
WIRE_VERSION = 4
HELLO_JOIN = 4
HELLO_GIVE_UP = 5
WELCOME_REFUSED = 1
WELCOME_SESSION = 3
