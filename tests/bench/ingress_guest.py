"""A guest's way in without a guest: the agent's own relay behind a hybrid vsock, on the host.

Started as `python ingress_guest.py VSOCK PORT HTTP_PORT`: whoever connects to the guest's PORT reaches HTTP_PORT here.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from cellmesh.guest import vsock
from cellmesh.guest.containers.ingress import Ingress
from cellmesh.guest.netns import NetworkNamespace


class HybridListener(socket.socket):
    """Accepts as cloud-hypervisor does, after CONNECT and OK, for one port."""

    port = 0

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        """Return a connection whose peer is the host."""
        connection, _ = super().accept()
        line = b""
        while not line.endswith(b"\n"):
            line += connection.recv(1)
        if line != b"CONNECT %d\n" % self.port:
            return connection, (0, 0)
        connection.sendall(b"OK 1073741824\n")
        return connection, (vsock.HOST_CID, 1 << 30)


def main(path: str, port: int, http_port: int) -> None:
    """Serve until killed."""

    def listen(port: int) -> HybridListener:
        listener = HybridListener(socket.AF_UNIX)
        listener.port = port
        listener.bind(path)
        listener.listen(512)
        return listener

    ingress = Ingress(port, http_port, listen)
    ingress.lead_to(NetworkNamespace(os.open("/proc/self/ns/net", os.O_RDONLY)))
    ingress.open()
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
