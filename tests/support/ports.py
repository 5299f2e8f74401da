"""Ports for servers under test that listen by themselves, in a process of their own, when their turn has come."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """Yield a port of 127.0.0.1 that is nobody else's inside, also while its server is away.

    It is bound here and not listened at: who names it and reuses addresses, as servers do, can listen there, and nobody
    is given it by chance.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
