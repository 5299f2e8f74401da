"""What was committed last of each VM, in memory: keepers look at it far more often than it changes."""

from __future__ import annotations

from collections.abc import Sequence

from cellmesh.hypervisor.domain.container import Container
from cellmesh.hypervisor.domain.vm import Vm
from cellmesh.hypervisor.store.transaction import Reading, Transaction


class Mirror:
    """The VMs and containers as committed. There is one writer, and it tells the mirror before anybody else."""

    def __init__(self) -> None:
        self._vms: dict[str, Vm] = {}
        self._containers: dict[str, dict[str, Container]] = {}

    async def load(self, reading: Reading) -> None:
        """Copy the state as it is at the start."""
        for vm in await reading.vms():
            self._vms[vm.vm_id] = vm
            self._containers[vm.vm_id] = {container.name: container for container in await reading.containers(vm.vm_id)}

    def apply(self, committed: Transaction) -> None:
        """Take over what a transaction stored, after its commit."""
        for (vm_id, name), container in committed.stored_containers.items():
            self._containers.setdefault(vm_id, {})[name] = container
        for vm_id, vm in committed.stored_vms.items():
            if vm is None:
                self._vms.pop(vm_id, None)
                self._containers.pop(vm_id, None)
            else:
                self._vms[vm_id] = vm

    def vm(self, vm_id: str) -> Vm | None:
        """Return the VM, or None."""
        return self._vms.get(vm_id)

    def containers(self, vm_id: str) -> Sequence[Container]:
        """Return the containers of a VM, by name."""
        containers = self._containers.get(vm_id, {})
        return [containers[name] for name in sorted(containers)]
