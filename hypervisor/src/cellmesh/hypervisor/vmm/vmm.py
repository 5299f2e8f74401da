"""The one way in: everything the hypervisor does with a VM's processes and files."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from cellmesh.hypervisor.vmm import adopt, bridges, disks, events, handle_file, ladder, layout, process, sweep
from cellmesh.hypervisor.vmm.api import Api
from cellmesh.hypervisor.vmm.cgroup import Cgroups
from cellmesh.hypervisor.vmm.errors import EjectUnfinished, InvalidVm, LaunchFailed, StillRunning, StopUnfinished, shown
from cellmesh.hypervisor.vmm.ingress import Ingress
from cellmesh.hypervisor.vmm.launch import Launcher, kvm_group
from cellmesh.hypervisor.vmm.layout import Layout
from cellmesh.hypervisor.vmm.liveness import Watch, usable
from cellmesh.hypervisor.vmm.model import (
    Adoption,
    Budgets,
    Cell,
    Disk,
    Doubtful,
    Exit,
    Gone,
    Handle,
    Probe,
    Rung,
    Running,
    Stray,
)
from cellmesh.hypervisor.vmm.uids import Uids

_LAUNCHES = 16
"""How many VMs are started at once; more only make each of them slower."""
_VERSION_SECONDS = 30.0
_KILL_SECONDS = 30.0
_EJECT_SECONDS = 30.0
_EJECT_FIRST_POLL = 0.05
_EJECT_LONGEST_POLL = 1.0


class Vmm:
    """Starts, adopts, watches, stops and clears away the VMs of one host."""

    def __init__(
        self,
        *,
        binary: Path,
        run_dir: Path,
        state_dir: Path,
        uid_base: int | None,
        failpoint: Callable[[str], None],
        edge_gid: int | None = None,
    ) -> None:
        self._binary = binary
        self._layout = Layout(run_dir=run_dir, state_dir=state_dir, edge_gid=edge_gid)
        self._ingress = Ingress(layout=self._layout)
        self._uids = Uids(state_dir / "uids", base=uid_base) if uid_base is not None and os.getuid() == 0 else None
        self._cgroups = Cgroups.of_host()
        self._failpoint = failpoint
        self._launcher = Launcher(
            binary=binary,
            layout=self._layout,
            separate=self._uids is not None,
            cgroups=self._cgroups,
            failpoint=failpoint,
        )
        self._starting = asyncio.Semaphore(_LAUNCHES)
        self._asked: set[int] = set()
        self._statuses: dict[int, int] = {}
        self._version: str | None = None

    async def version(self) -> str:
        """Return what the binary says of itself, for instance `cloud-hypervisor v53.0.0`. Raises LaunchFailed."""
        if self._version is None:
            self._version = await self._ask_version()
        return self._version

    def directory(self, vm_id: str) -> Path:
        """Return the VM's run directory. Raises InvalidVm."""
        return self._layout.run(vm_id)

    def hello_socket(self, vm_id: str) -> Path:
        """Return where the host must listen before launch: what the guest dials as port 1025 of CID 2."""
        return self.directory(vm_id) / f"vsock.sock_{layout.HELLO_PORT}"

    def agent_socket(self, vm_id: str, epoch: int) -> Path:
        """Return where the guest agent of that boot is reached."""
        return self.directory(vm_id) / "in" / f"agent.{epoch}"

    async def prepare(self, vm_id: str) -> None:
        """Make the VM's directories and give it a uid; again does nothing. Raises InvalidVm, UidsExhausted."""
        await asyncio.to_thread(self._prepare, vm_id)

    async def own(self, path: Path, vm_id: str) -> None:
        """Give a socket in the VM's run directory to its uid, mode 0600. Raises InvalidVm for anything else."""
        if path.parent not in (self.directory(vm_id), self.directory(vm_id) / "in"):
            raise InvalidVm(f"{path} is not in the run directory of VM {vm_id}.")
        layout.own_socket(path, self._uid(vm_id))

    async def ensure_data_disk(self, vm_id: str, size: int) -> Path:
        """Return the VM's data disk, a sparse ext4 file of `size` bytes, making it if it is not there."""
        path = self._layout.state(vm_id) / "data.raw"
        templates = self._layout.state_dir / "templates"
        uid = self._uid(vm_id) if self._uids else None
        await asyncio.to_thread(disks.ensure_data_disk, path, size=size, templates=templates, uid=uid)
        return path

    async def launch(self, cell: Cell) -> Handle:
        """Start a prepared VM; on failure nothing of the attempt is left, and the hello socket stays.

        Raises StillRunning, DiskRefused, LaunchFailed, BridgeFailed or another VmmError.
        """
        async with self._starting:
            return await self._launcher.launch(cell, uid=self._uid(cell.vm_id))

    async def adopt(self, vm_id: str) -> Adoption:
        """Find the VM's process again and its bridge, starting a new bridge if that died. Never kills."""
        path = self._layout.handle(vm_id)
        found = await asyncio.to_thread(adopt.identify, path, self.directory(vm_id))
        if isinstance(found, Gone | Doubtful):
            return found
        adoption = await adopt.settle(found)
        if not isinstance(adoption, Running):
            return adoption
        return Running(handle=await self.ensure_bridge(adoption.handle))

    async def wait_exit(self, handle: Handle) -> Exit:
        """Wait until the VM's process has ended, child or adopted, and say how."""
        await process.wait(handle.pid, handle.start_ticks)
        return self._exit(handle)

    async def probe(self, handle: Handle) -> Probe:
        """Ask the VMM for its version and state, within 4 s. Raises VmmUnreachable, VmmTimeout and their kin."""
        api = Api.of(handle)
        version, info = await api.ping(), await api.info()
        past = await asyncio.to_thread(events.history, handle.directory / "events.json")
        return Probe(version=version, state=info.state, reboots=past.reboots, panicked=past.panicked)

    async def add_disk(self, handle: Handle, disk: Disk) -> None:
        """Attach a disk to the running VM; one with the same serial is left as it is. Raises DiskRefused."""
        await asyncio.to_thread(disks.check, disk)
        await Api.of(handle).add_disk(disk)

    async def disks(self, handle: Handle) -> frozenset[str]:
        """Return the serials of the disks that are attached to the running VM. Raises VmmError."""
        return (await Api.of(handle).info()).serials

    async def remove_disk(self, handle: Handle, serial: str) -> None:
        """Detach a disk that the guest has let go of, and wait until it is gone; one that is not attached is fine.

        Raises EjectUnfinished if the guest does not eject it in time, and VmmError.
        """
        api = Api.of(handle)
        identifier = await api.remove_disk(serial)
        if identifier is not None and not await _without(api, {identifier}):
            raise EjectUnfinished(f"The guest has not ejected the disk {serial} within {_EJECT_SECONDS:g} s.")

    async def settle_disks(self, handle: Handle) -> None:
        """Wait until disks whose removal was asked for are gone, if the guest ejects them in time. Raises VmmError."""
        api = Api.of(handle)
        leaving = (await api.info()).leaving
        if leaving:
            await _without(api, leaving)

    def ingress_socket(self, vm_id: str, name: str) -> Path:
        """Return where the edge reaches a listener of `ensure_ingress`."""
        return self._ingress.path(vm_id, name)

    async def ensure_ingress(self, handle: Handle, wanted: Mapping[str, int]) -> None:
        """Join exactly these ingress sockets to guest ports; those not named go. Raises BridgeFailed, OSError."""
        await self._ingress.ensure(handle, wanted)

    async def cut_ingress(self, handle: Handle, name: str) -> None:
        """End the open connections of an ingress socket, which goes on listening. Raises BridgeFailed."""
        await self._ingress.cut(handle, name)

    async def wait_bridge(self, handle: Handle) -> None:
        """Wait until the VM's bridge has ended."""
        await process.wait(handle.bridge_pid, handle.bridge_start_ticks)
        process.reap(handle.bridge_pid)

    async def ensure_bridge(self, handle: Handle) -> Handle:
        """Return the handle with a live bridge that listens for the agent. Raises LaunchFailed, BridgeFailed."""
        ensured = await bridges.ensure(handle)
        await asyncio.to_thread(handle_file.write, self._layout.handle(handle.vm_id), ensured)
        return ensured

    async def stop(self, handle: Handle, *, until: Rung = Rung.SIGKILL, budgets: Budgets | None = None) -> None:
        """Stop the VM, gentlest first, no harder than `until`. Raises StopUnfinished if that was not enough."""
        self._asked.add(handle.pid)
        await ladder.climb(handle, until=until, budgets=budgets or Budgets(), failpoint=self._failpoint)
        self._collect(handle.pid)

    async def kill(self, handle: Handle) -> None:
        """Kill the VM's process and wait until it is gone. Raises StopUnfinished if the kernel cannot end it."""
        self._asked.add(handle.pid)
        process.send_signal(handle.pid, handle.start_ticks, signal.SIGKILL)
        if not await process.wait(handle.pid, handle.start_ticks, seconds=_KILL_SECONDS):
            raise StopUnfinished(f"Process {handle.pid} of VM {handle.vm_id} did not die; the host's kernel holds it.")
        self._collect(handle.pid)

    async def clean(self, vm_id: str) -> None:
        """Remove what a dead VM left: bridge, sockets, cgroup, run directory, handle. Raises StillRunning."""
        run = self.directory(vm_id)
        for pid in await asyncio.to_thread(sweep.vmm_processes, run):
            if process.start_ticks(pid) is not None:
                raise StillRunning(vm_id, pid)
        await bridges.end_all(run)
        self._cgroups.remove(run.name)
        # The run directory goes last: as long as it is there, a sweep tells of what is left.
        for directory in (self._layout.ingress(vm_id), run):
            await asyncio.to_thread(layout.remove, directory)
        self._layout.handle(vm_id).unlink(missing_ok=True)
        self._failpoint("clean.done")

    async def destroy(self, vm_id: str) -> None:
        """Clean, then remove the VM's disk and state and free its uid. Raises StillRunning."""
        await self.clean(vm_id)
        await asyncio.to_thread(layout.remove, self._layout.state(vm_id))
        if self._uids:
            await asyncio.to_thread(self._uids.release, vm_id)

    def sweep(self, known: Collection[str]) -> list[Stray]:
        """Return the processes and directories that belong to no known VM; none is touched."""
        return list(sweep.strays(self._layout, known))

    def warnings(self) -> list[str]:
        """Return what this host lacks, each in a sentence with what to do."""
        found: list[str] = []
        if missing := self._cgroups.missing():
            names = ", ".join(sorted(missing))
            found.append(
                f"cgroup v2 lacks {names}: VMs run without host limits; boot with systemd.unified_cgroup_hierarchy."
            )
        if self._uids is None:
            found.append("VMs share the hypervisor's uid: run it as root with CELLMESH_UID_BASE to keep them apart.")
        if not Path("/dev/kvm").exists():
            found.append("/dev/kvm is missing: cloud-hypervisor cannot run; enable virtualisation or use the emulator.")
        elif self._uids and kvm_group() is None:
            found.append("/dev/kvm has no group of its own: a VM's uid cannot open it; chgrp kvm and chmod 0660 it.")
        found += [
            f"{name} is missing: install {package}."
            for name, package in (("setpriv", "util-linux"), ("prlimit", "util-linux"), ("mke2fs", "e2fsprogs"))
            if process.tool(name) is None
        ]
        return found

    def _prepare(self, vm_id: str) -> None:
        layout.short(vm_id)
        uid = self._uids.allocate(vm_id) if self._uids else os.getuid()
        self._layout.make(vm_id, uid=uid, separate=self._uids is not None)

    def _uid(self, vm_id: str) -> int:
        return self._uids.allocate(vm_id) if self._uids else os.getuid()

    def _collect(self, pid: int) -> None:
        if (status := process.reap(pid)) is not None:
            self._statuses[pid] = status

    def _exit(self, handle: Handle) -> Exit:
        self._collect(handle.pid)
        status = self._statuses.pop(handle.pid, None)
        code = os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None
        number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None
        past = events.history(handle.directory / "events.json")
        reason = past.reason(asked=handle.pid in self._asked, killed=number is not None)
        self._asked.discard(handle.pid)
        return Exit(reason=reason, code=code, signal=number)

    async def _ask_version(self) -> str:
        try:
            asked = await asyncio.create_subprocess_exec(
                self._binary, "--version", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env={}
            )
            try:
                async with usable(_VERSION_SECONDS, Watch.of(asked.pid)):
                    said, _ = await asked.communicate()
            finally:
                if asked.returncode is None:
                    # Nobody waits for it any more: neither it nor what listens to it is to stay.
                    asked.kill()
                    await asked.wait()
        except (OSError, TimeoutError) as error:
            raise LaunchFailed(f"{self._binary} does not tell its version: {error!r}; set CELLMESH_VMM.") from error
        if asked.returncode or not said.strip():
            raise LaunchFailed(f"{self._binary} does not tell its version; set CELLMESH_VMM to a cloud-hypervisor.")
        return shown(said.splitlines()[0])


async def _without(api: Api, identifiers: Collection[str]) -> bool:
    """Wait until these disks have left the device tree; False if they are there after `_EJECT_SECONDS`."""
    end = asyncio.get_running_loop().time() + _EJECT_SECONDS
    pause = _EJECT_FIRST_POLL
    while (await api.info()).leaving & set(identifiers):
        if asyncio.get_running_loop().time() >= end:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, _EJECT_LONGEST_POLL)
    return True
