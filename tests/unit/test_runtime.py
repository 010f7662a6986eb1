# SPDX-License-Identifier: MIT
# Goal: the socket is reachable by its owner only, and folders of dead sessions do not pile up.
# Method: real folders and sockets below a temporary XDG_RUNTIME_DIR.
"""The runtime folder."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from uffdswap import runtime
from uffdswap.errors import SetupFailed
from uffdswap.runtime import SessionFolder, remove_session, standing_socket

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give folders away")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return a folder of the length that one in /tmp has: the path of a socket has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="usw-", dir="/tmp") as folder:
        yield Path(folder)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def test_socket_is_closed_to_others(environment: dict[str, str]) -> None:
    folder = SessionFolder(os.getpid(), environment)
    try:
        path = Path(folder.socket_path)
        assert path.is_socket()
        assert mode_of(path) == 0o600
        assert mode_of(path.parent) == 0o700
        assert mode_of(path.parent.parent) == 0o700
    finally:
        folder.close()


def test_umask_does_not_open_it(environment: dict[str, str]) -> None:
    before = os.umask(0)
    try:
        folder = SessionFolder(os.getpid(), environment)
    finally:
        os.umask(before)
    assert mode_of(Path(folder.path)) == 0o700
    assert mode_of(Path(folder.socket_path)) == 0o600
    folder.close()


def test_socket_takes_connections(environment: dict[str, str]) -> None:
    folder = SessionFolder(os.getpid(), environment)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(10)
        client.connect(folder.socket_path)
    folder.close()


def test_close_leaves_nothing_of_the_session(environment: dict[str, str], tmp_path: Path) -> None:
    folder = SessionFolder(os.getpid(), environment)
    folder.link_shim("/a folder/shim.so")
    folder.close()
    folder.close()
    assert list((tmp_path / "uffdswap").iterdir()) == []


def test_folder_of_a_dead_agent_is_removed_and_of_a_living_one_kept(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        dead = SessionFolder(process.pid, environment)
        process.kill()
    living = SessionFolder(os.getppid(), environment)
    used_again = tmp_path / "uffdswap" / f"{os.getpid()}-12345"  # our pid, another start
    used_again.mkdir()
    foreign = tmp_path / "uffdswap" / "something-else"
    foreign.mkdir()
    own = SessionFolder(os.getpid(), environment)
    left = {str(path) for path in (tmp_path / "uffdswap").iterdir()}
    assert left == {living.path, own.path, str(foreign)}
    dead.listener.close()
    living.close()
    own.close()


def test_shim_keeps_its_name_where_the_loader_can_read_it(environment: dict[str, str]) -> None:
    folder = SessionFolder(os.getpid(), environment)
    assert folder.link_shim("/usr/lib/shim.so") == "/usr/lib/shim.so"
    folder.close()


@pytest.mark.parametrize("path", ["/a folder/shim.so", "/a:b/shim.so"])
def test_shim_gets_a_name_that_the_loader_can_read(environment: dict[str, str], path: str) -> None:
    folder = SessionFolder(os.getpid(), environment)
    link = folder.link_shim(path)
    assert not set(link) & set(" :")
    assert str(Path(link).readlink()) == path
    folder.close()


def test_missing_runtime_dir_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="XDG_RUNTIME_DIR"):
        SessionFolder(os.getpid(), {"XDG_RUNTIME_DIR": str(tmp_path / "nothing")})


def test_file_in_place_of_the_folder_is_refused(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "uffdswap").write_text("")
    with pytest.raises(SetupFailed, match="not a folder"):
        SessionFolder(os.getpid(), environment)


def test_link_in_place_of_the_folder_is_refused(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "uffdswap").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupFailed, match="not a folder"):
        SessionFolder(os.getpid(), environment)


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o770])
def test_folder_that_others_may_enter_is_refused(
    environment: dict[str, str], tmp_path: Path, mode: int
) -> None:
    (tmp_path / "uffdswap").mkdir()
    (tmp_path / "uffdswap").chmod(mode)
    with pytest.raises(SetupFailed, match="chmod 700"):
        SessionFolder(os.getpid(), environment)


@needs_root
@pytest.mark.parametrize("inner", [True, False])
def test_folder_of_somebody_else_is_refused(
    environment: dict[str, str], tmp_path: Path, inner: bool
) -> None:
    folder = tmp_path / "uffdswap" if inner else tmp_path
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(SetupFailed, match=f"belongs to user {NOBODY}"):
        SessionFolder(os.getpid(), environment)


def test_path_too_long_for_a_socket_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    with pytest.raises(SetupFailed, match="short path"):
        SessionFolder(os.getpid(), {"XDG_RUNTIME_DIR": str(long)})
    assert list((long / "uffdswap").iterdir()) == []


def test_without_a_runtime_dir_there_is_one_in_tmp(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_TMP", str(short_path))
    monkeypatch.setattr(os.path, "isdir", lambda _path: False)  # no /run
    folder = SessionFolder(os.getpid(), {})
    assert Path(folder.path).parent.parent == short_path
    folder.close()
    assert list(short_path.iterdir()) == []


def test_dead_sessions_in_tmp_are_removed(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_TMP", str(short_path))
    monkeypatch.setattr(os.path, "isdir", lambda _path: False)
    old = short_path / f"uffdswap-{os.geteuid()}-abcdef"
    (old / "1-1").mkdir(parents=True)
    os.utime(old, (0, 0))
    foreign = short_path / f"uffdswap-{os.geteuid() + 1}-abcdef"
    foreign.mkdir()
    folder = SessionFolder(os.getpid(), {})
    assert not (old / "1-1").exists()
    assert foreign.exists()
    folder.close()
    remove_session(str(old / "1-1"))


# --- The standing agent's socket -----------------------------------------------------------------


def test_standing_socket_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    standing_socket(str(path)).close()
    assert path.is_socket()
    with (
        standing_socket(str(path)),
        pytest.raises(SetupFailed, match="another agent does"),
    ):
        standing_socket(str(path))


@pytest.mark.parametrize("is_link", [False, True])
def test_standing_socket_leaves_files_alone(tmp_path: Path, *, is_link: bool) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    path = file
    if is_link:
        path = tmp_path / "link"
        path.symlink_to(file)
    with pytest.raises(SetupFailed, match="no socket is there; give --socket another PATH"):
        standing_socket(str(path))
    assert file.read_text() == "precious"
    assert path.is_symlink() == is_link
