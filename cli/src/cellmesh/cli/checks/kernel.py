"""What the kernel, and who we are to it, allow."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

from cellmesh.cli.checks.finding import Finding, Machine, Verdict

# linux/kvm.h: KVM_GET_API_VERSION is _IO(0xAE, 0x00); the API has been 12 since Linux 2.6.22.
_KVM_GET_API_VERSION = 0xAE00
_KVM_API = 12
# linux/timex.h: struct timex has 208 bytes on 64-bit machines; zeroed, adjtimex only reads.
_TIMEX_BYTES = 208
_TIME_ERROR = 5
_CONTROLLERS = frozenset({"cpu", "io", "memory", "pids"})


def check_root(machine: Machine) -> Finding:
    """Look whether each VM can get a uid of its own."""
    if machine.uid == 0:
        return Finding(name="root", verdict=Verdict.OK, message="Each VM gets a uid of its own.")
    return Finding(
        name="root",
        verdict=Verdict.WARN,
        message=f"Uid {machine.uid} can't give VMs uids of their own: they would share yours. Images can't be built.",
        fix="sudo cellmesh up",
    )


def check_kvm(machine: Machine, *, is_needed: bool) -> Finding:
    """Open KVM and ask for its API; whether a guest boots, only booting proves."""
    worst = Verdict.FAIL if is_needed else Verdict.WARN
    unneeded = "" if is_needed else " The VMM named here does without."
    try:
        descriptor = os.open(machine.kvm, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return _no_kvm(machine, error, worst, unneeded)
    try:
        api = fcntl.ioctl(descriptor, _KVM_GET_API_VERSION, 0)
    except OSError as error:
        message = f"{machine.kvm} is not KVM: {error.strerror}.{unneeded}"
        return Finding(name="kvm", verdict=worst, message=message, fix="modprobe kvm_intel || modprobe kvm_amd")
    finally:
        os.close(descriptor)
    if api != _KVM_API:
        message = f"{machine.kvm} speaks API {api}, not {_KVM_API}.{unneeded}"
        return Finding(name="kvm", verdict=worst, message=message, fix="Run a kernel with the standard KVM")
    if _is_virtual(machine):
        return Finding(
            name="kvm",
            verdict=Verdict.WARN,
            message="KVM answers, but this machine is itself virtual: only booting a guest proves that it works.",
            fix="cellmesh vm create --wait",
        )
    message = "KVM answers; only booting a guest proves that it works."
    return Finding(name="kvm", verdict=Verdict.OK, message=message)


def _no_kvm(machine: Machine, error: OSError, worst: Verdict, unneeded: str) -> Finding:
    if error.errno in (errno.EACCES, errno.EPERM):
        message = f"{machine.kvm} may not be opened by uid {machine.uid}.{unneeded}"
        return Finding(name="kvm", verdict=worst, message=message, fix='adduser "$USER" kvm')
    return Finding(
        name="kvm",
        verdict=worst,
        message=f"{machine.kvm} can't be opened: {error.strerror}.{unneeded}",
        fix="modprobe kvm_intel || modprobe kvm_amd (switch virtualisation on in the firmware, or nesting in the host)",
    )


def _is_virtual(machine: Machine) -> bool:
    try:
        lines = machine.cpuinfo.read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("flags") and "hypervisor" in line.split() for line in lines)


def check_cgroups(machine: Machine) -> Finding:
    """Look for the cgroup v2 controllers that hold a VM's use of the host in bounds."""
    try:
        present = set((machine.cgroup_root / "cgroup.controllers").read_text().split())
    except OSError:
        present = set()
    missing = sorted(_CONTROLLERS - present)
    if not missing:
        return Finding(name="cgroups", verdict=Verdict.OK, message="cgroup v2 has the controllers for limits per VM.")
    return Finding(
        name="cgroups",
        verdict=Verdict.WARN,
        message=f"cgroup v2 lacks {', '.join(missing)}: VMs run without limits of the host.",
        fix="Boot with the kernel parameter systemd.unified_cgroup_hierarchy=1",
    )


def check_user_namespaces(machine: Machine) -> Finding:
    """Look whether user namespaces may be made."""
    try:
        most = int(machine.user_namespaces.read_text())
    except (OSError, ValueError):
        most = 0
    if most > 0:
        return Finding(name="user-namespaces", verdict=Verdict.OK, message=f"{most} may be made.")
    return Finding(
        name="user-namespaces",
        verdict=Verdict.WARN,
        message="None may be made: only root can build images.",
        fix="sysctl --write user.max_user_namespaces=15000",
    )


def check_clock() -> Finding:
    """Ask the kernel whether something keeps the clock right; guests get theirs from it."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if 0 <= state < _TIME_ERROR:
        return Finding(name="clock", verdict=Verdict.OK, message="The clock is kept in step.")
    why = "The kernel does not say" if state < 0 else "Nothing tells the kernel"
    return Finding(
        name="clock",
        verdict=Verdict.WARN,
        message=f"{why} that the clock is right; guests get their time from it.",
        fix="apt-get install --yes systemd-timesyncd",
    )
