"""Run the development authenticator: `python -m dev_authenticator --socket PATH [--user UUID ...] [--gid GID]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from cellmesh.envoy.auth.v3 import external_auth_pb2_grpc
from cellmesh.mesh import unix_socket
from dev_authenticator.decision import SIGN_IN
from dev_authenticator.servicer import DevAuthenticator

_WARNING = """
*****************************************************************************
*  DEVELOPMENT AUTHENTICATOR: it believes whoever says who they are.        *
*  Never put it in front of anything that somebody else can reach.          *
*****************************************************************************
"""


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    arguments = _arguments()
    sys.stderr.write(_WARNING)
    allowed = ", ".join(arguments.user) or "EVERY user id"
    sys.stderr.write(f"May sign in at {SIGN_IN}?user=<uuid>: {allowed}\n")
    sys.stderr.flush()
    try:
        asyncio.run(_serve(arguments.socket, frozenset(arguments.user), arguments.gid))
    except OSError as error:
        sys.exit(f"dev_authenticator: {error}")


@asynccontextmanager
async def serving(path: Path, users: frozenset[str] = frozenset(), *, gid: int | None = None) -> AsyncIterator[None]:
    """Answer the edge on a unix socket that only our user and the group `gid` may open. Raises OSError."""
    _remove_stale(path)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(DevAuthenticator(users), server)
    with unix_socket.closed():
        port = server.add_insecure_port(f"unix:{path}")
    if not port:
        raise OSError(f"{path} cannot be listened on. Does its directory exist, and may this user write there?")
    if gid is not None:
        os.chown(path, -1, gid)
    path.chmod(0o660)
    await server.start()
    try:
        yield
    finally:
        await server.stop(1.0)


async def _serve(path: Path, users: frozenset[str], gid: int | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(path, users, gid=gid):
        print(f"serving on {path}", flush=True)
        await stop.wait()


def _remove_stale(path: Path) -> None:
    """Remove what a dead one left; raise OSError if one that lives serves there."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(f"{path} is served already. Stop that one, or choose another path.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev_authenticator", description="Says who asks, for development.")
    parser.add_argument("--socket", type=Path, required=True, help="where the edge asks")
    parser.add_argument("--user", type=_user, action="append", default=[], help="who may sign in; absent is everybody")
    parser.add_argument("--gid", type=int, help="the group of the edge, which may open the socket")
    return parser.parse_args()


def _user(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no UUID") from None


if __name__ == "__main__":
    main()
