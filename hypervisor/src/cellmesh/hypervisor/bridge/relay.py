"""Joining one accepted connection to one guest port: handshake, then bytes both ways in two blocking threads.

Threads, because they add a fifth of the delay asyncio streams add and sleep in recv when nothing moves.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping

CONNECT_SECONDS = 2.0
"""cloud-hypervisor gives a guest as long to accept."""
_CHUNK = 64 << 10
_COUNTS = ("open", "connections", "refused", "failed", "to_guest_bytes", "from_guest_bytes")
_MAX_REPLY = 32  # "OK <port>\n" is 14 bytes at most


class Relays:
    """The connections of one bridge, bounded in number."""

    def __init__(self, vsock: str, *, limit: int) -> None:
        self._vsock = vsock
        self._slots = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTS, 0)

    def counts(self) -> Mapping[str, int]:
        """Return what was carried since the start.

        `open` is now; `refused` were too many, `failed` were not accepted by the guest.
        """
        with self._lock:
            return dict(self._counts)

    def accept(self, listener: socket.socket, port: int) -> None:
        """Take one waiting connection and join it to a guest port; close it at once when too many are open."""
        try:
            client, _ = listener.accept()
        except OSError:
            return  # the caller hung up before its turn
        if not self._slots.acquire(blocking=False):
            client.close()
            self._count(refused=1)
            return
        self._count(connections=1, open=1)
        try:
            threading.Thread(target=self._carry, args=(client, port), daemon=True).start()
        except RuntimeError:  # no thread to be had: as good as too many connections
            client.close()
            self._count(refused=1, open=-1)
            self._slots.release()

    def _carry(self, client: socket.socket, port: int) -> None:
        try:
            with client, connect(self._vsock, port) as guest:
                back = threading.Thread(target=self._back, args=(guest, client), daemon=True)
                back.start()
                self._count(to_guest_bytes=pump(client, guest))
                back.join()
        except (OSError, RuntimeError):
            self._count(failed=1)
        finally:
            self._count(open=-1)
            self._slots.release()

    def _back(self, guest: socket.socket, client: socket.socket) -> None:
        self._count(from_guest_bytes=pump(guest, client))

    def _count(self, **changes: int) -> None:
        with self._lock:
            for name, change in changes.items():
                self._counts[name] += change


def connect(vsock: str, port: int) -> socket.socket:
    """Open a connection to a guest port through cloud-hypervisor's hybrid vsock. Raises OSError if nobody accepts."""
    guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        guest.settimeout(CONNECT_SECONDS)
        guest.connect(vsock)
        guest.sendall(b"CONNECT %d\n" % port)
        reply = bytearray()
        # Byte by byte: the guest's first bytes may stand right behind the line and are not ours to read.
        while not reply.endswith(b"\n"):
            byte = guest.recv(1)
            if not byte or len(reply) >= _MAX_REPLY:
                raise ConnectionRefusedError(f"the guest does not accept on port {port}")
            reply += byte
        if not reply.startswith(b"OK "):
            raise ConnectionRefusedError(f"the guest does not accept on port {port}")
        guest.settimeout(None)
    except BaseException:
        guest.close()
        raise
    return guest


def pump(source: socket.socket, target: socket.socket) -> int:
    """Carry bytes until the source ends, then end the target's input; return how many were carried."""
    buffer = memoryview(bytearray(_CHUNK))
    carried = 0
    try:
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
            carried += count
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side is gone. What the other direction still holds is delivered by its own pump.
        _end(source, socket.SHUT_RD)
        _end(target, socket.SHUT_WR)
    return carried


def _end(side: socket.socket, how: int) -> None:
    try:
        side.shutdown(how)
    except OSError:
        return  # it has ended already
