# SPDX-License-Identifier: MIT
"""Ready-made applications for `uffdswap bench --app NAME`: what people run when memory is short.

Each is a program of its own, apart from this package, that takes the memory it is to need in bytes,
checks its own answers, and ends with status 0 only if they are right. Sizes are near enough: what a
program really needs is measured.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ...errors import SetupFailed

__all__ = ("READY", "ReadyApp", "find_ready")

_INSTALLERS = (
    ("apt-get", "apt-get install"),
    ("dnf", "dnf install"),
    ("pacman", "pacman -S"),
    ("apk", "apk add"),
)


@dataclass(frozen=True, slots=True)
class ReadyApp:
    """A program that comes with the package, and what it needs beside Python."""

    name: str
    file: str
    modules: tuple[str, ...] = ()
    program: str = ""
    package: str = ""
    """What distributions call the program."""

    def command(self, size_bytes: int) -> list[str]:
        """Return the command that needs about so much memory."""
        return [sys.executable, str(Path(__file__).parent / self.file), str(size_bytes)]

    def require(self) -> None:
        """Raise `SetupFailed` if something is missing, with the command that installs it."""
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                self._refuse(module, f"{sys.executable} -m pip install {module}")
        if self.program and shutil.which(self.program) is None:
            self._refuse(self.program, f"{_installer()} {self.package or self.program}")

    def _refuse(self, missing: str, command: str) -> None:
        what = f"cannot run the application {self.name}"
        raise SetupFailed(
            what, cause=f"there is no {missing} here", remedy=f"install it: {command}"
        )


READY = (
    ReadyApp("numpy-sort", "numpy_sort.py", modules=("numpy",)),
    ReadyApp("pandas-groupby", "pandas_groupby.py", modules=("numpy", "pandas")),
    ReadyApp("dict", "dict_words.py"),
    ReadyApp("sqlite", "sqlite_orders.py", modules=("sqlite3",)),
    ReadyApp("redis", "redis_gets.py", program="redis-server"),
    ReadyApp("gcc", "gcc_compile.py", program="gcc"),
)


def find_ready(name: str) -> ReadyApp | None:
    """Return a ready-made application; None if it is not the name of one, but a command.

    >>> find_ready("dict").file
    'dict_words.py'
    """
    return next((app for app in READY if app.name == name), None)


def _installer() -> str:
    """Return the command that installs packages here."""
    return next((command for tool, command in _INSTALLERS if shutil.which(tool)), "install")
