"""A hybrid vsock as cloud-hypervisor offers it on the host: CONNECT, OK, then the guest's bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Guest = Callable[[socket.socket], None]
"""What a guest does with one accepted connection; the connection is closed afterwards."""


@contextmanager
def serve(path: Path, guests: dict[int, Guest], *, together: bytes = b"") -> Iterator[None]:
    """Serve the guest ports at `path`; `together` is sent in one write with the OK line, as a quick guest's bytes are.

    A port without a guest is closed at once, as cloud-hypervisor does.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(512)
    thread = threading.Thread(target=_accept, args=(listener, guests, together), daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def _accept(listener: socket.socket, guests: dict[int, Guest], together: bytes) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, guests, together), daemon=True).start()


def _answer(connection: socket.socket, guests: dict[int, Guest], together: bytes) -> None:
    # Whoever dialled may hang up at any moment, which is its right; a test sees what came of it.
    with connection, contextlib.suppress(ConnectionError):
        line = b""
        while not line.endswith(b"\n"):
            if not (byte := connection.recv(1)):
                return
            line += byte
        guest = guests.get(int(line.removeprefix(b"CONNECT ")))
        if guest is not None:
            connection.sendall(b"OK 1073741824\n" + together)
            guest(connection)
