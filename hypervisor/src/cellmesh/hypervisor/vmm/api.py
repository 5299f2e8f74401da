"""cloud-hypervisor's verbs, each with its own deadline, and the VmConfig a cell becomes.

A lost answer is not a failure: what changed is read again from vm.info before anything is said to have failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cellmesh.hypervisor.vmm.errors import VmmInvalid, VmmRefused, VmmTimeout, VmmUnreachable, shown
from cellmesh.hypervisor.vmm.model import Cell, Disk, Handle, VmState
from cellmesh.hypervisor.vmm.rest import RestClient

QUICK = 2.0
"""How long a VMM may take to say something, in seconds."""
_CHANGE = 30.0
_NOT_FOUND = 404
_DISK = "_disk"
_GUEST_CID = 3  # there is no host-visible CID: every VM may use the same one


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What vm.info says, as far as we use it."""

    state: VmState
    disks: Mapping[str, str]
    """The ids of the attached disks, by serial."""
    leaving: frozenset[str]
    """The ids of disks whose removal was asked for and that the guest has not ejected."""

    @property
    def serials(self) -> frozenset[str]:
        """Return the serials of the attached disks."""
        return frozenset(self.disks)


@dataclass(frozen=True, slots=True)
class Api:
    """The API of one VMM."""

    rest: RestClient

    @classmethod
    def of(cls, handle: Handle) -> Self:
        """Return the API of the VM a handle names; another VM's that answers there is refused."""
        return cls(RestClient(socket=handle.directory / "api.sock", uid=handle.uid, pid=handle.pid))

    async def ping(self) -> str:
        """Return the version of the VMM."""
        answer = _mapping("vmm.ping", await self.rest.request("GET", "vmm.ping", seconds=QUICK))
        return shown(str(answer.get("version", "")))

    async def info(self) -> Info:
        """Return the state of the VM, `NONE` if the VMM holds none."""
        try:
            answer = _mapping("vm.info", await self.rest.request("GET", "vm.info", seconds=QUICK))
        except VmmRefused as refusal:
            # Before v53 a VMM without a VM answered 500 with the same words.
            if refusal.status == _NOT_FOUND or "not created" in refusal.message:
                return Info(state=VmState.NONE, disks={}, leaving=frozenset())
            raise
        try:
            state = VmState(str(answer["state"]))
        except (KeyError, ValueError):
            raise VmmInvalid(f"vm.info gave an unknown state: {shown(repr(answer.get('state')))}.") from None
        disks = _disks(answer.get("config"))
        return Info(state=state, disks=disks, leaving=_disk_nodes(answer.get("device_tree")) - set(disks.values()))

    async def counters(self) -> Mapping[str, object]:
        """Return the device counters of the VM."""
        return _mapping("vm.counters", await self.rest.request("GET", "vm.counters", seconds=QUICK))

    async def create(self, cell: Cell, directory: Path) -> None:
        """Create the VM without booting it."""
        try:
            await self.rest.change("vm.create", vm_config(cell, directory), seconds=_CHANGE)
        except (VmmUnreachable, VmmTimeout):
            if (await self.info()).state is VmState.NONE:
                raise

    async def boot(self) -> None:
        """Boot the created VM."""
        try:
            await self.rest.change("vm.boot", seconds=_CHANGE)
        except (VmmUnreachable, VmmTimeout):
            if (await self.info()).state is not VmState.RUNNING:
                raise

    async def add_disk(self, disk: Disk) -> None:
        """Attach a disk to the running VM; one that is attached already is left as it is."""
        if disk.serial in (await self.info()).serials:
            return
        try:
            await self.rest.change("vm.add-disk", disk_config(disk), seconds=_CHANGE)
        except (VmmUnreachable, VmmTimeout):
            if disk.serial not in (await self.info()).serials:
                raise

    async def remove_disk(self, serial: str) -> str | None:
        """Ask the guest to eject a disk and return its id; None if no such disk is attached.

        The disk is gone once vm.info lists its id as `leaving` no longer.
        """
        identifier = (await self.info()).disks.get(serial)
        if identifier is None:
            return None
        try:
            await self.rest.change("vm.remove-device", {"id": identifier}, seconds=_CHANGE)
        except (VmmUnreachable, VmmTimeout):
            if serial in (await self.info()).disks:
                raise
        return identifier

    async def power_button(self) -> None:
        """Press the guest's power button; the guest may ignore it."""
        await self.rest.change("vm.power-button", seconds=QUICK)

    async def shutdown_vm(self, *, seconds: float) -> None:
        """Stop the VM at once, without telling its guest; the VMM lives on."""
        await self.rest.change("vm.shutdown", seconds=seconds)

    async def shutdown_vmm(self, *, seconds: float) -> None:
        """Ask the VMM to end; its API closes before it is gone."""
        await self.rest.change("vmm.shutdown", seconds=seconds)


def vm_config(cell: Cell, directory: Path) -> dict[str, object]:
    """Return the VmConfig of a cell. There is never a network card in it."""
    return {
        "payload": {"kernel": str(cell.kernel), "initramfs": str(cell.initramfs), "cmdline": cell.cmdline},
        "cpus": {"boot_vcpus": cell.vcpus, "max_vcpus": cell.vcpus},
        "memory": {"size": cell.memory_bytes},
        "disks": [disk_config(disk) for disk in cell.disks],
        "rng": {"src": "/dev/urandom"},
        # A file would grow with what the guest prints; the bridge keeps the newest 64 KiB of the FIFO.
        "console": {"mode": "File", "file": str(directory / "console.fifo")},
        "serial": {"mode": "Off"},
        "vsock": {"cid": _GUEST_CID, "socket": str(directory / "vsock.sock")},
    }


def disk_config(disk: Disk) -> dict[str, object]:
    """Return the DiskConfig of a disk; always Raw, so that no header the guest writes is ever believed."""
    return {"path": str(disk.path), "readonly": disk.readonly, "serial": disk.serial, "image_type": "Raw"}


def _mapping(endpoint: str, answer: object) -> Mapping[str, object]:
    if not isinstance(answer, dict):
        raise VmmInvalid(f"The answer to {endpoint} is not an object: {shown(repr(answer))}.")
    return answer


def _disks(config: object) -> Mapping[str, str]:
    disks = config.get("disks") if isinstance(config, dict) else None
    if not isinstance(disks, list):
        return {}
    found = (disk for disk in disks if isinstance(disk, dict) and disk.get("serial"))
    return {str(disk["serial"]): str(disk.get("id", "")) for disk in found}


def _disk_nodes(tree: object) -> frozenset[str]:
    """Return the ids of the disks in the device tree: cloud-hypervisor names those we add `_disk<n>`."""
    if not isinstance(tree, dict):
        return frozenset()
    return frozenset(str(identifier) for identifier in tree if str(identifier).startswith(_DISK))
