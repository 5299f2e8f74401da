"""The node itself: what it is, what it has room for, and whether it takes more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cellmesh.hypervisor.domain import audit
from cellmesh.hypervisor.domain.vm import VmState
from cellmesh.hypervisor.lifecycle.admission import Admission
from cellmesh.hypervisor.store import Store
from cellmesh.hypervisor.vmm.errors import VmmError
from cellmesh.image import ImageError, ImageStore
from cellmesh.service.intent import Answer, Intent


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """The node as it is now."""

    node_id: str
    vmm_version: str
    default_guest_image: str
    draining: bool
    vm_count: int
    running_vm_count: int
    max_vms: int
    memory_committed_bytes: int
    memory_capacity_bytes: int
    start_time: datetime
    warnings: Sequence[str]


class Nodes:
    """The one node this hypervisor is of."""

    def __init__(
        self,
        *,
        store: Store,
        images: ImageStore,
        admission: Admission,
        vmm_version: Callable[[], Awaitable[str]],
        warnings: Sequence[str],
        start_time: datetime,
    ) -> None:
        self._store = store
        self._images = images
        self._admission = admission
        self._vmm_version = vmm_version
        self._warnings = warnings
        self._start_time = start_time

    async def status(self) -> NodeStatus:
        """Return the node as it is now."""
        version, damage = await self._version()
        image, missing = self._default_image()
        async with self._store.reading() as reading:
            node = await reading.node()
            return NodeStatus(
                node_id=node.node_id,
                vmm_version=version,
                default_guest_image=image,
                draining=node.draining,
                vm_count=await reading.vm_count(),
                running_vm_count=await reading.vm_count(VmState.RUNNING),
                max_vms=self._admission.max_vms,
                memory_committed_bytes=await reading.memory_committed(),
                memory_capacity_bytes=self._admission.memory_capacity_bytes,
                start_time=self._start_time,
                warnings=[*self._warnings, *damage, *missing],
            )

    async def _version(self) -> tuple[str, list[str]]:
        try:
            return await self._vmm_version(), []
        except VmmError as error:
            return "", [str(error)]

    def _default_image(self) -> tuple[str, list[str]]:
        try:
            return self._images.default_guest() or "", []
        except ImageError as error:
            return "", [str(error)]

    async def drain(self, intent: Intent[Answer], *, draining: bool) -> Answer:
        """Set whether the node takes new VMs and starts; the answer is made of the node's status. RequestIdReused."""
        before = await self.status()
        async with self._store.transaction() as tx:
            if (answer := await tx.answered(intent)) is not None:
                return answer
            await tx.set_draining(draining=draining)
            await tx.audit(audit.DRAIN_NODE, resource="node", facts={"draining": draining})
            return await tx.answer(intent, replace(before, draining=draining))
