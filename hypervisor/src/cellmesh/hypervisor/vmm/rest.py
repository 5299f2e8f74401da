"""HTTP/1.1 over a unix socket, as much of it as cloud-hypervisor's REST API needs: one connection per request.

cloud-hypervisor counts idle connections against a small limit, so none is kept. Its socket lies in a directory that a
broken-out VMM could write, and could link to another VM's, so the uid at the other end is looked at (SO_PEERCRED).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from cellmesh.hypervisor.vmm.errors import VmmInvalid, VmmRefused, VmmTimeout, VmmUnreachable, shown
from cellmesh.hypervisor.vmm.liveness import Watch, usable

MAX_BODY = 4 << 20
"""cloud-hypervisor's own limit on a body, in bytes."""
_MAX_HEAD = 16 << 10
_NO_CONTENT = 204


@dataclass(frozen=True, slots=True, kw_only=True)
class RestClient:
    """Sends requests to the API socket of one VMM."""

    socket: Path
    uid: int
    """Whose process must be listening: the VM's own uid; ours is trusted as well."""
    pid: int = 0
    """The VMM's process; while that waits for a processor, no change runs out of time. 0 counts by the clock."""

    async def request(self, method: str, endpoint: str, *, seconds: float) -> object:
        """Send one request and return the decoded JSON answer, None when it has no body.

        Raises VmmUnreachable, VmmTimeout, VmmRefused or VmmInvalid.
        """
        return await self._within(asyncio.timeout(seconds), seconds, method, endpoint)

    async def change(self, endpoint: str, body: object = None, *, seconds: float) -> None:
        """Have the VMM do something, in so many seconds that it could use. Raises as `request` does."""
        await self._within(usable(seconds, Watch.of(self.pid)), seconds, "PUT", endpoint, body)

    async def _within(
        self,
        limit: AbstractAsyncContextManager[object],
        seconds: float,
        method: str,
        endpoint: str,
        body: object = None,
    ) -> object:
        try:
            async with limit:
                status, answer = await self._exchange(method, endpoint, body)
        except TimeoutError:
            raise VmmTimeout(f"cloud-hypervisor did not answer {endpoint} within {seconds:g} s.") from None
        except (OSError, EOFError) as error:
            raise VmmUnreachable(f"cloud-hypervisor cannot be reached for {endpoint}: {error}.") from error
        except (ValueError, asyncio.LimitOverrunError) as error:
            raise VmmInvalid(f"The answer to {endpoint} is not HTTP: {shown(str(error))}.") from error
        if not 200 <= status < 300:
            raise VmmRefused(endpoint, status, shown(answer))
        return _decode(endpoint, answer)

    async def _exchange(self, method: str, endpoint: str, body: object) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_unix_connection(self.socket, limit=_MAX_HEAD)
        try:
            self._check_peer(writer)
            content = b"" if body is None else json.dumps(body).encode()
            writer.write(_head(method, endpoint, len(content)) + content)
            await writer.drain()
            return await _answer(reader)
        finally:
            writer.transport.abort()

    def _check_peer(self, writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", raw)
        if uid not in (self.uid, os.getuid()):
            raise VmmInvalid(f"The API socket is served by process {pid} of uid {uid}, not by the VM's uid {self.uid}.")


def _head(method: str, endpoint: str, length: int) -> bytes:
    kind = "Content-Type: application/json\r\n" if length else ""
    return (
        f"{method} /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        f"{kind}Content-Length: {length}\r\n\r\n"
    ).encode("ascii")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, code, *_ = head[0].split(" ")
    if not version.startswith("HTTP/1.") or not code.isdecimal():
        raise ValueError(head[0])
    status = int(code)
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    length = int(fields.get("content-length", "0"))
    if status == _NO_CONTENT or length == 0:
        return status, b""
    if not 0 < length <= MAX_BODY:
        raise ValueError(f"a body of {length} bytes")
    return status, await reader.readexactly(length)


def _decode(endpoint: str, answer: bytes) -> object:
    if not answer:
        return None
    try:
        decoded: object = json.loads(answer)
    except (ValueError, RecursionError):
        raise VmmInvalid(f"The answer to {endpoint} is not JSON: {shown(answer)}") from None
    return decoded
