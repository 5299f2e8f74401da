"""Finds the VM that a person means: by its id, the unique start of it, or its owner."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from cellmesh.api.common.v1 import page_pb2
from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.cli.connection import Node
from cellmesh.cli.errors import NotFoundError, UsageError

_ID_START = re.compile(r"[0-9a-f][0-9a-f-]{0,35}")
_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerName:
    """A container of a VM that was found."""

    vm_id: str
    container_name: str


async def all_vms(node: Node) -> list[vm_pb2.Vm]:
    """Return every VM, oldest first."""
    vms: list[vm_pb2.Vm] = []
    page = page_pb2.PageRequest(page_size=_PAGE)
    while True:
        answer = await node.vms.ListVms(vm_service_pb2.ListVmsRequest(page=page))
        vms.extend(answer.vms)
        if not answer.next_page_token:
            return vms
        page = page_pb2.PageRequest(page_size=_PAGE, page_token=answer.next_page_token)


async def find_vm(node: Node, vm: str | None, user: str | None) -> str:
    """Return the id of the VM named by `vm` or owned by `user`; exactly one of them is given."""
    if (vm is None) == (user is None):
        raise UsageError("One VM has to be named.", "Give its id, the start of its id, or --user UUID.")
    if user is not None:
        request = vm_service_pb2.GetVmRequest(user_id=valid_user(user))
        return (await node.vms.GetVm(request)).vm.vm_id
    return await _by_start(node, (vm or "").lower())


async def find_container(node: Node, target: str, user: str | None) -> ContainerName:
    """Return the container named `VM/CONTAINER`, or `CONTAINER` of the VM of `user`."""
    vm, slash, name = target.rpartition("/")
    if not slash and user is None:
        raise UsageError(f"{target!r} does not name a VM.", "Write VM/CONTAINER, or CONTAINER and --user UUID.")
    return ContainerName(vm_id=await find_vm(node, vm if slash else None, user), container_name=name)


def valid_user(user: str) -> str:
    """Return a user's id in its usual form; raises UsageError if it is no UUID."""
    try:
        return str(uuid.UUID(user))
    except ValueError as error:
        raise UsageError(
            f"{user!r} is not a user's id.", "A user's id is a UUID; `uuidgen` makes one to try with."
        ) from error


async def _by_start(node: Node, start: str) -> str:
    if not _ID_START.fullmatch(start):
        raise UsageError(f"{start!r} is not the start of a VM's id.", "List the VMs with `cellmesh vm ls`.")
    if len(start) == 36:
        return start
    found = [vm.vm_id for vm in await all_vms(node) if vm.vm_id.startswith(start)]
    if not found:
        raise NotFoundError(
            f"No VM's id starts with {start!r}.", "List the VMs with `cellmesh vm ls`.", reason="VM_NOT_FOUND"
        )
    if len(found) > 1:
        raise UsageError(f"{len(found)} VMs have an id that starts with {start!r}.", f"Write more: {found[0]}, …")
    return found[0]
