"""`cellmesh doctor` on this machine and on lesser ones."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cellmesh.cli.checks import Machine, Verdict, edge, examine, host, kernel
from unit.cli.conftest import Cellmesh


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Give a machine without anything: no programs, no KVM, no controllers, an unprivileged user."""
    return Machine(
        search_path="",
        vmm="cloud-hypervisor",
        envoy="/nonexistent/envoy",
        edge_listen="127.0.0.1:8443",
        run_dir=Path("/run/cellmesh"),
        state_dir=tmp_path / "state",
        uid=65534,
        kvm=tmp_path / "kvm",
        cgroup_root=tmp_path,
        user_namespaces=tmp_path / "max_user_namespaces",
    )


def program(directory: Path, name: str, says: str) -> Path:
    """Put a program that prints `says` into a directory of programs."""
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def verdicts(found: list[dict[str, str]]) -> dict[str, str]:
    """Return the verdict of each check by name."""
    return {finding["name"]: finding["verdict"] for finding in found}


def test_a_bare_machine_fails_with_a_way_out_for_each(machine: Machine) -> None:
    """Everything a VM can't do without is FAIL, and whatever is not OK names what mends it."""
    found = {finding.name: finding for finding in examine(machine)}
    failed = {name for name, finding in found.items() if finding.verdict is Verdict.FAIL}
    assert {"kvm", "vmm", "mke2fs", "mmdebstrap", "mkfs.erofs"} <= failed
    assert {found[name].verdict for name in ("root", "cgroups", "user-namespaces", "qemu-system-x86_64")} == {"WARN"}
    assert all(finding.fix for finding in found.values() if finding.verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("says", "verdict"),
    [
        ("cloud-hypervisor v53.0.0", "OK"),
        ("cloud-hypervisor v120.1", "OK"),
        ("cloud-hypervisor v52.9", "FAIL"),
        ("something else", "FAIL"),
        ("cloud-hypervisor v53.0-emulated-qemu-tcg", "WARN"),
    ],
)
def test_the_vmm_is_judged_by_what_it_says(says: str, verdict: str, machine: Machine, tmp_path: Path) -> None:
    """A VMM older than v53, or of no known version, fails; a double is named as such."""
    vmm = program(tmp_path, "vmm", says)
    found = {finding.name: finding for finding in examine(_with(machine, vmm=str(vmm)))}
    assert found["vmm"].verdict == verdict
    # A double needs no KVM, so that its absence is no longer fatal.
    assert found["kvm"].verdict == ("WARN" if "emulated" in says else "FAIL")


@pytest.mark.parametrize(
    ("says", "verdict"),
    [
        ("envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL", "OK"),
        ("envoy  version: 9e55/1.39.9/Clean/RELEASE/BoringSSL", "WARN"),
        ("something else", "WARN"),
    ],
)
def test_envoy_is_judged_by_what_it_says(says: str, verdict: str, machine: Machine, tmp_path: Path) -> None:
    """An Envoy that is too old, or of no known version, is named as such; VMs run without it."""
    envoy = program(tmp_path, "envoy", says)
    assert edge.check_envoy(_with(machine, envoy=str(envoy))).verdict == verdict


def test_envoy_is_found_where_it_was_installed(machine: Machine) -> None:
    """Without a name the installed wheel's is taken, wherever PATH leads; a name that leads nowhere is a warning."""
    assert edge.check_envoy(_with(machine, envoy="")).verdict is Verdict.OK
    assert edge.check_envoy(machine).verdict is Verdict.WARN


def test_an_address_that_is_taken_is_found_out(machine: Machine) -> None:
    """Somebody else's port, and what is no address, warn with a way out; a free one is well."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = edge.check_edge_address(_with(machine, edge_listen=address))
        assert (found.verdict, bool(found.fix)) == (Verdict.WARN, True)
    assert edge.check_edge_address(_with(machine, edge_listen=address)).verdict is Verdict.OK
    assert edge.check_edge_address(_with(machine, edge_listen="8443")).verdict is Verdict.WARN


def test_a_device_that_is_not_kvm_is_found_out(machine: Machine) -> None:
    """A device that opens but does not speak KVM's API fails."""
    assert kernel.check_kvm(_with(machine, kvm=Path("/dev/null")), is_needed=True).verdict is Verdict.FAIL


def test_long_run_directories_are_refused(machine: Machine) -> None:
    """A run directory whose sockets would exceed the kernel's limit fails before anything is made in it."""
    assert host.check_path_length(machine).verdict is Verdict.OK
    assert host.check_path_length(_with(machine, run_dir=Path("/" + "x" * 80))).verdict is Verdict.FAIL


def test_versions_are_judged() -> None:
    """An old Python fails, an SQLite with the WAL's fault warns, an ancient one fails."""
    assert host.check_python((3, 10, 9)).verdict is Verdict.FAIL
    assert host.check_sqlite(lambda: (3, 53, 4)).verdict is Verdict.OK
    assert host.check_sqlite(lambda: (3, 40, 1)).verdict is Verdict.WARN
    assert host.check_sqlite(lambda: (3, 34, 0)).verdict is Verdict.FAIL


def test_without_path_programs_are_missing(environment: Mapping[str, str]) -> None:
    """A real run with an empty PATH finds no program, says so, and ends with 1."""
    argv = [sys.executable, "-m", "cellmesh.cli", "doctor", "--json"]
    result = subprocess.run(argv, env={**environment, "PATH": ""}, capture_output=True, text=True, check=False)
    found = json.loads(result.stdout)
    assert result.returncode == 1
    assert not found["ok"]
    names = verdicts(found["checks"])
    assert (names["vmm"], names["mmdebstrap"], names["qemu-system-x86_64"]) == ("FAIL", "FAIL", "WARN")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_root_and_kvm(environment: Mapping[str, str], tmp_path: Path) -> None:
    """A real run as nobody, in a mount namespace without /dev/kvm, warns of the one and fails for the other."""
    site = [path for path in sys.path if path]
    if not _is_open_to_all(Path(sys.executable).resolve()):
        interpreter = shutil.which("python3", path="/usr/bin")
        if interpreter is None:
            pytest.skip("this interpreter lies where nobody else may go, and there is no other")
    else:
        interpreter = sys.executable
    program = "import sys; from cellmesh.cli.__main__ import main; sys.exit(main(['doctor', '--json']))"
    hide = 'mount -t tmpfs none /dev && exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"'
    argv = ["unshare", "--mount", "sh", "-c", hide, "sh", interpreter, "-c", program]
    visible = {**environment, "PYTHONPATH": ":".join(site), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(argv, env=visible, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stdout, result.stderr
    names = verdicts(json.loads(result.stdout)["checks"])
    assert (names["root"], names["kvm"]) == ("WARN", "FAIL")


def test_people_get_lines_with_the_command_that_helps(cellmesh: Cellmesh) -> None:
    """Without --json each check is a line with its verdict first."""
    lines = cellmesh("doctor").stdout.splitlines()
    checks = [line for line in lines if not line.startswith(" ")]
    assert {line.split()[0] for line in checks} <= {"OK", "WARN", "FAIL"}
    assert len(checks) == 19


def _with(machine: Machine, **changes: object) -> Machine:
    fields = {name: getattr(machine, name) for name in machine.__slots__}
    return Machine(**{**fields, **changes})


def _is_open_to_all(path: Path) -> bool:
    return all(directory.stat().st_mode & 0o001 for directory in path.parents)


@pytest.mark.parametrize("name", ["run_dir", "state_dir"])
def test_a_directory_that_other_uids_cannot_pass_is_named(machine: Machine, tmp_path: Path, name: str) -> None:
    """Root's node below a 0700 directory is FAIL with the chmod that mends it, and after that chmod it is not named."""
    closed = tmp_path / "closed for others"
    closed.mkdir(mode=0o700)
    usual = {"uid": 0, "run_dir": Path("/run/cellmesh"), "state_dir": Path("/var/lib/cellmesh")}
    there = replace(machine, **{**usual, name: closed / "made later" / "node"})
    found = host.check_passage(there)
    assert found.verdict is Verdict.FAIL
    assert str(closed) in found.message
    assert "chmod o+x" in found.fix
    assert f"'{closed}'" in found.fix
    subprocess.run(found.fix.partition(";")[0], shell=True, check=True)  # noqa: S602  # as a person does
    assert host.check_passage(there).verdict is Verdict.OK


def test_a_node_without_uids_of_its_own_may_lie_anywhere(machine: Machine, tmp_path: Path) -> None:
    """A user who is not root runs VMs under their own uid, which passes where they do."""
    tmp_path.chmod(0o700)
    assert host.check_passage(replace(machine, run_dir=tmp_path / "run")).verdict is Verdict.OK
