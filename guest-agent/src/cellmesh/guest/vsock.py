"""The ports of AF_VSOCK between guest and host, and the unix sockets they are joined to: gRPC cannot speak AF_VSOCK."""

import contextlib
import socket
from pathlib import Path

HOST_CID = 2
AGENT_PORT = 1024
HOST_PORT = 1025
_BACKLOG = 64


def listen_vsock(port: int) -> socket.socket:
    """Listen on a vsock port of this machine; raises OSError."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def dial_host(port: int = HOST_PORT) -> socket.socket:
    """Connect to a port of the host; raises OSError."""
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        connection.connect((HOST_CID, port))
    except OSError:
        connection.close()
        raise
    return connection


def listen_unix(path: str) -> socket.socket:
    """Listen on a unix socket only we may connect to, in place of a stale one; raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    Path(path).chmod(0o600)
    listener.listen(_BACKLOG)
    return listener


def dial_unix(path: str) -> socket.socket:
    """Connect to a unix socket; raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
