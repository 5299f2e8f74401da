"""Probes a VM from the outside in, each layer within its share of the time there is. A probe never changes anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from cellmesh.hypervisor.domain.container import Claim, ContainerState, ContainerStatus, Health
from cellmesh.hypervisor.domain.vm import Vm, VmState
from cellmesh.mesh.errors import MeshError

_ILL = frozenset({ContainerState.BACKOFF, ContainerState.FAILED})


class ProbeFailed(Exception):
    """A layer does not answer as it should; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHealth:
    """What the probe of one layer said."""

    layer: str
    health: Health
    message: str
    latency: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class VmHealth:
    """The health of a VM, layer by layer, and what its agent says of each container."""

    layers: Sequence[LayerHealth]
    containers: Sequence[Claim]

    @property
    def health(self) -> Health:
        """Return SERVING if every layer is, and every container with a probe that is not stopped."""
        if any(layer.health is not Health.SERVING for layer in self.layers):
            return Health.NOT_SERVING
        if any(_is_ill(claim.status) for claim in self.containers):
            return Health.NOT_SERVING
        return Health.SERVING


def _is_ill(status: ContainerStatus) -> bool:
    # Of one that was stopped, or is done, nobody expects an answer.
    if status.state is ContainerState.STOPPED:
        return False
    return status.health is Health.NOT_SERVING or status.state in _ILL


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """How to ask each layer of a VM; each raises ProbeFailed or MeshError."""

    process: Callable[[Vm], Awaitable[None]]
    api: Callable[[Vm], Awaitable[None]]
    agent: Callable[[Vm, timedelta], Awaitable[Sequence[Claim]]]


async def check(probes: Probes, vm: Vm, *, within: timedelta) -> VmHealth:
    """Probe a VM; every layer has the same share of `within`, and one that is dead spares those inside it."""
    claims: list[Claim] = []

    async def agent() -> None:
        claims.extend(await probes.agent(vm, share))

    steps: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
        ("vmm_process", lambda: probes.process(vm)),
        ("vmm_api", lambda: probes.api(vm)),
        ("agent", agent),
    )
    share = within / len(steps)
    layers: list[LayerHealth] = []
    dead = ""
    if vm.state not in {VmState.STARTING, VmState.RUNNING, VmState.STOPPING, VmState.QUARANTINED}:
        dead = f"The VM is {vm.state.name}; start it."
    for layer, probe in steps:
        if dead:
            layers.append(LayerHealth(layer=layer, health=Health.NOT_SERVING, message=dead, latency=timedelta()))
            continue
        found = await _probe(layer, probe, share)
        layers.append(found)
        if found.health is not Health.SERVING and layer == "vmm_process":
            dead = "Not asked, as the VMM's process is not there."
    return VmHealth(layers=layers, containers=claims)


async def _probe(layer: str, probe: Callable[[], Awaitable[None]], share: timedelta) -> LayerHealth:
    begun = time.monotonic()
    health, message = Health.NOT_SERVING, ""
    try:
        async with asyncio.timeout(share.total_seconds()):
            await probe()
        health = Health.SERVING
    except TimeoutError:
        message = f"No answer within {share.total_seconds():.2f} s; recycle the VM if that lasts."
    except (ProbeFailed, MeshError) as error:
        message = str(error)
    return LayerHealth(layer=layer, health=health, message=message, latency=timedelta(seconds=time.monotonic() - begun))
