"""The back end's half of the vhost-user protocol, for one device with split rings and a configuration space.

Protocol: https://qemu-project.gitlab.io/qemu/interop/vhost-user.html
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from emulator.guest_memory import GuestMemory, map_region
from emulator.virtqueue import Virtqueue

_HEADER = struct.Struct("<III")
_VERSION = 1
_REPLY = 1 << 2
_FD_MASK = 0xFF
_VIRTIO_F_VERSION_1 = 1 << 32
_F_PROTOCOL_FEATURES = 1 << 30
_PROTOCOL_F_CONFIG = 1 << 9

_GET_FEATURES, _SET_FEATURES, _SET_OWNER, _RESET_OWNER, _SET_MEM_TABLE = 1, 2, 3, 4, 5
_SET_VRING_NUM, _SET_VRING_ADDR, _SET_VRING_BASE, _GET_VRING_BASE = 8, 9, 10, 11
_SET_VRING_KICK, _SET_VRING_CALL, _SET_VRING_ERR = 12, 13, 14
_GET_PROTOCOL_FEATURES, _SET_PROTOCOL_FEATURES, _GET_QUEUE_NUM, _SET_VRING_ENABLE = 15, 16, 17, 18
_GET_CONFIG = 24


class FrontEndGoneError(Exception):
    """The front end closed its socket."""


class ProtocolError(Exception):
    """The front end asked for something this back end never offered."""


@dataclass(slots=True, kw_only=True)
class _Ring:
    size: int = 0
    addresses: tuple[int, int, int] = (0, 0, 0)
    base: int = 0
    kick: int | None = None
    call: int | None = None
    enabled: bool = False
    queue: Virtqueue | None = None


class BackEnd:
    """Answers one front end; `ring_changed(index)` is called whenever a ring starts or stops."""

    def __init__(
        self, front_end: socket.socket, *, config: bytes, rings: int, ring_changed: Callable[[int], None]
    ) -> None:
        self.front_end = front_end
        self._config = config
        self._rings = [_Ring() for _ in range(rings)]
        self._memory = GuestMemory([])
        self._ring_changed = ring_changed
        self._handlers: dict[int, Callable[[bytes, list[int]], bytes | None]] = {
            _GET_FEATURES: lambda _body, _fds: struct.pack("<Q", _VIRTIO_F_VERSION_1 | _F_PROTOCOL_FEATURES),
            _SET_FEATURES: _ignore,
            _SET_OWNER: _ignore,
            _RESET_OWNER: _ignore,
            _SET_MEM_TABLE: self._set_memory,
            _SET_VRING_NUM: self._set_size,
            _SET_VRING_ADDR: self._set_addresses,
            _SET_VRING_BASE: self._set_base,
            _GET_VRING_BASE: self._stop_ring,
            _SET_VRING_KICK: self._set_kick,
            _SET_VRING_CALL: self._set_call,
            _SET_VRING_ERR: _ignore,
            _GET_PROTOCOL_FEATURES: lambda _body, _fds: struct.pack("<Q", _PROTOCOL_F_CONFIG),
            _SET_PROTOCOL_FEATURES: _ignore,
            _GET_QUEUE_NUM: lambda _body, _fds: struct.pack("<Q", rings),
            _SET_VRING_ENABLE: self._enable,
            _GET_CONFIG: self._get_config,
        }

    def queue(self, index: int) -> tuple[Virtqueue, int] | None:
        """Return a started ring and the descriptor that its driver kicks, or None while it is stopped."""
        ring = self._rings[index]
        return (ring.queue, ring.kick) if ring.queue is not None and ring.kick is not None else None

    def serve_one(self) -> None:
        """Read and answer one message; raises FrontEndGoneError, ProtocolError."""
        try:
            self._serve_one()
        except ConnectionError as error:
            raise FrontEndGoneError from error  # it was killed with words of ours unread

    def _serve_one(self) -> None:
        head, descriptors = self._receive_header()
        request, _flags, size = _HEADER.unpack(head)
        body = self._receive(size)
        handler = self._handlers.get(request)
        if handler is None:
            message = f"vhost-user request {request} was never offered"
            raise ProtocolError(message)
        answer = handler(body, descriptors)
        if answer is not None:
            self.front_end.sendall(_HEADER.pack(request, _VERSION | _REPLY, len(answer)) + answer)

    def close(self) -> None:
        """Close every descriptor the front end gave."""
        for index, ring in enumerate(self._rings):
            ring.queue = None
            self._ring_changed(index)
            _close(ring.kick, ring.call)
            ring.kick = ring.call = None
        self.front_end.close()

    def _receive_header(self) -> tuple[bytes, list[int]]:
        descriptors = array.array("i")
        data, ancillary, _flags, _address = self.front_end.recvmsg(_HEADER.size, socket.CMSG_SPACE(8 * 4))
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % 4])
        if not data:
            raise FrontEndGoneError
        return data + self._receive(_HEADER.size - len(data)), descriptors.tolist()

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.front_end.recv(size - len(data))
            if not part:
                raise FrontEndGoneError
            data += part
        return data

    def _set_memory(self, body: bytes, descriptors: list[int]) -> None:
        (count,) = struct.unpack_from("<I", body)
        regions = []
        for index, descriptor in zip(range(count), descriptors, strict=True):
            guest, size, user, offset = struct.unpack_from("<QQQQ", body, 8 + 32 * index)
            regions.append(map_region(descriptor, guest_address=guest, user_address=user, size=size, offset=offset))
        self._memory = GuestMemory(regions)
        for ring_index, ring in enumerate(self._rings):
            if ring.queue is not None:
                ring.base, ring.queue = ring.queue.last_available, None
                self._start_ring(ring_index)

    def _set_size(self, body: bytes, _descriptors: list[int]) -> None:
        index, size = struct.unpack("<II", body)
        self._rings[index].size = size

    def _set_addresses(self, body: bytes, _descriptors: list[int]) -> None:
        index, _flags, descriptors, used, available, _log = struct.unpack("<IIQQQQ", body)
        self._rings[index].addresses = (descriptors, available, used)

    def _set_base(self, body: bytes, _descriptors: list[int]) -> None:
        index, base = struct.unpack("<II", body)
        self._rings[index].base = base

    def _stop_ring(self, body: bytes, _descriptors: list[int]) -> bytes:
        index, _unused = struct.unpack("<II", body)
        ring = self._rings[index]
        if ring.queue is not None:
            ring.base, ring.queue = ring.queue.last_available, None
        self._ring_changed(index)
        _close(ring.kick)
        ring.kick = None
        return struct.pack("<II", index, ring.base)

    def _set_kick(self, body: bytes, descriptors: list[int]) -> None:
        ring = self._rings[body[0] & _FD_MASK]
        _close(ring.kick)
        ring.kick = descriptors[0] if descriptors else None
        self._start_ring(body[0] & _FD_MASK)

    def _set_call(self, body: bytes, descriptors: list[int]) -> None:
        ring = self._rings[body[0] & _FD_MASK]
        _close(ring.call)
        ring.call = descriptors[0] if descriptors else None
        if ring.queue is not None:
            ring.queue.call = ring.call

    def _enable(self, body: bytes, _descriptors: list[int]) -> None:
        index, enabled = struct.unpack("<II", body)
        self._rings[index].enabled = bool(enabled)
        self._start_ring(index)

    def _start_ring(self, index: int) -> None:
        ring = self._rings[index]
        if ring.kick is None or not ring.enabled or ring.queue is not None:
            return
        descriptors, available, used = ring.addresses
        ring.queue = Virtqueue(self._memory, size=ring.size, descriptors=descriptors, available=available, used=used)
        ring.queue.last_available, ring.queue.call = ring.base, ring.call
        self._ring_changed(index)

    def _get_config(self, body: bytes, _descriptors: list[int]) -> bytes:
        offset, size, flags = struct.unpack_from("<III", body)
        content = self._config[offset : offset + size].ljust(size, b"\0")
        return struct.pack("<III", offset, size, flags) + content


def _ignore(_body: bytes, descriptors: list[int]) -> None:
    _close(*descriptors)


def _close(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)
