# SPDX-License-Identifier: MIT
# Goal: doctor says what is missing and what would help, and run refuses by the same words.
# Method: recorded /proc trees and made-up probes, one per way in which a machine can be lacking.
"""The checks, their verdicts and their JSON."""

import errno
import json
from pathlib import Path

import pytest

from uffdswap import doctor
from uffdswap._lib import Probe
from uffdswap._lib import probe as ask_kernel
from uffdswap.doctor import Finding, Group, Host, Verdict

ALL_FEATURES = (1 << 17) - 1
MOVE = 1 << 16
POISON = 1 << 14
CAP_SYS_PTRACE = 1 << 19

ROOT = Probe(
    open_error=0,
    syscall_error=0,
    device_error=0,
    api_error=0,
    sysctl_unprivileged=0,
    features=ALL_FEATURES,
    features_missing=0,
    has_move=True,
    has_pagemap_scan=True,
    has_clone3=True,
    has_ptrace_capability=True,
    page_bytes=4096,
)
USER = ROOT.replaced(
    open_error=errno.EPERM,
    syscall_error=errno.EPERM,
    device_error=errno.EACCES,
    api_error=errno.EPERM,
    has_ptrace_capability=False,
)
CAPABLE_AGENT = ROOT.replaced(device_error=errno.EACCES)


def write_tree(
    root: Path,
    *,
    user_id: int = 0,
    ambient: int = 0,
    arch: str = "x86_64",
    uid_map: str = "         0          0 4294967295",
    map_count: str = "65530",
) -> Path:
    """Write the files that doctor reads, as a kernel would."""
    files = {
        "proc/self/status": f"Name:\tpython\nUid:\t{user_id}\t{user_id}\t{user_id}\t{user_id}\n"
        f"Gid:\t{user_id}\t{user_id}\t{user_id}\t{user_id}\nCapAmb:\t{ambient:016x}\nSeccomp:\t0\n",
        "proc/self/uid_map": uid_map + "\n",
        "proc/sys/kernel/osrelease": "6.18.44\n",
        "proc/sys/kernel/arch": arch + "\n",
        "proc/sys/vm/max_map_count": map_count + "\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def findings(probe: Probe, root: Path, shim_error: str | None = "") -> dict[str, Finding]:
    host = Host.read(root, shim_error=shim_error)
    return {finding.name: finding for finding in doctor.examine(probe, host)}


def failures(found: dict[str, Finding]) -> list[str]:
    return [name for name, one in found.items() if one.answer.verdict is Verdict.FAIL]


def test_a_capable_machine_is_ready(tmp_path: Path) -> None:
    found = findings(ROOT, write_tree(tmp_path))
    assert failures(found) == []
    assert found["kernel"].answer.found == "kernel 6.18.44, x86_64, 4 KiB pages"
    assert "17 of 17" in found["userfaultfd"].answer.found
    assert found["huge-pages"].answer.found == "transparent huge pages: madvise"


def test_every_problem_comes_with_its_reason(tmp_path: Path) -> None:
    root = write_tree(tmp_path, user_id=1000, map_count="1000")
    for probe in (ROOT, USER, ROOT.replaced(features=0, syscall_error=errno.ENOSYS)):
        for finding in findings(probe, root, "broken").values():
            if finding.answer.verdict is not Verdict.OK:
                assert finding.answer.why


def test_only_required_checks_can_fail(tmp_path: Path) -> None:
    root = write_tree(tmp_path, user_id=1000, map_count="1000")
    nothing = USER.replaced(
        features=0, features_missing=ALL_FEATURES, has_move=False, has_pagemap_scan=False
    )
    for finding in findings(nothing, root, "broken").values():
        if finding.group is not Group.REQUIRED:
            assert finding.answer.verdict is not Verdict.FAIL


@pytest.mark.parametrize(
    ("probe", "check", "says"),
    [
        pytest.param(
            ROOT.replaced(features=ALL_FEATURES & ~MOVE, features_missing=MOVE),
            "features",
            "MOVE (Linux 6.8)",
            id="kernel-before-move",
        ),
        pytest.param(
            ROOT.replaced(features=ALL_FEATURES & ~(MOVE | POISON), features_missing=MOVE | POISON),
            "features",
            "POISON (Linux 6.6), MOVE (Linux 6.8)",
            id="two-missing",
        ),
        pytest.param(ROOT.replaced(has_move=False), "move", "does not work", id="broken-move"),
        pytest.param(
            ROOT.replaced(has_pagemap_scan=False),
            "pagemap-scan",
            "PAGEMAP_SCAN",
            id="no-pagemap-scan",
        ),
        pytest.param(ROOT.replaced(page_bytes=65536), "kernel", "64 KiB pages", id="large-pages"),
        pytest.param(
            ROOT.replaced(
                features=0,
                features_missing=ALL_FEATURES,
                has_move=False,
                open_error=errno.ENOSYS,
                syscall_error=errno.ENOSYS,
                device_error=errno.ENOENT,
                api_error=errno.ENOSYS,
            ),
            "userfaultfd",
            "Function not implemented",
            id="not-in-the-kernel",
        ),
        pytest.param(
            ROOT.replaced(
                features=0,
                features_missing=ALL_FEATURES,
                has_move=False,
                open_error=errno.EPERM,
                syscall_error=errno.EPERM,
                device_error=errno.ENOENT,
                api_error=errno.EPERM,
            ),
            "userfaultfd",
            "blocked",
            id="blocked-by-a-filter",
        ),
    ],
)
def test_one_cause_is_one_failure(tmp_path: Path, probe: Probe, check: str, says: str) -> None:
    found = findings(probe, write_tree(tmp_path))
    assert failures(found) == [check]
    assert says in found[check].answer.found


@pytest.mark.parametrize("arch", ["aarch64", "riscv64"])
def test_another_architecture_is_refused(tmp_path: Path, arch: str) -> None:
    found = findings(ROOT, write_tree(tmp_path, arch=arch))
    assert failures(found) == ["kernel"]
    assert arch in found["kernel"].answer.found
    assert "x86_64 only" in found["kernel"].answer.why


def test_an_ordinary_user_lacks_both_permissions(tmp_path: Path) -> None:
    found = findings(USER, write_tree(tmp_path, user_id=1000))
    assert failures(found) == ["agent-permission", "program-permission"]
    assert "--reuid=1000" in found["agent-permission"].answer.now
    assert "setcap cap_sys_ptrace+ep" in found["agent-permission"].answer.kept
    assert "vm.unprivileged_userfaultfd=1" in found["program-permission"].answer.now


def test_the_sysctl_alone_does_not_give_fork_events(tmp_path: Path) -> None:
    probe = USER.replaced(open_error=0, syscall_error=0, sysctl_unprivileged=1)
    found = findings(probe, write_tree(tmp_path, user_id=1000))
    assert failures(found) == ["agent-permission"]


def test_the_device_alone_does_not_give_fork_events(tmp_path: Path) -> None:
    probe = USER.replaced(open_error=0, device_error=0)
    found = findings(probe, write_tree(tmp_path, user_id=1000))
    assert failures(found) == ["agent-permission"]


def test_a_capability_on_the_interpreter_does_not_reach_the_program(tmp_path: Path) -> None:
    found = findings(CAPABLE_AGENT, write_tree(tmp_path, user_id=1000))
    assert failures(found) == ["program-permission"]
    assert "sysctl" in found["program-permission"].answer.now


@pytest.mark.parametrize(
    "probe",
    [
        pytest.param(CAPABLE_AGENT.replaced(sysctl_unprivileged=1), id="sysctl"),
        pytest.param(CAPABLE_AGENT.replaced(device_error=0), id="device"),
    ],
)
def test_a_capable_agent_and_an_open_door_are_enough(tmp_path: Path, probe: Probe) -> None:
    assert failures(findings(probe, write_tree(tmp_path, user_id=1000))) == []


def test_an_ambient_capability_serves_agent_and_program(tmp_path: Path) -> None:
    root = write_tree(tmp_path, user_id=1000, ambient=CAP_SYS_PTRACE)
    assert failures(findings(CAPABLE_AGENT, root)) == []


def test_a_capability_in_a_user_namespace_counts_for_nothing(tmp_path: Path) -> None:
    probe = ROOT.replaced(open_error=0, api_error=errno.EPERM)
    found = findings(probe, write_tree(tmp_path, uid_map="0 1000 1"))
    assert failures(found) == ["agent-permission"]
    assert "user namespace" in found["agent-permission"].answer.found


def test_root_of_a_container_is_told_about_the_container(tmp_path: Path) -> None:
    probe = ROOT.replaced(api_error=errno.EPERM, has_ptrace_capability=False)
    found = findings(probe, write_tree(tmp_path))
    assert "--cap-add=SYS_PTRACE" in found["agent-permission"].answer.now


def test_few_mappings_are_a_warning_with_both_remedies(tmp_path: Path) -> None:
    answer = findings(ROOT, write_tree(tmp_path, map_count="1000"))["map-count"].answer
    assert answer.verdict is Verdict.WARN
    assert answer.now
    assert answer.kept


def test_an_empty_tree_is_survived(tmp_path: Path) -> None:
    found = findings(ROOT, tmp_path)
    assert "unknown" in found["kernel"].answer.found
    assert "map-count" not in found
    assert "huge-pages" not in found


def test_a_shim_that_does_not_load_is_a_failure(tmp_path: Path) -> None:
    found = findings(ROOT, write_tree(tmp_path), "wrong ELF class")
    assert failures(found) == ["shim"]
    assert "wrong ELF class" in found["shim"].answer.found


def test_what_is_installed_comes_from_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(doctor.__file__).parent.parent
    assert f"pip install {folder} " in doctor._new_interpreter()
    monkeypatch.setattr(doctor, "__file__", "/opt/env/lib/uffdswap/doctor.py")
    assert "pip install CLONE " in doctor._new_interpreter()


def test_load_shim_tells_missing_from_broken(tmp_path: Path) -> None:
    broken = tmp_path / "libbroken.so"
    assert "is missing" in doctor.load_shim(broken)
    broken.write_text("not a library")
    assert "libbroken.so" in doctor.load_shim(broken)


def test_the_first_required_failure_is_a_line_for_run(tmp_path: Path) -> None:
    host = Host.read(write_tree(tmp_path, user_id=1000))
    lines = [str(finding) for finding in doctor.required_failures(USER, host)]
    assert len(lines) == 2
    assert "CAP_SYS_PTRACE" in lines[0]
    assert "forked child would read zeros" in lines[0]
    assert all("\n" not in line for line in lines)


def test_strict_lets_warnings_fail(tmp_path: Path) -> None:
    host = Host.read(write_tree(tmp_path, map_count="1000"))
    found = doctor.examine(ROOT, host)
    assert doctor.is_ready(found)
    assert not doctor.is_ready(found, strict=True)


def test_json_has_the_schema_and_survives_a_round_trip(tmp_path: Path) -> None:
    found = doctor.examine(USER, Host.read(write_tree(tmp_path, user_id=1000)))
    document = json.loads(json.dumps(doctor.as_json(USER, found)))
    assert document["schema"] == "uffdswap.doctor/1"
    assert document["ready"] is False
    assert document["probe"]["api_error"] == errno.EPERM
    assert {key for check in document["checks"] for key in check} == {
        "name",
        "group",
        "verdict",
        "found",
        "why",
        "remedy_now",
        "remedy_kept",
    }


def test_check_names_are_unique() -> None:
    names = [check.name for check in doctor.CHECKS]
    assert len(names) == len(set(names))


def test_the_real_probe_agrees_with_itself() -> None:
    probe = ask_kernel()
    assert probe.features & probe.features_missing == 0
    assert bool(probe.open_error) == bool(probe.syscall_error and probe.device_error)
