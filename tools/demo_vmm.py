"""Which VMM the demo runs on: what is asked for, what really boots a guest here, or the emulator."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from cellmesh.image.cache import default_cache
from demo_node import Cellmesh, DemoError

EMULATOR = Path(__file__).resolve().parent / "emulator" / "install.sh"
EMULATOR_PACKAGES = {"qemu-system-x86_64": "qemu-system-x86"}
TRIAL_TIMEOUT = "60s"


def install(packages: dict[str, str]) -> None:
    """Install the packages of programs that are missing."""
    missing = sorted(package for program, package in packages.items() if shutil.which(program) is None)
    if missing:
        print(f"installing {' '.join(missing)}", flush=True)
        install = f"apt-get install --yes --quiet --no-install-recommends {shlex.join(missing)}"
        # As the Makefile does: one at a time, as `apt-get update` waits for nobody.
        argv = ["flock", "/var/lib/dpkg", "sh", "-c", f"apt-get update --quiet && {install}"]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def choose_vmm(home: Path) -> str:
    """Return the VMM to use: the one asked for, one that really boots a guest here, or the emulator."""
    asked = os.environ.get("CELLMESH_VMM")
    if asked:
        return asked
    native = shutil.which("cloud-hypervisor")
    if native is not None and Path("/dev/kvm").exists() and boots(Cellmesh(home / "trial", native)):
        return native
    install(EMULATOR_PACKAGES)
    answer = subprocess.run(
        ["sh", EMULATOR, default_cache() / "emulator"], check=True, stdout=subprocess.PIPE, text=True
    )
    return answer.stdout.splitlines()[-1]


def boots(cellmesh: Cellmesh) -> bool:
    """Tell whether the VMM boots a guest here: /dev/kvm may exist, open, and still be of no use."""
    try:
        cellmesh.run("image", "build")
        with cellmesh.node():
            cellmesh.run("vm", "create", "--wait", "--timeout", TRIAL_TIMEOUT)
            return True
    except DemoError as error:
        print(f"{cellmesh.environment['CELLMESH_VMM']} boots no guest here ({error}); using the emulator.")
        return False


def label_of(vmm: str) -> str:
    """Return what the numbers of a run on `vmm` are worth."""
    said = subprocess.run([vmm, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    if "emulated" in said:
        return "ran EMULATED (QEMU TCG): times are not those of real hardware"
    return "ran on KVM"
