# SPDX-License-Identifier: MIT
"""The files of a run: thrown away if all went well, kept if it failed.

A failure may come once in some hundred runs, so whatever is needed to understand it has to be there
when it happens. Each run has a folder of its own for its stderr, the session's statistics and the
workload's results; the folder of a run that failed is moved to where the message says.

Beside it is a folder for the temporary files of what runs, which may be killed before it can remove
them itself. Other users may write there as they may in /tmp: an application can become one of them.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UffdswapError

if TYPE_CHECKING:
    from .guardian import Guardian

__all__ = ("Evidence", "RunFailed", "RunFiles")

_QUOTED_CHARACTERS = 600


class RunFailed(UffdswapError):
    """One run did not come to a right end. The other runs are none the worse for it."""

    def __init__(self, what: str, *, cause: str, folder: Path) -> None:
        super().__init__(what, cause=cause, remedy=f"its files are kept in {folder}")
        self.folder = folder


class RunFiles:
    """The folder of one run, while it goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder.with_name(f"{folder.name}-tmp")
        """For what the command would have in `TMPDIR`; never kept."""

    def make(self) -> None:
        """Make the folders."""
        self.folder.mkdir(mode=0o700)
        self.temporary.mkdir(mode=0o700)
        self.temporary.chmod(0o1777)

    @property
    def stderr(self) -> Path:
        """What the command and whoever limits it say, whole."""
        return self.folder / "stderr.txt"

    @property
    def stats(self) -> Path:
        """The statistics of an uffdswap session, if it comes to writing them."""
        return self.folder / "stats.json"

    @property
    def results(self) -> Path:
        """The lines that the workload prints, JSON each."""
        return self.folder / "workload.json"

    def add(self, name: str, text: str) -> None:
        """Write one more file."""
        (self.folder / name).write_text(text)

    def add_command(self, command: list[str]) -> None:
        """Write the command in a form that can be given to a shell."""
        self.add("command.txt", shlex.join(command) + "\n")

    def last_words(self) -> str:
        """Return the last line of stderr, which is where programs say why they end."""
        text = self.stderr.read_text(errors="replace").strip() if self.stderr.exists() else ""
        return text.rpartition("\n")[2][-_QUOTED_CHARACTERS:]


class Evidence:
    """Where the files of failed runs are kept: a folder that is made when the first one fails."""

    def __init__(self) -> None:
        self.folder: Path | None = None

    def begin(self, guardian: Guardian) -> RunFiles:
        """Make the folders for a run, which the guardian removes if they are not kept."""
        folder = Path(tempfile.gettempdir()) / f"uffdswap-bench-{secrets.token_hex(6)}"
        files = RunFiles(folder)
        guardian.note("remove-folder", path=str(files.folder))
        guardian.note("remove-folder", path=str(files.temporary))
        files.make()
        return files

    def keep(self, files: RunFiles, name: str) -> Path:
        """Move a run's folder to a lasting place; return that."""
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="uffdswap-bench-failed-"))
        kept = self.folder / name
        shutil.move(files.folder, kept)
        return kept
