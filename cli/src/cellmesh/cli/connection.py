"""The way to the node: its operator socket."""

from __future__ import annotations

import asyncio
import os
import random
import stat
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from cellmesh.cli.errors import NoNodeError
from cellmesh.cli.refusal import is_broken_stream

if TYPE_CHECKING:
    from cellmesh.api.audit.v1 import audit_service_pb2_grpc
    from cellmesh.api.hypervisor.v1 import (
        container_service_pb2_grpc,
        event_service_pb2_grpc,
        node_service_pb2_grpc,
        route_service_pb2_grpc,
        vm_service_pb2_grpc,
    )

Item = TypeVar("Item")
Answer = TypeVar("Answer", covariant=True)
STREAM_SECONDS = 86400.0
"""Deadline of a stream that is followed: the contracts' longest."""
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
_GIVE_UP_AFTER = 12
"""Tries in a row; about 45 s, longer than a hypervisor takes to restart."""


class Stream(Protocol[Answer]):
    """The answers of a streaming call, as mesh gives them."""

    def __aiter__(self) -> AsyncIterator[Answer]:
        """Iterate over the answers."""

    async def aclose(self) -> None:
        """End the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The services of one node."""

    vms: vm_service_pb2_grpc.VmServiceAsyncStub
    containers: container_service_pb2_grpc.ContainerServiceAsyncStub
    events: event_service_pb2_grpc.EventServiceAsyncStub
    node: node_service_pb2_grpc.NodeServiceAsyncStub
    routes: route_service_pb2_grpc.RouteServiceAsyncStub
    audit: audit_service_pb2_grpc.AuditServiceAsyncStub


def streaming(call: AsyncIterable[Item]) -> Stream[Item]:
    """Return a stub's streaming call as what it is: mesh's streams can be closed, which gRPC's type does not say."""
    return cast("Stream[Item]", call)


@asynccontextmanager
async def connect(socket: Path) -> AsyncIterator[Node]:
    """Open the operator socket; raises NoNodeError where there is none."""
    check_socket(socket)
    # gRPC reads this when it is imported; what it says of each connection is noise to a person.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Here, not above: what needs no node (help, doctor, images) starts without gRPC.
    from cellmesh.api.audit.v1 import audit_service_pb2_grpc
    from cellmesh.api.hypervisor.v1 import (
        container_service_pb2_grpc,
        event_service_pb2_grpc,
        node_service_pb2_grpc,
        route_service_pb2_grpc,
        vm_service_pb2_grpc,
    )
    from cellmesh.mesh.channel import unix_channel

    async with unix_channel(socket, downstream="hypervisor") as channel:
        yield Node(
            vms=vm_service_pb2_grpc.VmServiceStub(channel),
            containers=container_service_pb2_grpc.ContainerServiceStub(channel),
            events=event_service_pb2_grpc.EventServiceStub(channel),
            node=node_service_pb2_grpc.NodeServiceStub(channel),
            routes=route_service_pb2_grpc.RouteServiceStub(channel),
            audit=audit_service_pb2_grpc.AuditServiceStub(channel),
        )


def check_socket(socket: Path) -> None:
    """Raise NoNodeError unless `socket` is one this process can see."""
    try:
        mode = socket.stat().st_mode
    except PermissionError as error:
        raise NoNodeError(f"The operator socket {socket} is another user's; run this as its owner.") from error
    except OSError as error:
        raise NoNodeError(f"No node runs here: there is no operator socket {socket}.") from error
    if not stat.S_ISSOCK(mode):
        raise NoNodeError(f"{socket} is not a socket.")


class Patience:
    """Waits ever longer, with jitter, between tries that fail one after the other."""

    def __init__(self) -> None:
        self._failures = 0

    def succeeded(self) -> None:
        """Start anew: the last try was good."""
        self._failures = 0

    async def wait(self, error: Exception) -> None:
        """Wait before the next try; raises `error` when there were too many."""
        self._failures += 1
        if self._failures >= _GIVE_UP_AFTER:
            raise error
        longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2**self._failures)
        await asyncio.sleep(random.uniform(longest / 2, longest))  # noqa: S311  # spreads retries, hides nothing


async def resumed(
    open_stream: Callable[[], Stream[Item]], *, on_break: Callable[[], None]
) -> AsyncGenerator[Item, None]:
    """Yield a stream's messages and open it again when it breaks; `open_stream` says from where."""
    patience = Patience()
    while True:
        try:
            async with aclosing(open_stream()) as stream:
                async for item in stream:
                    patience.succeeded()
                    yield item
        except Exception as error:
            if not is_broken_stream(error):
                raise
            on_break()
            await patience.wait(error)
        else:
            return
