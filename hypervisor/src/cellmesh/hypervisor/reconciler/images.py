"""The disks of container images that a running VM has: attached when needed, detached when no container needs them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

import structlog

from cellmesh.hypervisor.domain.event import Anomaly, Subject
from cellmesh.hypervisor.reconciler.world import World
from cellmesh.hypervisor.vmm import Disk, EjectUnfinished, Handle, VmmError, VmmRefused
from cellmesh.mesh.errors import MeshError

_SERIAL_DIGITS = 20
_OF_THE_VM = frozenset({"root", "data"})
_LONGEST_PAUSE = 60.0
_log = structlog.get_logger()


def serial_of(digest: str) -> str:
    """Return the serial of the disk of an image: the first 20 digits of its digest."""
    return digest.removeprefix("sha256:")[:_SERIAL_DIGITS]


def disk_of(world: World, digest: str) -> Disk:
    """Return the read-only disk of a container image; ImageError if there is no such image."""
    return Disk(path=world.images.container(digest).rootfs, serial=serial_of(digest), readonly=True)


class ImageDisks:
    """The image disks of one boot of one VM. Detaching happens in `tasks`, which never raise.

    `attached` has the digests of the images that were attached at the boot; None if that must be read from the VMM.
    """

    def __init__(
        self, world: World, tasks: asyncio.TaskGroup, handle: Handle, *, attached: Collection[str] | None
    ) -> None:
        self._world = world
        self._tasks = tasks
        self._handle = handle
        self._attached = None if attached is None else {serial_of(digest) for digest in attached}
        self._attaching = asyncio.Lock()
        self._detaching: dict[str, asyncio.Task[None]] = {}
        self._surveying: asyncio.Task[None] | None = None
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    async def attach(self, digest: str) -> None:
        """Give the VM the disk of an image, unless it has it. Raises ImageError, VmmError."""
        serial = serial_of(digest)
        if (leaving := self._detaching.get(serial)) is not None:
            await asyncio.wait({leaving})
        async with self._attaching:
            attached = await self._known()
            if serial not in attached:
                await self._add(disk_of(self._world, digest))
                attached.add(serial)

    def detach_unused(self, needed: Collection[str]) -> float | None:
        """Begin to detach all disks but those of these digests; return the seconds until the next try, or None."""
        if self._attached is None:
            if self._surveying is None:
                self._surveying = self._tasks.create_task(self._survey(), name=f"disks of {self._handle.vm_id}")
            return None
        waits: list[float] = []
        for serial in self._attached - {serial_of(digest) for digest in needed} - self._detaching.keys():
            wait = self._not_before.get(serial, 0.0) - time.monotonic()
            if wait > 0:
                waits.append(wait)
            else:
                self._detaching[serial] = self._tasks.create_task(self._detach(serial), name=f"detach {serial}")
        return min(waits, default=None)

    async def cancel(self) -> None:
        """Give up what is under way and wait until nothing is."""
        tasks = [*self._detaching.values(), *([self._surveying] if self._surveying is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _known(self) -> set[str]:
        if self._attached is None:
            # A removal that an earlier hypervisor asked for may still go on, and two disks must not share a serial.
            await self._world.vmm.settle_disks(self._handle)
            self._attached = set(await self._world.vmm.disks(self._handle) - _OF_THE_VM)
        return self._attached

    async def _add(self, disk: Disk) -> None:
        while True:
            try:
                await self._world.vmm.add_disk(self._handle, disk)
            except VmmRefused:
                # The slots may all be taken; each disk that leaves frees one.
                if not self._detaching:
                    raise
                await asyncio.wait(self._detaching.values(), return_when=asyncio.FIRST_COMPLETED)
            else:
                return

    async def _survey(self) -> None:
        try:
            async with self._attaching:
                await self._known()
        except (VmmError, OSError) as error:
            _log.warning("images.not_read", vm_id=self._handle.vm_id, error=str(error))
        finally:
            self._surveying = None
            self._world.store.changes.notify({self._handle.vm_id})

    async def _detach(self, serial: str) -> None:
        vm_id = self._handle.vm_id
        try:
            await self._world.guests.release_image(vm_id, self._handle.epoch, serial)
            self._world.failpoint("image.released")
            await self._world.vmm.remove_disk(self._handle, serial)
            self._world.failpoint("image.detached")
            self._gone(serial)
        except EjectUnfinished as error:
            # The VMM has forgotten it already: to ask again would change nothing.
            self._gone(serial)
            await self._tell(str(error))
        except Exception as error:
            # Whatever it is, it must not end the keeper of the VM.
            failures = self._failures[serial] = self._failures.get(serial, 0) + 1
            self._not_before[serial] = time.monotonic() + min(2.0**failures, _LONGEST_PAUSE)
            said = error.message if isinstance(error, MeshError) else repr(error)
            _log.warning("image.not_detached", vm_id=vm_id, serial=serial, failures=failures, error=said)
        finally:
            del self._detaching[serial]
            self._world.store.changes.notify({vm_id})

    def _gone(self, serial: str) -> None:
        if self._attached is not None:
            self._attached.discard(serial)
        self._failures.pop(serial, None)
        self._not_before.pop(serial, None)

    async def _tell(self, message: str) -> None:
        subject = Subject(vm_id=self._handle.vm_id, epoch=self._handle.epoch)
        async with self._world.store.transaction() as tx:
            await tx.log(subject, Anomaly(kind="DISK_NOT_EJECTED", message=message))
