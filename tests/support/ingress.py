"""A container asked by its ingress socket, as the edge asks it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SECONDS = 30.0


class Connection(http.client.HTTPConnection):
    """One connection to a unix socket; raises OSError if nobody listens there."""

    def __init__(self, path: Path) -> None:
        super().__init__("cell", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_SECONDS)
        try:
            self.sock.connect(os.fspath(self._path))
        except BaseException:
            self.sock.close()
            raise

    async def ask(self, target: str = "/", headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Ask once and return what the simulated container says of itself; raises OSError, http.client's errors."""
        return await asyncio.to_thread(self._ask, target, headers or {})

    def _ask(self, target: str, headers: Mapping[str, str]) -> dict[str, Any]:
        self.request("GET", target, headers=dict(headers))
        said: dict[str, Any] = json.loads(self.getresponse().read())
        return said


async def ask(path: Path) -> dict[str, Any]:
    """Ask once, on a connection of its own."""
    connection = Connection(path)
    try:
        return await connection.ask()
    finally:
        connection.close()


async def until_answered(path: Path) -> dict[str, Any]:
    """Ask until somebody answers."""
    async with asyncio.timeout(_SECONDS):
        while True:
            try:
                return await ask(path)
            except (OSError, http.client.HTTPException):
                await asyncio.sleep(0.01)  # whoever is to answer is in another process


async def until_refused(path: Path) -> None:
    """Wait until nobody listens any more."""
    async with asyncio.timeout(_SECONDS):
        while True:
            try:
                await ask(path)
            except (OSError, http.client.HTTPException):
                if not path.exists():
                    return
            await asyncio.sleep(0.01)
