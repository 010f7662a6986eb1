# SPDX-License-Identifier: MIT
"""Start the agent, before the launcher has imported what it needs itself.

Two interpreters start in the time of one this way, and start-up is most of what a short program
notices of us. Hence `_socket`, the C module below `socket`: the latter takes as long to import as
the interpreter takes to start, and this module must not wait for it.
"""

from __future__ import annotations

import _socket
import os
import sys

from .errors import SetupFailed

__all__ = ("AgentProcess", "start_agent")

_CONTROL_FD = 3
_RUN_AGENT = (
    "import sys, uffdswap; uffdswap.__path__[:] = sys.argv[1:];"
    "from uffdswap.agent import run_and_exit; run_and_exit()"
)
# What the agent gets of the environment: where things are, the language of its lines and, as the
# launcher has started with them, what its interpreter may need to start. Everything else is meant
# for the program. MALLOC_PERTURB_, for one, would make all of the agent's memory resident, which
# the budget pays for.
_KEPT = (
    *("HOME", "PATH", "TMPDIR", "XDG_RUNTIME_DIR", "LANG", "LC_ALL", "LC_CTYPE", "LC_MESSAGES"),
    *("TZ", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
)
_SIGKILL = 9  # `signal` imports `enum`


class AgentProcess:
    """An agent that has been started: its pid, and the launcher's end of the control channel."""

    def __init__(self, pid: int, control_fd: int) -> None:
        self.pid = pid
        self.control_fd = control_fd

    def abandon(self) -> None:
        """End an agent that nobody has talked to yet."""
        os.close(self.control_fd)
        os.kill(self.pid, _SIGKILL)
        os.waitpid(self.pid, 0)


def start_agent() -> AgentProcess:
    """Start an agent in a session of its own, where no key of the terminal reaches it.

    It has the launcher's stderr and a few variables of its environment, nothing else of it, and
    ends when the channel closes.
    """
    occupy_standard_fds()
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    actions = [
        (os.POSIX_SPAWN_DUP2, theirs.fileno(), _CONTROL_FD),
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]
    if not os.get_inheritable(2):
        actions.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0))
    # -S and not -m: `site` and `runpy` take a quarter of the agent's start, and the launcher knows
    # already where everything is. -P: nothing may come from the folder the user happens to be in.
    arguments = [sys.executable, "-S", "-P", "-c", _RUN_AGENT, *_package_folders()]
    try:
        pid = os.posix_spawn(
            sys.executable, arguments, _environment(), file_actions=actions, setsid=True
        )
    except OSError as error:
        raise SetupFailed(
            "cannot start the agent", cause=f"{sys.executable}: {error.strerror}"
        ) from error
    finally:
        theirs.close()
    return AgentProcess(pid, ours.detach())


def occupy_standard_fds() -> None:
    """Keep descriptors 0 to 2 from being taken by ours if the launcher was started without them.

    What is opened here closes on exec, so the program finds them closed as the launcher did.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _package_folders() -> list[str]:
    """Return where the package is; an editable installation keeps its native part apart."""
    import uffdswap  # noqa: PLC0415 # complete only now

    return [os.path.abspath(folder) for folder in uffdswap.__path__]


def _environment() -> dict[str, str]:
    """Return the agent's environment, in which it finds the same modules as the launcher.

    It reads names of files as the launcher does, too: they exchange them as text.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = ":".join(os.path.abspath(entry) for entry in sys.path)
    return {**kept, "PYTHONPATH": path, "PYTHONUTF8": str(sys.flags.utf8_mode)}
