"""The system calls a container may make: a list of what is allowed, all else answers EPERM or ENOSYS.

Modelled on the meaning of the OCI default profile: what ordinary programs use is allowed; what reaches the kernel's
configuration, other processes or new namespaces is not. A container runs without capabilities over the machine, so
there is no capability that would widen the list.
"""

from collections.abc import Set
from typing import Final

from cellmesh.guest.containers.syscalls import ALLOWED, UNKNOWN_TO_OLD_KERNELS

_EPERM = 1
_ENOSYS = 38
_EAFNOSUPPORT = 97
_AF_VSOCK = 40
_AF_ALG = 38
_AF_PACKET = 17
_AF_NETLINK = 16
_NETLINK_ROUTE = 0
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
_ORDINARY_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_INT = 0xFFFFFFFF
_PR_SET_SECCOMP = 22
_SOL_SOCKET = 1
# SO_ATTACH_FILTER, SO_TIMESTAMPING, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF and _EBPF, SO_ZEROCOPY, newer stamps.
_REFUSED_OPTIONS = frozenset({26, 37, 50, 51, 52, 60, 65})

Rule = dict[str, object]


def seccomp_profile(listener: str) -> dict[str, object]:
    """Return the `linux.seccomp` part of an OCI configuration; `listener` is the socket of `netlink.NetlinkBound`."""
    return {
        "listenerPath": listener,
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            _allow(list(ALLOWED)),
            # A C library that meets ENOSYS falls back; one that meets EPERM gives up.
            _refuse(list(UNKNOWN_TO_OLD_KERNELS), _ENOSYS),
            *_socket_rules(),
            # clone3 hides its flags in memory, where a filter cannot look: ENOSYS sends the C library to clone.
            _refuse(["clone3"], _ENOSYS),
            _allow(["clone"], _argument(0, _NAMESPACE_FLAGS, "SCMP_CMP_MASKED_EQ", 0)),
            *_prctl_rules(),
            *_setsockopt_rules(),
            *(_allow(["personality"], _argument(0, value, "SCMP_CMP_EQ")) for value in _ORDINARY_PERSONALITIES),
        ],
    }


def _socket_rules() -> list[Rule]:
    # AF_VSOCK would speak to the host in the agent's place. The allowed families are named, so that none is forgotten.
    allowed: Final = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
    rules = [_allow(["socket"], _argument(0, family, "SCMP_CMP_EQ")) for family in allowed.values()]
    netlink = (_argument(0, _AF_NETLINK, "SCMP_CMP_EQ"), _argument(2, _NETLINK_ROUTE, "SCMP_CMP_EQ"))
    # getifaddrs() asks here for its own interfaces; `netlink` counts who does.
    rules.append({"names": ["socket"], "action": "SCMP_ACT_NOTIFY", "args": list(netlink)})
    refused = (_AF_VSOCK, _AF_ALG, _AF_PACKET)
    rules.extend(_refuse(["socket"], _EAFNOSUPPORT, _argument(0, family, "SCMP_CMP_EQ")) for family in refused)
    return rules


def _prctl_rules() -> list[Rule]:
    # The kernel charges filters to no cgroup, and their compiled code comes from one pool.
    return [_allow(["prctl"], block) for block in _all_but(0, {_PR_SET_SECCOMP})]


def _setsockopt_rules() -> list[Rule]:
    # Filters as above; time stamps and notices of zero copy wait, unread, in memory that is charged to no cgroup.
    other_levels = [_allow(["setsockopt"], block) for block in _all_but(1, {_SOL_SOCKET})]
    of_sockets = _argument(1, _INT, "SCMP_CMP_MASKED_EQ", _SOL_SOCKET)
    return [*other_levels, *(_allow(["setsockopt"], of_sockets, block) for block in _all_but(2, _REFUSED_OPTIONS))]


def _all_but(index: int, refused: Set[int]) -> list[Rule]:
    """Return comparisons, of which each int but the refused ones meets one.

    "Not equal" would compare 64 bits, of which the kernel reads 32. So the numbers are named in blocks, by upper bits.
    """
    blocks = [(0, 1 << 32)]
    rules = []
    while blocks:
        first, size = blocks.pop()
        if not any(first <= number < first + size for number in refused):
            rules.append(_argument(index, _INT - (size - 1), "SCMP_CMP_MASKED_EQ", first))
        elif size > 1:
            blocks += [(first, size // 2), (first + size // 2, size // 2)]
    return rules


def _argument(index: int, value: int, operator: str, second: int | None = None) -> Rule:
    rule: Rule = {"index": index, "value": value, "op": operator}
    if second is not None:
        rule["valueTwo"] = second
    return rule


def _allow(names: list[str], *arguments: Rule) -> Rule:
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": list(arguments)}


def _refuse(names: list[str], errno: int, *arguments: Rule) -> Rule:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": list(arguments)}
