"""Network namespaces of containers: empty but for `lo`, made by us so that they outlive a container's process.

A socket belongs to the namespace it was made in, and a namespace is entered by a thread: so each visit is a thread that
enters and does not come back.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cellmesh.guest import kernel
from cellmesh.guest.boot import raise_loopback

_Result = TypeVar("_Result")
LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
"""Families and addresses at which a server that listens on `localhost` may be found, in the order they are tried."""
_CONNECT_TRIES = 2  # A server that does not accept lets callers wait once its queue is full; these take 7 s.
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
_ACCEPT_QUEUE = "512"
_FIRST_PORT = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class NetworkNamespace:
    """A network namespace, kept open by its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def create(cls) -> "NetworkNamespace":
        """Make one with `lo` up; raises OSError."""
        return cls(_in_thread(_new_namespace))

    @property
    def path(self) -> str:
        """A path by which another process of this machine can enter it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def open_socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Make a socket that lives in this namespace; raises OSError."""

        def enter() -> socket.socket:
            kernel.enter_network(self._descriptor)
            return socket.socket(family, kind)

        return _in_thread(enter)

    def start_connect(self, port: int, family: int = socket.AF_INET, address: str = "127.0.0.1") -> socket.socket:
        """Begin to connect to a port of its loopback; the socket does not block. Raises OSError.

        The calling thread stays in the namespace: it must be one that has nothing else to do.
        """
        kernel.enter_network(self._descriptor)
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            # What is passed on is written already as its sender wants it sent.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, _CONNECT_TRIES)
            connection.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                connection.connect((address, port))
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Let go of it; the kernel frees it with its last socket and process."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _new_namespace() -> int:
    kernel.unshare(kernel.CLONE_NEWNET)
    raise_loopback()
    # Nothing else lives here, so no port needs a privilege.
    _FIRST_PORT.write_text("0")
    # The kernel charges a connection to a cgroup only once it is accepted.
    _SOMAXCONN.write_text(_ACCEPT_QUEUE)
    return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _in_thread(visit: Callable[[], _Result]) -> _Result:
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(visit())
        except BaseException as error:  # Carried to the caller's thread.
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
