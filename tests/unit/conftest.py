# SPDX-License-Identifier: MIT
"""What the unit tests share: properties are checked without a stopwatch, machines being busy."""

from hypothesis import settings

settings.register_profile("uffdswap", deadline=None)
settings.load_profile("uffdswap")
