"""Programs that are run, and the packages they come in."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cellmesh.cli.checks.finding import Finding, Machine, Verdict
from cellmesh.cli.text import printable

OLDEST_VMM = 53
_VMM_RELEASES = "https://github.com/cloud-hypervisor/cloud-hypervisor/releases"
_SYSTEM_DIRECTORIES = "/usr/sbin:/sbin"
_VERSION = re.compile(r"v(\d+)\.(\d+)")
_ANSWER_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program of the distribution."""

    name: str
    package: str
    purpose: str


QEMU = Program(
    name="qemu-system-x86_64", package="qemu-system-x86", purpose="the emulator, for tests and demos without KVM"
)
MMDEBSTRAP = Program(name="mmdebstrap", package="mmdebstrap", purpose="`cellmesh image build`")
MKFS_EROFS = Program(name="mkfs.erofs", package="erofs-utils", purpose="`cellmesh image build` and `image import`")
MKE2FS = Program(name="mke2fs", package="e2fsprogs", purpose="the data disk of every VM")


def check_program(machine: Machine, program: Program, *, without_it: Verdict) -> Finding:
    """Find a program on the search path; `without_it` is the verdict if it is not there."""
    found = shutil.which(program.name, path=machine.search_path)
    if found is not None:
        return Finding(name=program.name, verdict=Verdict.OK, message=f"{found}, for {program.purpose}.")
    elsewhere = shutil.which(program.name, path=_SYSTEM_DIRECTORIES)
    if elsewhere is not None:
        return Finding(
            name=program.name,
            verdict=without_it,
            message=f"It is {elsewhere}, but PATH does not lead there; it is for {program.purpose}.",
            fix=f"export PATH=$PATH:{Path(elsewhere).parent}",
        )
    return Finding(
        name=program.name,
        verdict=without_it,
        message=f"It is not installed; it is for {program.purpose}.",
        fix=f"apt-get install --yes {program.package}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vmm:
    """The VMM's program as it was found."""

    finding: Finding
    is_emulated: bool
    """Whether it is a double that needs no KVM."""


def check_vmm(machine: Machine) -> Vmm:
    """Find the VMM's program and ask for its version."""
    found = shutil.which(machine.vmm, path=machine.search_path)
    if found is None:
        return _vmm(
            Verdict.FAIL,
            f"There is no program {printable(machine.vmm)}.",
            f"Install v{OLDEST_VMM} or later from {_VMM_RELEASES} as /usr/local/bin/cloud-hypervisor, or name it in "
            "CELLMESH_VMM; for tests and demos tools/emulator/install.sh gives a stand-in",
        )
    try:
        # As the node runs it: with nothing of our environment.
        answer = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True, env={}
        )
    except (OSError, subprocess.SubprocessError) as error:
        return _vmm(Verdict.FAIL, f"{found} does not say its version: {printable(str(error))}.", "Install it anew")
    version = printable(answer.stdout.partition("\n")[0])
    match = _VERSION.search(version)
    if match is None or int(match[1]) < OLDEST_VMM:
        return _vmm(
            Verdict.FAIL,
            f"{found} is {version or 'of no known version'}; needed is v{OLDEST_VMM} or later.",
            f"Install a later release from {_VMM_RELEASES}, or name one in CELLMESH_VMM",
        )
    is_emulated = "emulated" in version or "simulat" in version
    if is_emulated:
        return _vmm(
            Verdict.WARN,
            f"{found} is {version}: a stand-in for tests and demos, slow and without isolation by hardware.",
            f"For real use install v{OLDEST_VMM} or later from {_VMM_RELEASES}",
            is_emulated=True,
        )
    return _vmm(Verdict.OK, f"{found} is {version}.")


def _vmm(verdict: Verdict, message: str, fix: str = "", *, is_emulated: bool = False) -> Vmm:
    return Vmm(finding=Finding(name="vmm", verdict=verdict, message=message, fix=fix), is_emulated=is_emulated)
