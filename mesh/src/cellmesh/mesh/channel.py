"""Clients: channels that enforce the contracts' policies on what is called through them.

`MeshChannel` is a grpc.aio.Channel, so generated stubs work with it: `VmServiceStub(channel)`. What differs: errors are
MeshErrors; a unary call is a plain coroutine; a streaming call takes its requests as an iterator, and its answers are
to be cancelled or closed by who stops reading early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from cellmesh.mesh import telemetry
from cellmesh.mesh.breaker import Breaker
from cellmesh.mesh.call import Downstream, Method, StreamCallable, UnaryCallable
from cellmesh.mesh.identity import spiffe_id
from cellmesh.mesh.limits import (
    GUEST_MESSAGE_BYTES,
    METADATA_BYTES,
    NO_COMPRESSION,
    PING_INTERVAL_MS,
    SERVICE_MESSAGE_BYTES,
)
from cellmesh.mesh.policy import policy_of
from cellmesh.mesh.wire import decoder

if TYPE_CHECKING:
    from cellmesh.mesh.pki import Identity, Leaf


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialed:
    """A connection, and the certificate it was made with if any."""

    channel: grpc.aio.Channel
    """The connection."""
    leaf: Leaf | None = None
    """Whom it speaks as."""


Dial = Callable[[Dialed | None], Dialed]
"""Returns the connection to use, the one given if it still serves."""


class MeshChannel(grpc.aio.Channel):
    """Calls one downstream by the contracts' policies. Close it, or use it as an async context manager."""

    def __init__(self, dial: Dial, downstream: Downstream) -> None:
        self._dial = dial
        self._downstream = downstream
        self._dialed = dial(None)
        # Calls of the connection before are left to end; by the next dialing, half a day later, they have.
        self._previous: Dialed | None = None

    @property
    def breaker(self) -> Breaker:
        """The downstream's breaker."""
        return self._downstream.breaker

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close the connection; calls that run get `grace` seconds."""
        for dialed in (self._dialed, self._previous):
            if dialed is not None:
                await dialed.channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002  # as gRPC has it
        """Return the state of the connection."""
        return self._dialed.channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the connection's state is another."""
        await self._dialed.channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the downstream accepted the connection."""
        await self._dialed.channel.channel_ready()

    def unary_unary(self, method: str, *codecs: Any, **options: Any) -> Any:
        """Return what calls a method with one request and one answer."""
        return UnaryCallable(self._method("unary_unary", method, codecs, options))

    def stream_unary(self, method: str, *codecs: Any, **options: Any) -> Any:
        """Return what calls a method with an iterator of requests and one answer."""
        return UnaryCallable(self._method("stream_unary", method, codecs, options))

    def unary_stream(self, method: str, *codecs: Any, **options: Any) -> Any:
        """Return what calls a method with one request and a stream of answers."""
        return StreamCallable(self._method("unary_stream", method, codecs, options))

    def stream_stream(self, method: str, *codecs: Any, **options: Any) -> Any:
        """Return what calls a method with an iterator of requests and a stream of answers."""
        return StreamCallable(self._method("stream_stream", method, codecs, options))

    def _method(self, kind: str, path: str, codecs: tuple[Any, ...], options: dict[str, Any]) -> Method:
        made: tuple[Dialed | None, Any] = (None, None)
        # As gRPC has them: the request's serializer, the response's deserializer, in place or by name.
        if len(codecs) > 1:
            codecs = (codecs[0], decoder(codecs[1]))
        else:
            options = {**options, "response_deserializer": decoder(options.get("response_deserializer"))}

        async def open_call() -> Any:
            nonlocal made
            dialed = await self._current()
            if made[0] is not dialed:
                made = (dialed, getattr(dialed.channel, kind)(path, *codecs, **options))
            return made[1]

        return Method(path=path, policy=policy_of(path), downstream=self._downstream, open_call=open_call)

    async def _current(self) -> Dialed:
        dialed = self._dial(self._dialed)
        if dialed is not self._dialed:
            oldest, self._previous, self._dialed = self._previous, self._dialed, dialed
            if oldest is not None:
                await oldest.channel.close(None)
        return self._dialed


def unix_channel(
    path: Path, *, downstream: str, breaker: Breaker | None = None, audience: str = "", named_user: str = ""
) -> MeshChannel:
    """Return a channel to a service on a unix socket of this host.

    `audience`, its SPIFFE id, lets user tokens for it go there. `named_user` is the user an operator acts for, in each
    call that may act for one; only operator sockets believe it.
    """
    channel = grpc.aio.insecure_channel(
        f"unix:{path}",
        options=_options(SERVICE_MESSAGE_BYTES),
        interceptors=telemetry.client_interceptors(guest=False),
    )
    called = Downstream(
        name=downstream, breaker=breaker or Breaker(downstream), audience=audience, named_user=named_user
    )
    return _fixed(channel, called)


def guest_channel(path: Path, *, vm_id: str, breaker: Breaker | None = None) -> MeshChannel:
    """Return a channel to the agent of one VM, whose every answer is small, checked and escaped."""
    name = f"guest {vm_id}"
    channel = grpc.aio.insecure_channel(
        f"unix:{path}",
        options=[
            *_options(GUEST_MESSAGE_BYTES),
            ("grpc.max_metadata_size", METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", METADATA_BYTES),
            NO_COMPRESSION,
        ],
        interceptors=telemetry.client_interceptors(guest=True),
    )
    return _fixed(channel, Downstream(name=name, breaker=breaker or Breaker(name), hostile=True))


def mtls_channel(address: str, *, service: str, identity: Identity, breaker: Breaker | None = None) -> MeshChannel:
    """Return a channel to service `service` at `host:port`, dialed again whenever our certificate was renewed."""
    # 8 MB that only services reached over a network pay.
    from cellmesh.mesh.pki import server_name

    # The certificate says who serves; the address only says where.
    options = [
        *_options(SERVICE_MESSAGE_BYTES),
        ("grpc.ssl_target_name_override", server_name(service, identity.trust_domain)),
        ("grpc.keepalive_time_ms", PING_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", PING_INTERVAL_MS // 2),
    ]

    def dial(dialed: Dialed | None) -> Dialed:
        leaf = identity.leaf()
        if dialed is not None and dialed.leaf is leaf:
            return dialed
        credentials = grpc.ssl_channel_credentials(leaf.bundle_pem, leaf.key_pem, leaf.certificate_pem)
        interceptors = telemetry.client_interceptors(guest=False)
        return Dialed(
            channel=grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors), leaf=leaf
        )

    audience = spiffe_id(identity.trust_domain, service)
    return MeshChannel(dial, Downstream(name=service, breaker=breaker or Breaker(service), audience=audience))


def _fixed(channel: grpc.aio.Channel, downstream: Downstream) -> MeshChannel:
    dialed = Dialed(channel=channel)
    return MeshChannel(lambda _: dialed, downstream)


def _options(message_bytes: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        # gRPC's own retries know nothing of the contracts.
        ("grpc.enable_retries", 0),
        # A peer of this host that restarts is back in a moment; gRPC would wait up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # In spite of its name: how long one try to connect may take. A guest without KVM is slow to answer.
        ("grpc.min_reconnect_backoff_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Connections that others of this process make are not ours to share: their breakers are others too.
        ("grpc.use_local_subchannel_pool", 1),
        # A proxy from the environment has no business between our services.
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        # Over a unix socket gRPC would send a percent-encoded path as authority.
        ("grpc.default_authority", "cellmesh"),
    ]
