"""The server's half of a WebSocket (RFC 6455) that sends back what comes: messages, pings as pongs, the close."""

from __future__ import annotations

import asyncio
import base64
import hashlib

_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CLOSE, _PING, _PONG = 0x8, 0x9, 0xA
_MOST_MESSAGE = 1 << 20
_FIN = 0x80
_MASKED = 0x80


def accept_key(key: str) -> bytes:
    """Return what proves to the client that its key was read."""
    return base64.b64encode(hashlib.sha1(f"{key}{_MAGIC}".encode(), usedforsecurity=False).digest())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back every frame until the client closes or breaks a rule."""
    while True:
        first, second = await reader.readexactly(2)
        size = await _size(second & 0x7F, reader)
        if not second & _MASKED or size > _MOST_MESSAGE:
            return
        mask = await reader.readexactly(4)
        payload = _unmasked(await reader.readexactly(size), mask)
        opcode = first & 0x0F
        if opcode == _PONG:
            continue
        back = (first & _FIN) | (_PONG if opcode == _PING else opcode)
        writer.write(_header(back, size) + payload)
        await writer.drain()
        if opcode == _CLOSE:
            return


async def _size(short: int, reader: asyncio.StreamReader) -> int:
    if short == 126:
        return int.from_bytes(await reader.readexactly(2), "big")
    if short == 127:
        return int.from_bytes(await reader.readexactly(8), "big")
    return short


def _unmasked(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(data, "big") ^ key).to_bytes(size, "big")


def _header(first: int, size: int) -> bytes:
    if size < 126:
        return bytes((first, size))
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big")
    return bytes((first, 127)) + size.to_bytes(8, "big")
