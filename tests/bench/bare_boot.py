"""The floor of a boot: the same VMM, client, kernel and initramfs, and a guest that says one line and no more."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cellmesh.api.hypervisor.v1 import vm_pb2
from cellmesh.hypervisor.vmm import Cell, Disk, Vmm
from cellmesh.image import GuestImage
from support.bare_guest import build_bare_guest
from support.node import short_directory
from support.real_node import PATIENCE, vmm

_UID_BASE = 330_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BareBoot:
    """Boots bare guests, one after the other."""

    vmm: Vmm
    guest: GuestImage
    kernel: Path
    initramfs: Path
    rootfs: Path

    async def seconds(self, spec: vm_pb2.VmSpec) -> float:
        """Return how long a VM of this size takes from nothing until its guest's line has come."""
        vm_id = str(uuid.uuid4())
        begun = time.perf_counter()
        await self.vmm.prepare(vm_id)
        said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            async with await self._listen(vm_id, said):
                handle = await self.vmm.launch(await self._cell(vm_id, spec))
                async with asyncio.timeout(PATIENCE):
                    line = await said
                took = time.perf_counter() - begun
                assert line == b"bare guest\n"
                await self.vmm.kill(handle)
        finally:
            await self.vmm.destroy(vm_id)
        return took

    async def _listen(self, vm_id: str, said: asyncio.Future[bytes]) -> asyncio.Server:
        async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            said.set_result(await reader.readline())
            await reader.read()
            writer.close()

        socket = self.vmm.hello_socket(vm_id)
        server = await asyncio.start_unix_server(hear, socket)
        await self.vmm.own(socket, vm_id)
        return server

    async def _cell(self, vm_id: str, spec: vm_pb2.VmSpec) -> Cell:
        data = await self.vmm.ensure_data_disk(vm_id, spec.data_disk_bytes)
        return Cell(
            vm_id=vm_id,
            epoch=1,
            vcpus=spec.vcpus,
            memory_bytes=spec.memory_bytes,
            kernel=self.kernel,
            initramfs=self.initramfs,
            cmdline=self.guest.cmdline,
            disks=(
                Disk(path=self.rootfs, serial="root", readonly=True),
                Disk(path=data, serial="data", readonly=False),
            ),
        )


@contextmanager
def bare_boots(guest: GuestImage) -> Iterator[BareBoot]:
    """Give what boots bare guests, with directories of its own."""
    with short_directory() as directory:
        kernel, initramfs, rootfs = build_bare_guest(guest)
        yield BareBoot(
            vmm=Vmm(
                binary=vmm(directory),
                run_dir=directory / "run",
                state_dir=directory / "state",
                uid_base=_UID_BASE,
                failpoint=lambda _: None,
            ),
            guest=guest,
            kernel=kernel,
            initramfs=initramfs,
            rootfs=rootfs,
        )
