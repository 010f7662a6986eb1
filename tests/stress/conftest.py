# SPDX-License-Identifier: MIT
"""What the stress tests share with the integration tests."""

from integration.fixtures import bare_run, programs, start_session, uffdswap_run

__all__ = ("bare_run", "programs", "start_session", "uffdswap_run")
