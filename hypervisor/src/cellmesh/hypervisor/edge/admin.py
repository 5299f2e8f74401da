"""Envoy's admin socket: what each cluster was asked for, whether Envoy is ready, and a new file for its log."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

MAX_ANSWER = 64 << 20
"""The longest answer that is read, in bytes."""
DRAIN_PATH = "/drain_listeners?graceful&skip_exit"
"""Without `skip_exit` Envoy would end when its drain time is over, whoever is still there."""
_MAX_HEAD = 16 << 10
_OK = 200
_USER = "[0-9a-f-]{36}"
_COUNTERS = {
    "upstream_rq_completed": "requests",
    "upstream_rq_5xx": "server_errors",
    "upstream_rq_active": "active",
    "upstream_cx_rx_bytes_total": "received_bytes",
    "upstream_cx_tx_bytes_total": "sent_bytes",
}
_TRAFFIC = rf"^cluster\.({_USER}/[a-z0-9_-]+)\.({'|'.join(_COUNTERS)})$"
_NAME = re.compile(_TRAFFIC)


class EdgeAway(Exception):
    """Envoy does not answer at its admin socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How much one cluster was asked for since Envoy started."""

    requests: int = 0
    server_errors: int = 0
    active: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """How Envoy takes what it is told."""

    clusters: int = 0
    connected: bool = False
    """Whether it is connected to the hypervisor."""
    rejected: int = 0
    """Responses about clusters it refused since it started."""


@dataclass(frozen=True, slots=True)
class EnvoyAdmin:
    """Asks one Envoy. Everything raises EdgeAway if it does not answer."""

    socket: Path
    timeout: float = 5.0
    """Seconds an answer may take."""

    async def traffic(self) -> Mapping[str, Traffic]:
        """Return what each cluster was asked for, those that never were left out."""
        found: dict[str, dict[str, int]] = {}
        for name, value in (await self._stats(_TRAFFIC, used_only=True)).items():
            if match := _NAME.match(name):
                found.setdefault(match[1], {})[_COUNTERS[match[2]]] = value
        return {name: Traffic(**counted) for name, counted in found.items() if any(counted.values())}

    async def updates(self) -> Updates:
        """Return how Envoy takes what it is told."""
        stats = await self._stats(
            r"^(cluster_manager\.(active_clusters|cds\.update_rejected)|control_plane\.connected_state)$"
        )
        return Updates(
            clusters=stats.get("cluster_manager.active_clusters", 0),
            connected=stats.get("control_plane.connected_state", 0) == 1,
            rejected=stats.get("cluster_manager.cds.update_rejected", 0),
        )

    async def ready(self) -> bool:
        """Return whether it takes requests."""
        status, _ = await self._ask("GET", "/ready")
        return status == _OK

    async def drain(self) -> None:
        """Ask every client to leave after the answer it is getting; once the drain time is over, listen no more."""
        status, _ = await self._ask("POST", DRAIN_PATH)
        if status != _OK:
            raise EdgeAway(f"The edge does not drain: {status}.")

    async def stats(self, pattern: str) -> Mapping[str, int]:
        """Return counters and gauges whose names match a regular expression."""
        return await self._stats(pattern)

    async def rotate(self, log: Path, *, max_bytes: int, keep: int = 2) -> bool:
        """Start a new log if this one is longer than `max_bytes`, keeping `keep` old ones; return whether it did."""
        if not log.exists() or log.stat().st_size <= max_bytes:
            return False
        for number in range(keep - 1, 0, -1):
            older = log.with_name(f"{log.name}.{number}")
            if older.exists():
                older.replace(log.with_name(f"{log.name}.{number + 1}"))
        log.replace(log.with_name(f"{log.name}.1"))
        # Until it is told, Envoy goes on writing to the file it has, whatever its name: nothing is lost.
        await self._ask("POST", "/reopen_logs")
        return True

    async def _stats(self, pattern: str, *, used_only: bool = False) -> dict[str, int]:
        used = "usedonly&" if used_only else ""
        status, body = await self._ask("GET", f"/stats?{used}format=json&filter={quote(pattern, safe='')}")
        if status != _OK:
            raise EdgeAway(f"The edge does not tell its counters: {status}.")
        try:
            found = json.loads(body)["stats"]
        except (ValueError, KeyError, TypeError) as error:
            raise EdgeAway(f"The edge's counters are not JSON: {error}.") from error
        return {each["name"]: int(each["value"]) for each in found if "value" in each}

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(self.timeout):
                return await self._exchange(method, path)
        except TimeoutError:
            raise EdgeAway(f"The edge did not answer within {self.timeout:g} s.") from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise EdgeAway(f"The edge cannot be asked: {error}.") from error

    async def _exchange(self, method: str, path: str) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_unix_connection(self.socket, limit=_MAX_HEAD)
        try:
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            body = await _body(reader, head)
            return int(head.split(" ", 2)[1]), body
        finally:
            writer.transport.abort()


async def _body(reader: asyncio.StreamReader, head: str) -> bytes:
    if "transfer-encoding: chunked" not in head:
        length = re.search(r"content-length: (\d+)", head)
        return await reader.readexactly(min(int(length[1]), MAX_ANSWER)) if length else b""
    chunks, left = [], MAX_ANSWER
    while size := int((await reader.readline()).split(b";")[0], 16):
        left -= size
        if left < 0:
            raise ValueError(f"an answer of more than {MAX_ANSWER} bytes")
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(chunks)
