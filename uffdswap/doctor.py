# SPDX-License-Identifier: MIT
"""Can this machine do it, and if not, what would help.

The checks are data: a table of functions from what the kernel said (`Probe`) and what the files
under a root path say (`Host`) to one finding each. Tests feed recorded trees; `uffdswap doctor`
prints the findings; `uffdswap run` refuses by the required ones, in the same words.

What is asked for and why. The agent needs fork events of userfaultfd, or a forked child would read
zeros where pages are evicted; the kernel gives them only to `CAP_SYS_PTRACE`, however the
descriptor was opened. The program needs a userfaultfd that serves system calls too: from the system
call (the capability, or vm.unprivileged_userfaultfd = 1), or through /dev/userfaultfd, which an
agent that may open it opens for the program.
"""

from __future__ import annotations

import enum
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ._lib import Probe

__all__ = (
    "CHECKS",
    "SCHEMA",
    "Check",
    "Finding",
    "Group",
    "Host",
    "Verdict",
    "as_json",
    "examine",
    "is_ready",
    "load_shim",
    "required_failures",
)

SCHEMA = "uffdswap.doctor/1"

_PAGE_BYTES = 4096
_MACHINE = "x86_64"
_CAP_SYS_PTRACE = 19
_MAP_COUNT_DEFAULT = 65530
_EPERM = 1

# Name and first kernel release of the feature bits, by bit number.
_FEATURES = (
    ("PAGEFAULT_FLAG_WP", "5.7"),
    ("EVENT_FORK", "4.11"),
    ("EVENT_REMAP", "4.11"),
    ("EVENT_REMOVE", "4.11"),
    ("MISSING_HUGETLBFS", "4.11"),
    ("MISSING_SHMEM", "4.11"),
    ("EVENT_UNMAP", "4.11"),
    ("SIGBUS", "4.14"),
    ("THREAD_ID", "4.14"),
    ("MINOR_HUGETLBFS", "5.13"),
    ("MINOR_SHMEM", "5.14"),
    ("EXACT_ADDRESS", "5.18"),
    ("WP_HUGETLBFS_SHMEM", "5.19"),
    ("WP_UNPOPULATED", "6.4"),
    ("POISON", "6.6"),
    ("WP_ASYNC", "6.7"),
    ("MOVE", "6.8"),
)
_WP_ASYNC = 1 << 15

_SYSCTL_NOW = "sudo sysctl vm.unprivileged_userfaultfd=1"
_SYSCTL_KEPT = "echo 'vm.unprivileged_userfaultfd = 1' | sudo tee /etc/sysctl.d/60-uffdswap.conf"
_AS_USER = (
    "sudo setpriv --reuid={user} --regid={group} --init-groups "
    "--inh-caps=+sys_ptrace --ambient-caps=+sys_ptrace {program} run ..."
)
# The capability goes to a copy of the interpreter: on the machine's own, everybody would have it.
_INTERPRETER_COPY = (
    "cp --remove-destination $(readlink -f {python}) {python} "
    "&& sudo setcap cap_sys_ptrace+ep {python}"
)
_INTERPRETER_NEW = (
    "python3 -m venv --copies ~/.uffdswap && ~/.uffdswap/bin/pip install {sources} "
    "&& sudo setcap cap_sys_ptrace+ep ~/.uffdswap/bin/python"
)
_CONTAINER = "docker run --cap-add=SYS_PTRACE --device=/dev/userfaultfd ..."
_CONTAINER_KEPT = "cap_add: [SYS_PTRACE] and devices: [/dev/userfaultfd] in compose.yaml"


class Group(enum.StrEnum):
    """How much depends on a check."""

    REQUIRED = "required"
    SOME = "for some uses"
    EXPERIMENTAL = "experimental"


class Verdict(enum.StrEnum):
    """What came of a check; only required checks fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one check found; why it matters; a command for now, and one for good."""

    verdict: Verdict
    found: str
    why: str = ""
    now: str = ""
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One question. `ask` returns None where an earlier answer makes the question pointless."""

    name: str
    group: Group
    ask: Callable[[Probe, Host], Answer | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer with the question it belongs to."""

    name: str
    group: Group
    answer: Answer

    def __str__(self) -> str:
        """Put it into one line, as `run` prints it."""
        text = f"{self.answer.found}: {self.answer.why}"
        return f"{text}; try: {self.answer.now}" if self.answer.now else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the machine's files say, apart from the probe."""

    release: str
    machine: str
    user_id: int
    group_id: int
    inherits_ptrace: bool
    """Programs started from here get CAP_SYS_PTRACE too."""
    in_user_namespace: bool
    interpreter_has_capability: bool
    device_is_open_to_all: bool
    huge_pages: str
    max_map_count: int | None
    shim_error: str | None = None
    """Why the preload library does not load; empty if it does, None if nobody tried."""

    @classmethod
    def read(cls, root: Path = Path("/"), *, shim_error: str | None = None) -> Host:
        """Read everything below a root path; what cannot be read counts as absent."""
        status = _status_fields(_text(root / "proc/self/status"))
        user_id = int(status.get("Uid", "0 0").split()[1])
        ambient = int(status.get("CapAmb", "0"), 16)
        uid_map = _text(root / "proc/self/uid_map").split()
        map_count = _text(root / "proc/sys/vm/max_map_count").strip()
        return cls(
            release=_text(root / "proc/sys/kernel/osrelease").strip() or "unknown",
            machine=_text(root / "proc/sys/kernel/arch").strip() or os.uname().machine,
            user_id=user_id,
            group_id=int(status.get("Gid", "0 0").split()[1]),
            inherits_ptrace=user_id == 0 or bool(ambient >> _CAP_SYS_PTRACE & 1),
            in_user_namespace=bool(uid_map) and uid_map != ["0", "0", str(2**32 - 1)],
            interpreter_has_capability=_has_file_capability(Path(sys.executable)),
            device_is_open_to_all=_is_open_to_all(root / "dev/userfaultfd"),
            huge_pages=_chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
            max_map_count=int(map_count) if map_count.isdecimal() else None,
            shim_error=shim_error,
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _status_fields(text: str) -> dict[str, str]:
    r"""Take /proc/PID/status apart.

    >>> _status_fields("Name:\tcat\nUid:\t0\t0\t0\t0\n")["Uid"].split()[1]
    '0'
    """
    return {
        name: value.strip()
        for name, colon, value in (line.partition(":") for line in text.splitlines())
        if colon
    }


def _chosen(text: str) -> str:
    """Return the word in brackets, as sysfs marks a choice.

    >>> _chosen("always [madvise] never")
    'madvise'
    """
    return text.partition("[")[2].partition("]")[0]


def _has_file_capability(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _is_open_to_all(path: Path) -> bool:
    try:
        return path.stat().st_mode & 0o006 == 0o006
    except OSError:
        return False


def load_shim(shim: Path) -> str:
    """Preload the shim into a shell that does nothing; return the complaint, or nothing."""
    if not shim.is_file():
        return f"{shim} is missing"
    # Disabled, it does not join a standing agent whose socket is in the environment.
    environment = {**os.environ, "LD_PRELOAD": str(shim), "UFFDSWAP_DISABLE": "1"}
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", ":"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode != 0:
        return f"a program with it ends with status {done.returncode}"
    return done.stderr.strip().splitlines()[0] if done.stderr.strip() else ""


# --- Checks --------------------------------------------------------------------------------------


def _ok(found: str) -> Answer:
    return Answer(Verdict.OK, found)


def _kernel(probe: Probe, host: Host) -> Answer:
    found = f"kernel {host.release}, {host.machine}, {probe.page_bytes // 1024} KiB pages"
    if host.machine != _MACHINE:
        why = f"what moves pages in a program is written for {_MACHINE} only; take such a machine"
        return Answer(Verdict.FAIL, found, why)
    if probe.page_bytes != _PAGE_BYTES:
        why = "uffdswap works with 4 KiB pages only; boot a kernel that has them"
        return Answer(Verdict.FAIL, found, why)
    return _ok(found)


def _userfaultfd(probe: Probe, host: Host) -> Answer:
    """Is it there at all? Permission to use it in full is asked later."""
    if probe.features:
        known = len(_FEATURES)
        offered = (probe.features & ((1 << known) - 1)).bit_count()
        return _ok(f"userfaultfd, features {probe.features:#x} ({offered} of {known} known)")
    error = os.strerror(probe.syscall_error)
    if probe.syscall_error != _EPERM:
        why = "the kernel was built without CONFIG_USERFAULTFD; install one that has it"
        return Answer(Verdict.FAIL, f"no userfaultfd ({error})", why)
    why = "a filter of system calls, such as a container's, forbids it"
    return Answer(
        Verdict.FAIL, f"userfaultfd is blocked ({error})", why, _CONTAINER, _CONTAINER_KEPT
    )


def _features(probe: Probe, _host: Host) -> Answer | None:
    if not probe.features:
        return None
    missing = [
        f"{name} (Linux {since})"
        for bit, (name, since) in enumerate(_FEATURES)
        if probe.features_missing >> bit & 1
    ]
    if not missing:
        return _ok("fork, remap, remove and unmap events, thread IDs, MOVE, POISON")
    why = "evicting a page safely needs all of them; boot a newer kernel, 6.8 or later"
    return Answer(Verdict.FAIL, f"userfaultfd lacks {', '.join(missing)}", why)


def _move(probe: Probe, _host: Host) -> Answer | None:
    if not probe.features or probe.features_missing:
        return None
    if probe.has_move:
        return _ok("UFFDIO_MOVE moves a page")
    why = "there is no other way to evict a page that loses no write; boot another kernel"
    return Answer(Verdict.FAIL, "UFFDIO_MOVE is offered and does not work", why)


def _pagemap_scan(probe: Probe, _host: Host) -> Answer:
    if probe.has_pagemap_scan:
        return _ok("PAGEMAP_SCAN finds resident pages")
    why = "pages to evict cannot be found; boot Linux 6.7 or later (gVisor has no such call)"
    return Answer(Verdict.FAIL, "no PAGEMAP_SCAN on /proc/self/pagemap", why)


def _agent_permission(probe: Probe, host: Host) -> Answer | None:
    """May this user's agent ask for fork events?"""
    if not probe.features or probe.features_missing:
        return None
    if probe.api_error == 0:
        return _ok("the agent may follow forks (CAP_SYS_PTRACE)")
    if probe.api_error != _EPERM:
        found = f"UFFDIO_API fails ({os.strerror(probe.api_error)})"
        return Answer(Verdict.FAIL, found, "the kernel offers the features and refuses them")
    why = "without fork events a forked child would read zeros where pages are evicted"
    if probe.has_ptrace_capability and host.in_user_namespace:
        found = "CAP_SYS_PTRACE counts for nothing in a user namespace"
        now = "run it outside (a rootless container cannot)"
        return Answer(Verdict.FAIL, found, why, now)
    found = "the agent may not follow forks (no CAP_SYS_PTRACE)"
    if host.user_id == 0:
        return Answer(Verdict.FAIL, found, why, _CONTAINER, _CONTAINER_KEPT)
    return Answer(Verdict.FAIL, found, why, _as_user(host), _capable_interpreter())


def _program_permission(probe: Probe, host: Host) -> Answer | None:
    """May the programs have a userfaultfd that serves system calls too?"""
    if not probe.features:
        return None
    if probe.device_error == 0:
        return _ok("programs get a userfaultfd through /dev/userfaultfd")
    if probe.syscall_error == 0 and probe.sysctl_unprivileged == 1:
        return _ok("programs get a userfaultfd: vm.unprivileged_userfaultfd = 1")
    if probe.syscall_error == 0 and host.inherits_ptrace:
        return _ok("programs get a userfaultfd: they have CAP_SYS_PTRACE as well")
    why = "one for user mode only would break programs: read() into an evicted page gives EFAULT"
    if probe.sysctl_unprivileged == 1 or host.inherits_ptrace:
        found = "userfaultfd(2) is blocked and /dev/userfaultfd is closed"
        return Answer(Verdict.FAIL, found, why, _CONTAINER, _CONTAINER_KEPT)
    found = "programs may not open a userfaultfd"
    return Answer(Verdict.FAIL, found, why, _SYSCTL_NOW, _SYSCTL_KEPT)


def _shim(_probe: Probe, host: Host) -> Answer | None:
    if host.shim_error is None:
        return None
    if not host.shim_error:
        return _ok("shim loads: libuffdswap.so")
    why = "programs are managed from a library that is loaded before theirs"
    now = f"{sys.executable} -m pip install --force-reinstall {_sources()}"
    return Answer(Verdict.FAIL, f"shim does not load: {host.shim_error}", why, now)


def _other_users(probe: Probe, host: Host) -> Answer | None:
    if host.user_id != 0 or probe.api_error:
        return None
    if not host.interpreter_has_capability:
        why = "their agent needs CAP_SYS_PTRACE, which root has"
        now = _AS_USER.format(user="USER", group="GROUP", program=_program())
        found = "other users cannot run it by themselves"
        return Answer(Verdict.WARN, found, why, now, _new_interpreter())
    if probe.sysctl_unprivileged != 1 and not host.device_is_open_to_all:
        found = f"vm.unprivileged_userfaultfd = {max(probe.sysctl_unprivileged, 0)}"
        why = "programs of other users may not open a userfaultfd"
        return Answer(Verdict.WARN, found, why, _SYSCTL_NOW, _SYSCTL_KEPT)
    return _ok("other users can run it too")


def _map_count(_probe: Probe, host: Host) -> Answer | None:
    if host.max_map_count is None:
        return None
    found = f"vm.max_map_count = {host.max_map_count}"
    if host.max_map_count >= _MAP_COUNT_DEFAULT:
        return _ok(found)
    why = "registering memory splits mappings; at the limit eviction stops"
    return Answer(
        Verdict.WARN,
        found,
        why,
        f"sudo sysctl vm.max_map_count={_MAP_COUNT_DEFAULT}",
        f"echo 'vm.max_map_count = {_MAP_COUNT_DEFAULT}' | sudo tee /etc/sysctl.d/61-uffdswap.conf",
    )


def _huge_pages(_probe: Probe, host: Host) -> Answer | None:
    return _ok(f"transparent huge pages: {host.huge_pages}") if host.huge_pages else None


def _async_write_protect(probe: Probe, _host: Host) -> Answer | None:
    if not probe.features:
        return None
    if probe.features & _WP_ASYNC:
        return _ok("asynchronous write-protection")
    why = "nothing depends on it yet; Linux 6.7 and later have it"
    return Answer(Verdict.WARN, "no asynchronous write-protection", why)


CHECKS = (
    Check("kernel", Group.REQUIRED, _kernel),
    Check("userfaultfd", Group.REQUIRED, _userfaultfd),
    Check("features", Group.REQUIRED, _features),
    Check("move", Group.REQUIRED, _move),
    Check("pagemap-scan", Group.REQUIRED, _pagemap_scan),
    Check("agent-permission", Group.REQUIRED, _agent_permission),
    Check("program-permission", Group.REQUIRED, _program_permission),
    Check("shim", Group.REQUIRED, _shim),
    Check("other-users", Group.SOME, _other_users),
    Check("map-count", Group.SOME, _map_count),
    Check("huge-pages", Group.SOME, _huge_pages),
    Check("async-write-protect", Group.EXPERIMENTAL, _async_write_protect),
)
"""Every check, in the order in which they are asked and printed."""


def _program() -> str:
    """Return the full name of the command, since sudo has a PATH of its own."""
    return shutil.which("uffdswap") or str(Path(sys.executable).with_name("uffdswap"))


def _sources() -> str:
    """Return what to give to pip, which knows no package of this name: the clone, if it is here."""
    folder = Path(__file__).resolve().parent.parent
    return shlex.quote(str(folder)) if (folder / "pyproject.toml").exists() else "CLONE"


def _new_interpreter() -> str:
    """Return the command that installs uffdswap with an interpreter of its own."""
    return _INTERPRETER_NEW.format(sources=_sources())


def _capable_interpreter() -> str:
    """Return the command that gives the agent its capability, for good."""
    if sys.prefix == sys.base_prefix:
        return _new_interpreter()
    return _INTERPRETER_COPY.format(python=sys.executable)


def _as_user(host: Host) -> str:
    return _AS_USER.format(user=host.user_id, group=host.group_id, program=_program())


# --- Results -------------------------------------------------------------------------------------


def examine(probe: Probe, host: Host) -> tuple[Finding, ...]:
    """Ask every check that makes sense here."""
    answers = ((check, check.ask(probe, host)) for check in CHECKS)
    return tuple(Finding(check.name, check.group, answer) for check, answer in answers if answer)


def is_ready(findings: tuple[Finding, ...], *, strict: bool = False) -> bool:
    """Tell whether nothing failed; strictly, nor warned."""
    bad = {Verdict.FAIL, Verdict.WARN} if strict else {Verdict.FAIL}
    return not any(finding.answer.verdict in bad for finding in findings)


def required_failures(probe: Probe, host: Host | None = None) -> tuple[Finding, ...]:
    """Return what stops `uffdswap run` here; `str()` of each is a line for the user.

    Quick: reads a few files and starts nothing, so the shim is not tried.
    """
    found = examine(probe, host or Host.read())
    return tuple(finding for finding in found if finding.answer.verdict is Verdict.FAIL)


def as_json(probe: Probe, findings: tuple[Finding, ...]) -> dict[str, object]:
    """Return the findings and the raw probe under the schema's names."""
    return {
        "schema": SCHEMA,
        "ready": is_ready(findings),
        "warnings": sum(finding.answer.verdict is Verdict.WARN for finding in findings),
        "checks": [
            {
                "name": finding.name,
                "group": finding.group.value,
                "verdict": finding.answer.verdict.value,
                "found": finding.answer.found,
                "why": finding.answer.why,
                "remedy_now": finding.answer.now,
                "remedy_kept": finding.answer.kept,
            }
            for finding in findings
        ],
        "probe": probe.as_dict(),
    }
