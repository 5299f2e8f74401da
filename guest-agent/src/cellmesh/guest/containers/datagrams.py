"""A bound on the datagram sockets of a container: what they hold unsent or unread as errors is charged to no cgroup.

The kernel keeps the count: two programs of its virtual machine (BPF) at the container's cgroup put each new socket that
is no stream into a table of fixed size and take it out when it is closed. Where the table is full, socket() fails.
"""

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path

MOST_SOCKETS = 128
"""Each can hold about 64 KiB unsent and twice the largest receive buffer in unread errors."""

_BPF = 321
_MAP_CREATE, _PROG_LOAD, _PROG_ATTACH = 0, 5, 8
_HASH, _NO_PREALLOCATION, _CGROUP_SOCK = 1, 1, 9
_SOCK_CREATE, _SOCK_RELEASE = 2, 34
_UPDATE, _DELETE, _COOKIE = 2, 3, 46  # helper functions
_PROG_ATTRIBUTES = "=IIQQIIQII16sII"
_SOCK_STREAM, _TYPE_OFFSET = 1, 8  # of struct bpf_sock

_libc = ctypes.CDLL(None, use_errno=True)


def bound_datagrams(cgroup: Path) -> list[str]:
    """Bound the datagram sockets of a cgroup; returns a sentence if the kernel does not offer it."""
    opened: list[int] = []
    try:
        table = _bpf(_MAP_CREATE, struct.pack("=5I", _HASH, 8, 8, MOST_SOCKETS, _NO_PREALLOCATION))
        opened.append(table)
        opened.append(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for kind, program in ((_SOCK_CREATE, _at_creation(table)), (_SOCK_RELEASE, _at_release(table))):
            opened.append(_load(program, kind))
            _bpf(_PROG_ATTACH, struct.pack("=4I", opened[1], opened[-1], kind, 0))
    except OSError as error:
        return [f"datagram sockets are not bounded: {error.strerror}"]
    finally:
        # The cgroup keeps its programs, and they the table.
        for descriptor in opened:
            os.close(descriptor)
    return []


def _at_creation(table: int) -> Sequence[bytes]:
    return (
        _instruction(0x61, 2, 1, offset=_TYPE_OFFSET),  # r2 = socket.type
        _instruction(0x15, 2, offset=13, value=_SOCK_STREAM),  # a stream: go to "allowed"
        *_cookie_on_stack(),
        *_key(table),
        _instruction(0xBF, 3, 10),
        _instruction(0x07, 3, value=-8),  # r3 = value: the key once more
        _instruction(0xB7, 4),  # r4 = flags: none
        _instruction(0x85, value=_UPDATE),
        _instruction(0x15, 0, offset=2),  # it is in the table: go to "allowed"
        _instruction(0xB7, 0),
        _instruction(0x95),
        _instruction(0xB7, 0, value=1),  # allowed
        _instruction(0x95),
    )


def _at_release(table: int) -> Sequence[bytes]:
    return (
        *_cookie_on_stack(),
        *_key(table),
        _instruction(0x85, value=_DELETE),
        _instruction(0xB7, 0, value=1),
        _instruction(0x95),
    )


def _cookie_on_stack() -> Sequence[bytes]:
    return _instruction(0x85, value=_COOKIE), _instruction(0x7B, 10, 0, offset=-8)


def _key(table: int) -> Sequence[bytes]:
    return (
        _instruction(0x18, 1, 1, value=table),  # r1 = table, an instruction of double length
        _instruction(0),
        _instruction(0xBF, 2, 10),
        _instruction(0x07, 2, value=-8),  # r2 = where the cookie is
    )


def _instruction(code: int, target: int = 0, source: int = 0, *, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, target | source << 4, offset, value)


def _load(program: Sequence[bytes], kind: int) -> int:
    code = ctypes.create_string_buffer(b"".join(program))
    license_name = ctypes.create_string_buffer(b"none")
    pointers = ctypes.addressof(code), ctypes.addressof(license_name)
    attributes = struct.pack(_PROG_ATTRIBUTES, _CGROUP_SOCK, len(program), *pointers, 0, 0, 0, 0, 0, b"", 0, kind)
    return _bpf(_PROG_LOAD, attributes)


def _bpf(command: int, attributes: bytes) -> int:
    result: int = _libc.syscall(ctypes.c_long(_BPF), ctypes.c_int(command), attributes, ctypes.c_uint(len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
