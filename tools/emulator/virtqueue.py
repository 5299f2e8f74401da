"""A split virtqueue seen from the device.

Notifications are suppressed in neither direction: a spurious interrupt is allowed by the specification, and without
suppression no store has to be ordered before a load, which Python could not promise.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from emulator.guest_memory import BadAddressError, GuestMemory

_DESCRIPTOR = struct.Struct("<QIHH")
_USED_ELEMENT = struct.Struct("<II")
_NEXT = 1
_WRITE = 2
_INDIRECT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """One buffer of the driver: what the device may read, then what it may write."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class Virtqueue:
    """One ring; `last_available` survives a stop, as the front end asks for it."""

    def __init__(self, memory: GuestMemory, *, size: int, descriptors: int, available: int, used: int) -> None:
        self._memory = memory
        self._size = size
        region, start = memory.locate(descriptors)
        self._descriptors = region.octets[start : start + 16 * size]
        region, start = memory.locate(available)
        self._available = region.words[start // 2 : start // 2 + 2 + size]
        region, start = memory.locate(used)
        self._used_words = region.words[start // 2 : start // 2 + 2]
        self._used_ring = region.octets[start + 4 : start + 4 + 8 * size]
        self._used_index = int(self._used_words[1])
        self.last_available = 0
        self.call: int | None = None
        self._pushed = False

    @property
    def empty(self) -> bool:
        """Whether the driver has offered nothing new."""
        return self.last_available == self._available[1]

    def pop(self) -> Chain | None:
        """Take the next buffer, None when there is none; raises BadAddressError on a malformed chain."""
        if self.empty:
            return None
        head = int(self._available[2 + self.last_available % self._size])
        self.last_available = (self.last_available + 1) & 0xFFFF
        return self._walk(head)

    def put_back(self) -> None:
        """Undo the last pop: the driver's buffer stays on offer."""
        self.last_available = (self.last_available - 1) & 0xFFFF

    def _walk(self, head: int) -> Chain:
        chain = Chain(head=head, readable=[], writable=[])
        table, index, limit = self._descriptors, head, self._size
        for _ in range(limit + 1):
            if 16 * index + 16 > len(table):
                break
            address, size, flags, following = _DESCRIPTOR.unpack_from(table, 16 * index)
            if flags & _INDIRECT:
                table, index = self._memory.view(address, size), 0
                continue
            (chain.writable if flags & _WRITE else chain.readable).append(self._memory.view(address, size))
            if not flags & _NEXT:
                return chain
            index = following
        message = f"descriptor chain {head} does not end"
        raise BadAddressError(message)

    def push(self, chain: Chain, written: int) -> None:
        """Give a buffer back with `written` bytes in it."""
        _USED_ELEMENT.pack_into(self._used_ring, 8 * (self._used_index % self._size), chain.head, written)
        self._used_index = (self._used_index + 1) & 0xFFFF
        self._used_words[1] = self._used_index
        self._pushed = True

    def signal(self) -> None:
        """Interrupt the guest if a buffer was given back since the last time."""
        if self._pushed and self.call is not None:
            self._pushed = False
            os.eventfd_write(self.call, 1)
