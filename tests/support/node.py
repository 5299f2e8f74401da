"""A real hypervisor for tests: a process of its own, or in this one; whatever it started is gone afterwards.

async with short_directory() as directory, Hub(directory / "hub") as hub:
    async with node(directory, hub.binary) as it:
        vm = await it.create()
        await it.until(vm.vm_id, vm_pb2.VM_STATE_RUNNING)
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.hypervisor.v1 import (
    container_pb2,
    container_service_pb2,
    container_service_pb2_grpc,
    event_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
    node_service_pb2_grpc,
    vm_pb2,
    vm_service_pb2,
    vm_service_pb2_grpc,
)
from cellmesh.hypervisor.node import serving
from cellmesh.hypervisor.settings import HypervisorSettings
from cellmesh.hypervisor.vmm import handle_file, process, sweep
from cellmesh.mesh.channel import MeshChannel, unix_channel

SECONDS = 30.0
"""How long a test waits for anything; a busy machine may need it, a quiet one never does."""
# What its systemd unit gives it.
_UMASK = 0o077
_READY = b"hypervisor.ready"
_ROOM = 1 << 40


@contextmanager
def short_directory() -> Iterator[Path]:
    """Yield a directory that every uid may enter, with a path short enough for the sockets below it."""
    path = Path(tempfile.mkdtemp(prefix="cm-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def wish(vm_id: str) -> dict[str, str]:
    """Return the fields of a fresh wish about a VM."""
    return {"request_id": str(uuid.uuid4()), "vm_id": vm_id}


class Node:
    """One node: its directories, its hypervisor, and an operator's calls to it."""

    def __init__(self, directory: Path, vmm: Path, **settings: object) -> None:
        self.run_dir = directory / "run"
        self.state_dir = directory / "state"
        self.settings = {
            "run_dir": self.run_dir,
            "state_dir": self.state_dir,
            "vmm": vmm,
            "memory_capacity_bytes": _ROOM,
            **settings,
        }
        self.process: asyncio.subprocess.Process | None = None
        self.log = directory / "hypervisor.log"
        self.patience = SECONDS
        self._channel: MeshChannel | None = None

    @property
    def channel(self) -> MeshChannel:
        """Return the operator's connection."""
        if self._channel is None:
            self._channel = unix_channel(self.run_dir / "operator.sock", downstream="hypervisor")
        return self._channel

    @property
    def vms(self) -> vm_service_pb2_grpc.VmServiceAsyncStub:
        """Return the stub of VmService."""
        return vm_service_pb2_grpc.VmServiceStub(self.channel)

    @property
    def containers(self) -> container_service_pb2_grpc.ContainerServiceAsyncStub:
        """Return the stub of ContainerService."""
        return container_service_pb2_grpc.ContainerServiceStub(self.channel)

    @property
    def events(self) -> event_service_pb2_grpc.EventServiceAsyncStub:
        """Return the stub of EventService."""
        return event_service_pb2_grpc.EventServiceStub(self.channel)

    @property
    def node(self) -> node_service_pb2_grpc.NodeServiceAsyncStub:
        """Return the stub of NodeService."""
        return node_service_pb2_grpc.NodeServiceStub(self.channel)

    # The hypervisor's process.

    def environment(self, **more: object) -> dict[str, str]:
        """Return the environment a hypervisor of this node runs in."""
        settings = {**self.settings, **more}
        named = {f"CELLMESH_{name.upper()}": _written(value) for name, value in settings.items()}
        return {"PATH": os.environ["PATH"], **named}

    async def start(self, **more: object) -> None:
        """Start the hypervisor and wait until it is ready; AssertionError with its log if it ends before."""
        self.process = await self.spawn(**more)
        async with asyncio.timeout(SECONDS):
            while _READY not in self.log.read_bytes():
                if self.process.returncode is not None:
                    raise AssertionError(f"the hypervisor ended: {self.log.read_text()}")
                await asyncio.sleep(0.02)

    async def spawn(self, **more: object) -> asyncio.subprocess.Process:
        """Start a hypervisor's process, its log fresh, and return at once."""
        with self.log.open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cellmesh.hypervisor"),
                env=self.environment(**more),
                stdout=log,
                stderr=log,
                umask=_UMASK,
            )

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the hypervisor, the VMs go on; return its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        """Wait until the hypervisor has ended by itself; return its exit status."""
        assert self.process is not None
        async with asyncio.timeout(SECONDS):
            return await self.process.wait()

    async def hang_up(self) -> None:
        """Close the operator's connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    # What tests do all the time.

    async def create(self, user_id: str = "", **spec: object) -> vm_pb2.Vm:
        """Create a VM for a user of its own and return it."""
        request = vm_service_pb2.CreateVmRequest(
            request_id=str(uuid.uuid4()), user_id=user_id or str(uuid.uuid4()), spec=vm_pb2.VmSpec(**spec)
        )
        return (await self.vms.CreateVm(request)).vm

    async def get(self, vm_id: str) -> vm_pb2.Vm:
        """Return a VM."""
        return (await self.vms.GetVm(vm_service_pb2.GetVmRequest(vm_id=vm_id))).vm

    async def until(self, vm_id: str, state: vm_pb2.VmState, *, epoch: int = 0) -> vm_pb2.Vm:
        """Follow a VM until it is in a state, in an epoch not before `epoch`; return it."""
        return await self.until_vm(vm_id, lambda vm: vm.state == state and vm.epoch >= epoch)

    async def until_vm(self, vm_id: str, wanted: Callable[[vm_pb2.Vm], bool]) -> vm_pb2.Vm:
        """Follow a VM until it is as wanted; return it."""
        seen: list[str] = []
        try:
            async with asyncio.timeout(self.patience):
                watch = self.vms.WatchVms(vm_service_pb2.WatchVmsRequest(vm_id=vm_id))
                try:
                    async for answer in watch:
                        if answer.HasField("vm"):
                            seen.append(
                                f"{vm_pb2.VmState.Name(answer.vm.state)} {answer.vm.reason} {answer.vm.message}".strip()
                            )
                            if wanted(answer.vm):
                                return answer.vm
                finally:
                    watch.cancel()
        except TimeoutError:
            raise AssertionError(
                f"VM {vm_id} went {seen}; console: {self._console(vm_id)}; log: {self.log.read_text()[-4000:]}"
            ) from None
        raise AssertionError("the watch ended")

    def _console(self, vm_id: str) -> str:
        path = self.run_dir / "vm" / vm_id.replace("-", "")[:12] / "console.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else "none"

    async def until_gone(self, vm_id: str) -> None:
        """Follow a VM until it is deleted; one that is gone already is fine."""
        is_there = caught_up = False
        async with asyncio.timeout(self.patience):
            watch = self.vms.WatchVms(vm_service_pb2.WatchVmsRequest(vm_id=vm_id))
            try:
                async for answer in watch:
                    if answer.HasField("vm"):
                        is_there = answer.vm.state != vm_pb2.VM_STATE_DELETED
                    caught_up = caught_up or answer.bookmark.caught_up
                    if caught_up and not is_there:
                        return
            finally:
                watch.cancel()

    async def container(self, vm_id: str, name: str = "app") -> container_pb2.Container:
        """Return a container."""
        request = container_service_pb2.GetContainerRequest(vm_id=vm_id, container_name=name)
        return (await self.containers.GetContainer(request)).container

    async def until_container(
        self, vm_id: str, name: str, state: common_container_pb2.ContainerState
    ) -> container_pb2.Container:
        """Ask for a container until it is in a state; return it."""
        async with asyncio.timeout(self.patience):
            while (container := await self.container(vm_id, name)).status.state != state:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # it is another process that changes it
        return container

    async def running(self, **spec: object) -> vm_pb2.Vm:
        """Create a VM and return it once it runs; its Hello may be stored before the id of its process."""
        vm = await self.create(**spec)
        return await self.until_vm(vm.vm_id, lambda now: now.state == vm_pb2.VM_STATE_RUNNING and now.vmm_pid > 0)

    async def stop_vm(self, vm_id: str) -> vm_pb2.Vm:
        """Stop a VM and return it once it is STOPPED."""
        await self.vms.StopVm(vm_service_pb2.StopVmRequest(**wish(vm_id)))
        return await self.until(vm_id, vm_pb2.VM_STATE_STOPPED)

    async def start_container(
        self, vm_id: str, image: str, name: str = "app", **spec: object
    ) -> container_pb2.Container:
        """Start a container and return it."""
        request = container_service_pb2.StartContainerRequest(
            request_id=str(uuid.uuid4()),
            vm_id=vm_id,
            container_name=name,
            spec=common_container_pb2.ContainerSpec(image=image, **spec),
        )
        return (await self.containers.StartContainer(request)).container

    async def all_events(self, vm_id: str = "") -> list[event_pb2.Event]:
        """Return the newest thousand events, oldest first."""
        request = event_service_pb2.ListEventsRequest(vm_id=vm_id)
        request.page.page_size = 1000
        return list((await self.events.ListEvents(request)).events)

    async def end_everything(self) -> None:
        """End the hypervisor, every VMM and every bridge of this node."""
        await self.hang_up()
        if self.process is not None:
            await self.stop(signal.SIGKILL)
        for path in self.state_dir.glob("vm/*/handle.json"):
            handle = handle_file.read(path)
            if handle is not None:
                await _kill(handle.pid, handle.start_ticks)
        for directory in self.run_dir.glob("vm/*"):
            for pid in (*sweep.vmm_processes(directory), *sweep.bridge_processes(directory)):
                ticks = process.start_ticks(pid)
                if ticks is not None:
                    await _kill(pid, ticks)


@asynccontextmanager
async def node(directory: Path, vmm: Path, **settings: object) -> AsyncIterator[Node]:
    """Run a hypervisor as a process of its own; the images are to be in `directory/state/images`."""
    it = Node(directory, vmm, **settings)
    try:
        await it.start()
        yield it
    finally:
        await it.end_everything()


@asynccontextmanager
async def node_here(directory: Path, vmm: Path, **settings: object) -> AsyncIterator[Node]:
    """Run a hypervisor in this process and event loop."""
    it = Node(directory, vmm, **settings)
    try:
        async with serving(HypervisorSettings.model_validate(it.settings)):
            yield it
            await it.hang_up()
    finally:
        await it.end_everything()


async def _kill(pid: int, ticks: int) -> None:
    if pid and process.is_alive(pid, ticks):
        process.send_signal(pid, ticks, signal.SIGKILL)
        await process.wait(pid, ticks, seconds=SECONDS)
        process.reap(pid)


def _written(value: object) -> str:
    return str(value.total_seconds()) if isinstance(value, timedelta) else str(value)
