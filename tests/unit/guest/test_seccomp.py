"""The system calls a container may make."""

from __future__ import annotations

from typing import Any

import pytest

from cellmesh.guest.containers.seccomp import seccomp_profile

_FORBIDDEN_NAMES = (
    "mount umount2 pivot_root chroot unshare setns bpf perf_event_open keyctl add_key request_key ptrace "
    "process_vm_readv process_vm_writev kexec_load kexec_file_load init_module finit_module delete_module "
    "open_by_handle_at userfaultfd reboot swapon swapoff settimeofday clock_settime adjtimex iopl ioperm "
    "sethostname syslog acct quotactl nfsservctl lookup_dcookie vhangup kcmp move_pages mbind modify_ldt fanotify_init"
)


def _rules(name: str) -> list[dict[str, object]]:
    return [rule for rule in seccomp_profile("/run/listener")["syscalls"] if name in rule["names"]]  # type: ignore[attr-defined,index]


def test_what_is_not_named_is_refused() -> None:
    """The default is a refusal with EPERM, not a kill and not a pass."""
    profile = seccomp_profile("/run/listener")
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)


def test_only_the_native_architecture_is_spoken() -> None:
    """Through another architecture's calls no rule is passed by."""
    assert seccomp_profile("/run/listener")["architectures"] == ["SCMP_ARCH_X86_64"]


@pytest.mark.parametrize("name", _FORBIDDEN_NAMES.split())
def test_calls_that_reach_the_machine_are_never_allowed(name: str) -> None:
    """No rule allows a call that configures the kernel, reaches other processes or makes namespaces."""
    assert all(rule["action"] != "SCMP_ACT_ALLOW" for rule in _rules(name))


def test_no_vsock_and_no_raw_families() -> None:
    """A container can make unix, IPv4, IPv6 and route sockets, and no AF_VSOCK socket."""
    allowed = {rule["args"][0]["value"] for rule in _rules("socket") if rule["action"] == "SCMP_ACT_ALLOW"}  # type: ignore[index]
    counted = [rule["args"][0]["value"] for rule in _rules("socket") if rule["action"] == "SCMP_ACT_NOTIFY"]  # type: ignore[index]
    assert (allowed, counted) == ({1, 2, 10}, [16])
    assert all(rule["args"][0]["op"] == "SCMP_CMP_EQ" for rule in _rules("socket"))  # type: ignore[index]
    (vsock,) = [rule for rule in _rules("socket") if rule["args"][0]["value"] == 40]  # type: ignore[index]
    assert (vsock["action"], vsock["errnoRet"]) == ("SCMP_ACT_ERRNO", 97)


def test_a_clone_makes_no_namespace() -> None:
    """A clone is allowed only without every CLONE_NEW flag, and clone3 sends the C library to it."""
    (clone,) = _rules("clone")
    (argument,) = clone["args"]  # type: ignore[misc]
    assert argument == {"index": 0, "value": 0x7E020000, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 0}
    (clone3,) = _rules("clone3")
    assert clone3["errnoRet"] == 38


@pytest.mark.parametrize(
    "name", ["read", "openat", "execve", "futex", "epoll_wait", "accept4", "statx", "rseq", "vfork"]
)
def test_what_ordinary_programs_need_is_allowed(name: str) -> None:
    """The list is not so short that nothing runs."""
    assert any(rule["action"] == "SCMP_ACT_ALLOW" and not rule["args"] for rule in _rules(name))


@pytest.mark.parametrize("name", ["io_uring_setup", "io_setup", "io_submit", "seccomp"])
def test_what_no_cgroup_counts_is_refused_as_by_an_old_kernel(name: str) -> None:
    """Rings, native AIO and filters take kernel memory outside any cgroup; programs do without them."""
    (rule,) = _rules(name)
    assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


@pytest.mark.parametrize("option", [0, 15, 21, 23, 38, 0x53564D41, 0xFFFFFFFF])
def test_prctl_takes_every_option_but_one(option: int) -> None:
    """PR_SET_SECCOMP is refused, with any upper half, which the kernel does not read; no other option is."""
    assert _passes("prctl", option)
    assert not _passes("prctl", 22)
    assert not _passes("prctl", 22 + (1 << 32))


@pytest.mark.parametrize("option", [26, 37, 50, 51, 52, 60, 65])
def test_sockets_take_no_option_that_holds_uncounted_memory(option: int) -> None:
    """Filters, time stamps and notices of zero copy are refused at the level of sockets, and at no other."""
    for upper in (0, 1 << 32):
        assert not _passes("setsockopt", 3, 1 + upper, option + upper)
    assert _passes("setsockopt", 3, 6, option)
    assert _passes("setsockopt", 3, 1, option + 1 if option not in {50, 51} else 53)


def _passes(name: str, *arguments: int) -> bool:
    """Return whether a rule of the profile allows the call."""

    def meets(rule: dict[str, Any]) -> bool:
        found = arguments[rule["index"]]
        if rule["op"] == "SCMP_CMP_EQ":
            return found == rule["value"]
        return found & rule["value"] == rule["valueTwo"]

    rules: list[dict[str, Any]] = [rule for rule in _rules(name) if rule["action"] == "SCMP_ACT_ALLOW"]
    return any(all(meets(argument) for argument in rule["args"]) for rule in rules)
