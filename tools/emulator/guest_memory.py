"""The guest's memory as the vhost-user front end shares it: files, found by guest or front-end address."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass


class BadAddressError(Exception):
    """The guest named memory it does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One mapped range; the views share the guest's memory, and 16-bit stores through `words` are never torn."""

    guest_address: int
    user_address: int
    size: int
    octets: memoryview
    words: memoryview


def map_region(descriptor: int, *, guest_address: int, user_address: int, size: int, offset: int) -> Region:
    """Map one region of the memory table; the descriptor is closed."""
    try:
        whole = memoryview(mmap.mmap(descriptor, size + offset, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
    finally:
        os.close(descriptor)
    octets = whole[offset : offset + size]
    return Region(
        guest_address=guest_address, user_address=user_address, size=size, octets=octets, words=octets.cast("H")
    )


class GuestMemory:
    """All regions of one front end."""

    __slots__ = ("_regions",)

    def __init__(self, regions: list[Region]) -> None:
        self._regions = regions

    def view(self, guest_address: int, size: int) -> memoryview:
        """Return `size` bytes of guest memory; raises BadAddressError."""
        for region in self._regions:
            start = guest_address - region.guest_address
            if start >= 0 and start + size <= region.size:
                return region.octets[start : start + size]
        message = f"guest address {guest_address:#x}+{size:#x} is outside its memory"
        raise BadAddressError(message)

    def locate(self, user_address: int) -> tuple[Region, int]:
        """Return the region that holds a front-end address, and the offset in it; raises BadAddressError."""
        for region in self._regions:
            start = user_address - region.user_address
            if 0 <= start < region.size:
                return region, start
        message = f"front-end address {user_address:#x} is outside the memory table"
        raise BadAddressError(message)
