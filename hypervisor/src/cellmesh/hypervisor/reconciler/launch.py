"""Starting one epoch of a VM, up to a guest that boots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from cellmesh.hypervisor.domain.container import Container
from cellmesh.hypervisor.domain.vm import Reason, Vm
from cellmesh.hypervisor.reconciler.images import disk_of
from cellmesh.hypervisor.reconciler.world import World
from cellmesh.hypervisor.vmm import Cell, Disk, Handle, VmmError, VmmRefused
from cellmesh.image import ImageError
from cellmesh.mesh.errors import MeshError


class StartFailed(MeshError):
    """An epoch could not be started; `reason` says at what."""

    reason: ClassVar[str] = Reason.VMM_START_FAILED


class ImageMissing(StartFailed):
    """An image the VM is made of is not there, or damaged."""

    reason = Reason.IMAGE_MISSING


class BootFailed(StartFailed):
    """The VMM ran and refused to boot the VM."""

    reason = Reason.BOOT_FAILED


def attached_at_boot(containers: Iterable[Container]) -> set[str]:
    """Return the digests of the images whose disks a VM gets at its boot."""
    return {container.spec.image for container in containers if container.wanted}


async def launch(world: World, vm: Vm, containers: Sequence[Container]) -> Handle:
    """Start the VM's present epoch; StartFailed if that could not be done."""
    try:
        guest = world.images.guest(vm.spec.guest_image)
        disks = [disk_of(world, digest) for digest in sorted(attached_at_boot(containers))]
    except ImageError as error:
        raise ImageMissing(f"An image is missing: {error}") from error
    try:
        if world.vmm.directory(vm.vm_id).exists():
            await world.vmm.clean(vm.vm_id)
        await world.vmm.prepare(vm.vm_id)
        # The agent dials as soon as it runs, so who answers it must be there before.
        world.sessions.begin(vm.vm_id, vm.epoch)
        await world.sockets.open(vm.vm_id)
        world.failpoint("start.server_listening")
        data = await world.vmm.ensure_data_disk(vm.vm_id, vm.spec.data_disk_bytes)
        cell = Cell(
            vm_id=vm.vm_id,
            epoch=vm.epoch,
            vcpus=vm.spec.vcpus,
            memory_bytes=vm.spec.memory_bytes,
            kernel=guest.kernel,
            initramfs=guest.initramfs,
            cmdline=guest.cmdline,
            disks=(
                Disk(path=guest.rootfs, serial="root", readonly=True),
                Disk(path=data, serial="data", readonly=False),
                *disks,
            ),
        )
        return await world.vmm.launch(cell)
    except VmmRefused as error:
        raise BootFailed(f"The VMM would not boot it: {error}") from error
    except (VmmError, OSError) as error:
        raise StartFailed(f"Its VMM could not be started: {error}") from error
