"""Hostile VMs at their sockets of the hypervisor: run as a program it is some of them, until it is killed.

It writes a line of JSON each second: how often it connected or tried to, and how many connections were ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from cellmesh.mesh import acceptor
from cellmesh.mesh.frames import PREFACE, FrameCheck
from support.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    SETTINGS,
    call_headers,
    frame,
)

CONNECTIONS = 1023
"""What cloud-hypervisor's vsock lets one guest have at once."""
_SERVICE = "/cellmesh.api.guest.v1.AgentService"
_BEGIN = PREFACE + frame(SETTINGS)
_REPORT = frame(HEADERS, call_headers(f"{_SERVICE}/Report"), stream=1, flags=END_HEADERS)
_ROUND_SECONDS = 0.05
_REPORT_SECONDS = 1.0


def _again(data: bytes) -> Iterator[bytes]:
    while True:
        yield data


def _calls() -> Iterator[bytes]:
    block = call_headers(f"{_SERVICE}/Hello")
    message = b"\x00\x00\x00\x00\x04ugly"
    for stream in count(1, 2):
        opened = frame(HEADERS, block, stream=stream, flags=END_HEADERS)
        yield opened + frame(DATA, message, stream=stream, flags=END_STREAM)


def _half_messages() -> Iterator[bytes]:
    """Begin long messages of all streams there are, and end none."""
    part = frame(DATA, b"\x00\x00\x01\x1f\x00" + b"m" * 16000, stream=1)
    for stream in (1, 3, 5, 7):
        opened = frame(HEADERS, call_headers(f"{_SERVICE}/Report"), stream=stream, flags=END_HEADERS)
        yield opened + (part[:5] + stream.to_bytes(4) + part[9:])
    for _ in range(3):
        for stream in (1, 3, 5, 7):
            yield frame(DATA, b"m" * 16000, stream=stream)
    yield from _again(frame(PING, b"p" * 8))


KINDS: dict[str, tuple[bytes, Callable[[], Iterator[bytes]]]] = {
    "holds": (b"", lambda: _again(b"")),
    "half a preface": (PREFACE[:9], lambda: _again(b"")),
    "unknown frames": (_BEGIN, lambda: _again(frame(200, b"u" * 16384) * 8)),
    "continuation": (
        _BEGIN + frame(HEADERS, b"h" * 100, stream=1),
        lambda: _again(frame(CONTINUATION, b"h" * 16384, stream=1) * 8),
    ),
    "pings": (_BEGIN + _REPORT, lambda: _again(frame(PING, b"p" * 8) * 1000)),
    "calls": (_BEGIN, _calls),
    "half messages": (_BEGIN, _half_messages),
    "garbage": (b"\xff\x00GARBAGE\r\n" * 100, lambda: _again(b"\xff" * 16384)),
}


class _Vm:
    """One of them: it keeps as many connections as it can, and opens another for each that ends."""

    def __init__(self, path: str, kind: str) -> None:
        self._path = path
        self._first, self._more = KINDS[kind]
        self._held: dict[socket.socket, Iterator[bytes]] = {}
        self.tried = self.connected = self.ended = 0

    def turn(self) -> None:
        """Send more by each connection, and try to have as many as there can be."""
        for one, more in list(self._held.items()):
            try:
                with contextlib.suppress(BlockingIOError):
                    one.send(next(more))
                with contextlib.suppress(BlockingIOError):
                    if one.recv(1 << 16):
                        continue
                    raise ConnectionResetError
            except OSError:
                one.close()
                del self._held[one]
                self.ended += 1
        for _ in range(CONNECTIONS - len(self._held)):
            self.tried += 1
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            try:
                one.connect(self._path)
                self.connected += 1
                one.send(self._first)
            except OSError:
                one.close()
                continue
            self._held[one] = self._more()


def _main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # The processors of a node are not its guests' to take; here both have the same, so these get what is left.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    kinds = list(KINDS)
    vms = [_Vm(path, kinds[number % len(kinds)]) for number, path in enumerate(sys.argv[1:])]
    told = time.monotonic()
    while True:
        for vm in vms:
            vm.turn()
        if time.monotonic() - told > _REPORT_SECONDS:
            told = time.monotonic()
            line = {name: sum(getattr(vm, name) for vm in vms) for name in ("tried", "connected", "ended")}
            print(json.dumps(line), flush=True)
        time.sleep(_ROUND_SECONDS)


def _take_the_bounds_away() -> None:
    """Make acceptors admit everybody, check nothing and wait for ever."""
    begin = acceptor.Acceptor.__init__
    boundless = acceptor.Bounds(connections=10**6, handshake=1e6, silence=1e6, work=1e12, work_per_second=1e12)

    def open_to_all(self: acceptor.Acceptor, path: Path, **more: Any) -> None:
        begin(self, path, **{**more, "bounds": boundless})

    def blind(self: FrameCheck, _: bytes) -> int:
        self.frames += 1
        self.calls += 1
        return 0

    acceptor.Acceptor.__init__ = open_to_all  # type: ignore[method-assign]
    acceptor._BACKLOG = 4096
    FrameCheck.feed = blind  # type: ignore[method-assign]


CROWD_DEFECTS = {"no bounds of guests": _take_the_bounds_away}
"""What is wrong with a hypervisor, by the name `plant` knows."""


if __name__ == "__main__":
    _main()
