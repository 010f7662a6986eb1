# SPDX-License-Identifier: MIT
"""`uffdswap estimate`: what would be saved, without doing anything."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .. import estimate as estimates

__all__ = ("estimate",)


def estimate(
    pid: Annotated[int, typer.Argument(metavar="PID", show_default=False, help="Any process.")],
    sample: Annotated[
        int, typer.Option("--sample", min=1, metavar="PAGES", help="Read so many pages.")
    ] = estimates.SAMPLE_PAGES,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    exact: Annotated[
        bool, typer.Option("--bytes", help="Print sizes as whole numbers of bytes.")
    ] = False,
) -> None:
    """Say what swapping a running process would save.

    Nothing is changed: a random sample of its pages is read and compressed, and the process is
    neither stopped nor traced.
    """
    found = estimates.estimate(pid, sample)
    if as_json:
        print(json.dumps(estimates.document(found), indent=2))
    else:
        print(estimates.text(found, exact=exact))
