"""Ports of the loopback for servers that are told their number before they start."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """Give a port that nobody who looks for a free one gets inside; a server that is told its number may listen."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        # Bound so, and never listening, it is in nobody's way who binds to the number as servers do.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
