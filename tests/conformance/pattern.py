"""The bytes that streams are compared by: no period that a lost or doubled block could hide in."""

from __future__ import annotations

_BLOCK = 256


def pattern(size: int) -> bytes:
    """Return the first `size` bytes; the same as the guest's own."""
    blocks = []
    for block in range((size + _BLOCK - 1) // _BLOCK):
        base = block * 29 + (block >> 8) * 7
        blocks.append(bytes((i * 131 + base) & 0xFF for i in range(_BLOCK)))
    return b"".join(blocks)[:size]
