"""Servers: the listeners of a service, each with its own way to know who calls.

gRPC cannot tell which address of a server a call came by, so each kind of listener is a server of its own; they share
the servicers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.internal import api_implementation
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cellmesh.mesh import logs, telemetry, unix_socket, validation
from cellmesh.mesh.acceptor import Acceptor, Bounds
from cellmesh.mesh.identity import OPERATOR, Caller, Role
from cellmesh.mesh.interceptor import Identify, PolicyInterceptor, Refused
from cellmesh.mesh.limits import (
    METADATA_BYTES,
    NO_COMPRESSION,
    PING_INTERVAL_MS,
    REPORT_BYTES,
    SERVICE_MESSAGE_BYTES,
)
from cellmesh.mesh.on_behalf import Verify
from cellmesh.mesh.policy import policy_of

if TYPE_CHECKING:
    from cellmesh.mesh.pki import Identity

_log = structlog.get_logger()
Register = Callable[[grpc.aio.Server], None]
"""Adds one servicer to a server, such as `functools.partial(add_VmServiceServicer_to_server, servicer)`."""

_GUEST_STREAMS = 4
# Otherwise gRPC lets a client that sends fast send more, and longer frames, before it has read them.
_CONSTANT_WINDOWS = (("grpc.http2.bdp_probe", 0),)
_SERVICE_STREAMS = 1024
# Of one listener: more than any installation has clients, fewer than the process has descriptors.
_CONNECTIONS = 1024
_ROLE_CONNECTIONS = 64


class MeshServer:
    """The listeners of one service.

    `services` are what operators and other services reach; `verify` verifies the tokens of users that they act for,
    and without it none is accepted; `refused` is told of callers that may not make a call. Add listeners, `start`, and
    `stop` once; or use it as an async context manager. Adding raises OSError if an address cannot be served on.
    """

    def __init__(
        self, services: Sequence[Register], *, verify: Verify | None = None, refused: Refused | None = None
    ) -> None:
        require_upb()
        self._verify = verify
        self._refused = refused
        self._services = tuple(services)
        self._names = _check(services)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # not in the stub
        self._servers: list[grpc.aio.Server] = []
        self._claims = contextlib.ExitStack()

    def add_operator_socket(self, path: Path) -> None:
        """Serve all on a unix socket of mode 0600, where every caller is the operator; reflection is only here."""
        self._claims.enter_context(unix_socket.claim(path))
        server = self._server(self._interceptor(_operator))
        _add_operator_services(server, self._names)
        _bind(server, f"unix:{path}")
        unix_socket.hand_over(path, mode=0o600)

    def add_unix_socket(
        self, path: Path, *, services: Sequence[Register], caller: Caller, mode: int = 0o660, gid: int | None = None
    ) -> None:
        """Serve only these services on a unix socket, where whoever may connect is `caller`.

        `mode` and `gid`, None being the process's own, say who may: connecting takes the right to write. At most 64 may
        be connected at once. There is no reflection, channelz or health here, and a caller that is refused again and
        again writes few log lines.
        """
        _check(services)
        self._claims.enter_context(unix_socket.claim(path))
        interceptor = self._interceptor(lambda _: caller, lines=logs.LineBudget())
        server = _policed(interceptor, services, connections=_ROLE_CONNECTIONS)
        self._servers.append(server)
        _bind(server, f"unix:{path}")
        unix_socket.hand_over(path, mode=mode, owner=None if gid is None else (-1, gid))

    def add_mtls(self, address: str, identity: Identity) -> int:
        """Serve on `host:port` to callers with a certificate of our trust domain; return the port."""
        # 8 MB that only services reached over a network pay.
        from cellmesh.mesh.pki import caller_of_peer, server_credentials

        def identify(context: grpc.aio.ServicerContext[Any, Any]) -> Caller | None:
            return caller_of_peer(context.auth_context(), identity.trust_domain)

        server = self._server(self._interceptor(identify))
        port = server.add_secure_port(address, server_credentials(identity))
        if not port:
            raise OSError(f"{address} cannot be listened on. Is something else there already?")
        return port

    def _interceptor(self, identify: Identify, *, lines: logs.LineBudget | None = None) -> PolicyInterceptor:
        return PolicyInterceptor(
            identify,
            tracing=telemetry.server_interceptor(),
            lines=lines,
            verify=self._verify,
            refused=self._refused,
        )

    async def start(self) -> None:
        """Answer calls."""
        for name in self._names:
            await self.set_serving(name, serving=True)
        for server in self._servers:
            await server.start()

    async def stop(self, grace: float = 10.0) -> None:
        """Say NOT_SERVING, take no new calls, give those that run `grace` seconds, then cancel them."""
        await self._health.enter_graceful_shutdown()
        async with asyncio.TaskGroup() as stopping:
            for server in self._servers:
                stopping.create_task(server.stop(grace))
        self._claims.close()

    async def set_serving(self, service: str, *, serving: bool) -> None:
        """Set what grpc.health.v1 answers for a service; the empty name is the process."""
        states = health_pb2.HealthCheckResponse
        await self._health.set(service, states.SERVING if serving else states.NOT_SERVING)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _server(self, interceptor: PolicyInterceptor) -> grpc.aio.Server:
        server = _policed(interceptor, self._services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._servers.append(server)
        return server


class GuestServer:
    """Serves one VM's guest on a socket of its own, which is what says which VM calls.

    The socket at `path` has an `Acceptor` with `bounds`. gRPC listens at `inner`, which must lie where nobody but this
    process's user can reach it. Trace context a guest sends is not believed.
    """

    def __init__(
        self, path: Path, services: Sequence[Register], *, vm_id: str, inner: Path, bounds: Bounds | None = None
    ) -> None:
        require_upb()
        caller = Caller(role=Role.GUEST_AGENT, name=vm_id)
        lines = logs.LineBudget()
        self._server = grpc.aio.server(
            interceptors=[PolicyInterceptor(lambda _: caller, lines=lines, vm_id=vm_id)],
            options=[*_options(REPORT_BYTES, _GUEST_STREAMS), NO_COMPRESSION, *_CONSTANT_WINDOWS],
        )
        for register in services:
            register(self._server)

        def note(reason: str) -> None:
            left_out = lines.take()
            if left_out is not None:
                _log.info("guest.connection_ended", vm_id=vm_id, error=reason, lines_left_out=left_out)

        self._acceptor = Acceptor(path, inner=inner, bounds=bounds or Bounds(), note=note)
        inner.unlink(missing_ok=True)
        _bind(self._server, f"unix:{inner}")

    async def start(self) -> None:
        """Answer calls."""
        await self._server.start()
        self._acceptor.start()

    async def stop(self) -> None:
        """Take no new calls and cancel those that run."""
        self._acceptor.stop()
        await self._server.stop(None)


def require_upb() -> None:
    """Refuse to run on the pure Python protobuf: it is too slow, and its limits are not those that were tested."""
    if (kind := api_implementation.Type()) != "upb":
        raise RuntimeError(f"protobuf runs as {kind!r}, not 'upb'. Install the binary wheel of protobuf.")


def _policed(
    interceptor: PolicyInterceptor, services: Sequence[Register], *, connections: int = _CONNECTIONS
) -> grpc.aio.Server:
    options = [
        *_options(SERVICE_MESSAGE_BYTES, _SERVICE_STREAMS),
        ("grpc.max_allowed_incoming_connections", connections),
    ]
    server = grpc.aio.server(interceptors=[interceptor], options=options)
    for register in services:
        register(server)
    return server


def _options(message_bytes: int, streams: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.max_concurrent_streams", streams),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _bind(server: grpc.aio.Server, address: str) -> None:
    with unix_socket.closed():
        port = server.add_insecure_port(address)
    # grpc.aio raises for a taken TCP port but answers 0 for some unix sockets it cannot bind.
    if not port:
        raise OSError(f"{address} cannot be listened on. Does its directory exist, and may this user write there?")


def _operator(_: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    return OPERATOR


def _add_operator_services(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """Add what only an operator may see; imported here, as no other listener needs it."""
    from grpc_channelz.v1 import channelz

    from cellmesh.mesh.reflection import add_reflection

    channelz.add_channelz_servicer(server)  # type: ignore[arg-type]  # the stub knows blocking servers only
    add_reflection(server, (*names, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"))


def _check(services: Sequence[Register]) -> tuple[str, ...]:
    """Return the names of the services; raise PolicyMissing or a rule's compilation error before anybody calls."""
    recorder = _Recorder()
    for register in services:
        register(cast("grpc.aio.Server", recorder))
    for service, methods in recorder.methods.items():
        for method in methods:
            policy_of(f"/{service}/{method}")
            validation.warm(descriptor_pool.Default().FindMethodByName(f"{service}.{method}").input_type)
    return tuple(recorder.methods)


class _Recorder:
    """Stands in for a server while servicers are added, to learn which methods they have."""

    def __init__(self) -> None:
        self.methods: dict[str, tuple[str, ...]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignore what add_registered_method_handlers says too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, object]) -> None:
        """Note the methods of a service."""
        self.methods[service] = tuple(handlers)
