"""Packets of virtio-vsock (OASIS virtio 1.2, section 5.10)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from emulator.virtqueue import Chain

HOST_CID = 2
STREAM_TYPE = 1
SHUT_RECEIVE = 1
SHUT_SEND = 2
BUFFER_BYTES = 64 * 1024
HEADER = struct.Struct("<QQIIIHHIII")


class Operation(IntEnum):
    """What a packet is for."""

    REQUEST = 1
    RESPONSE = 2
    RESET = 3
    SHUTDOWN = 4
    DATA = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One packet of the guest; `payload` shares its memory and dies with the buffer."""

    target_cid: int
    host_port: int
    guest_port: int
    type: int
    operation: int
    flags: int
    buffer_bytes: int
    forwarded: int
    payload: list[memoryview]


def split_header(views: list[memoryview]) -> tuple[list[memoryview], list[memoryview]]:
    """Return the views of a buffer's header and those of what follows it."""
    header: list[memoryview] = []
    missing = HEADER.size
    for index, view in enumerate(views):
        header.append(view[:missing])
        missing -= len(header[-1])
        if missing == 0:
            rest = [view[len(header[-1]) :], *views[index + 1 :]]
            return header, [part for part in rest if part]
    return [], []


def decode(chain: Chain) -> Packet | None:
    """Read a packet the guest sends; None when the buffer is too small to be one."""
    header, rest = split_header(chain.readable)
    if not header:
        return None
    _source, target, guest_port, host_port, size, kind, operation, flags, room, forwarded = HEADER.unpack(
        b"".join(header)
    )
    payload = []
    for view in rest:
        payload.append(view[:size])
        size -= len(payload[-1])
    return Packet(
        target_cid=target,
        host_port=host_port,
        guest_port=guest_port,
        type=kind,
        operation=operation,
        flags=flags,
        buffer_bytes=room,
        forwarded=forwarded,
        payload=[part for part in payload if part],
    )
