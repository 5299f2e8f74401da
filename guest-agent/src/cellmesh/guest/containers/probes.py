"""Asking a container whether it is well, from inside its own network namespace."""

import asyncio
import contextlib
import os
import signal
import socket

from cellmesh.guest.containers.model import ExecProbe, HttpProbe, TcpProbe
from cellmesh.guest.containers.runtime import Command, RunningContainer, StartFailed, Stdio, empty_input
from cellmesh.guest.netns import LOOPBACK
from cellmesh.guest.relay import met_itself

_STATUS_LINE = 64


async def is_well(question: HttpProbe | TcpProbe | ExecProbe, within: float, container: RunningContainer) -> bool:
    """Ask once, for at most `within` seconds; no answer is not well."""
    try:
        async with asyncio.timeout(within):
            match question:
                case HttpProbe(port=port, path=path):
                    return await _answers_http(container, port, path)
                case TcpProbe(port=port):
                    (await _connect(container, port)).close()
                    return True
                case ExecProbe(argv=argv):
                    return await _succeeds(container, argv)
    except (TimeoutError, OSError, StartFailed):
        return False


async def _connect(container: RunningContainer, port: int) -> socket.socket:
    *first, (last_family, last_address) = LOOPBACK
    for family, address in first:
        with contextlib.suppress(ConnectionRefusedError):
            return await _connect_to(container, family, address, port)
    return await _connect_to(container, last_family, last_address, port)


async def _connect_to(container: RunningContainer, family: int, address: str, port: int) -> socket.socket:
    connection = container.network.open_socket(family)
    try:
        connection.settimeout(0)
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
        if refusal := met_itself(connection):
            raise ConnectionRefusedError(refusal, "nobody listens there")
    except BaseException:
        connection.close()
        raise
    return connection


async def _answers_http(container: RunningContainer, port: int, path: str) -> bool:
    loop = asyncio.get_running_loop()
    request = (
        f"GET {path or '/'} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: cellmesh-probe\r\nConnection: close\r\n\r\n"
    )
    with await _connect(container, port) as connection:
        await loop.sock_sendall(connection, request.encode("ascii"))
        line = b""
        while b"\r\n" not in line and len(line) < _STATUS_LINE:
            received = await loop.sock_recv(connection, _STATUS_LINE)
            if not received:
                break
            line += received
    return status_is_well(line)


def status_is_well(line: bytes) -> bool:
    """Say whether an HTTP status line carries a status from 200 to 399."""
    words = line.split(None, 2)
    return (
        len(words) >= 2
        and words[0].startswith(b"HTTP/1.")
        and words[1][:3].isdigit()
        and 200 <= int(words[1][:3]) <= 399
    )


async def _succeeds(container: RunningContainer, argv: tuple[str, ...]) -> bool:
    stdin = empty_input()
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    loop = asyncio.get_running_loop()
    loop.add_reader(read_end, _discard, read_end)
    try:
        try:
            stdio = Stdio(stdin=stdin, stdout=write_end, stderr=write_end)
            process = await container.execute(Command(argv=argv), stdio)
        finally:
            os.close(write_end)
            os.close(stdin)
        try:
            return await asyncio.shield(process.exited) == 0
        finally:
            process.send_signal(signal.SIGKILL)
    finally:
        loop.remove_reader(read_end)
        os.close(read_end)


def _discard(descriptor: int) -> None:
    if not os.read(descriptor, 4096):
        asyncio.get_running_loop().remove_reader(descriptor)
