# SPDX-License-Identifier: MIT
"""What the integration tests share."""

from .fixtures import bare_run, programs, start_session, uffdswap_run

__all__ = ("bare_run", "programs", "start_session", "uffdswap_run")
