"""Wires the activator: socket, privileges, then the talk with the hypervisor and with those who wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cellmesh.hypervisor.activator import privileges
from cellmesh.hypervisor.activator.activations import Activations, asking
from cellmesh.hypervisor.activator.server import Responder, listening, serving
from cellmesh.hypervisor.activator.settings import ActivatorSettings
from cellmesh.mesh.breaker import Breaker
from cellmesh.mesh.channel import unix_channel

# The hypervisor is on this host, and people wait: it is asked again soon.
_BREAKER_SECONDS = 1.0


@asynccontextmanager
async def activating(settings: ActivatorSettings) -> AsyncIterator[None]:
    """Be the node's activator inside; OSError if its socket cannot be had."""
    with listening(settings.activator_socket, gid=settings.edge_group) as listener:
        # Before gRPC starts threads: each has privileges of its own.
        privileges.lower(uid=settings.edge_user, gid=settings.edge_group)
        breaker = Breaker("hypervisor", reset_timeout=_BREAKER_SECONDS)
        async with (
            unix_channel(settings.edge_socket, downstream="hypervisor", breaker=breaker) as hypervisor,
            Activations(asking(hypervisor)) as activations,
            serving(Responder(activations=activations, wait_budget=settings.wait_budget), listener),
        ):
            yield
