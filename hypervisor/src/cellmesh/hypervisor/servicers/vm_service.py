"""VmService: one microVM per user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

from cellmesh.api.hypervisor.v1 import vm_service_pb2, vm_service_pb2_grpc
from cellmesh.hypervisor.lifecycle import health
from cellmesh.hypervisor.lifecycle.vms import Vms
from cellmesh.hypervisor.servicers import decode, encode
from cellmesh.hypervisor.servicers.cursor import after_vm, vm_cursor
from cellmesh.hypervisor.servicers.watches import Watches
from cellmesh.mesh import deadline
from cellmesh.mesh.interceptor import Context
from cellmesh.mesh.pages import PageTokens, page_size
from cellmesh.service.answers import intent_of

_STATES = {number: state for state, number in encode.VM_STATES.items()}
# What encoding and sending the answer may take of the caller's deadline.
_MARGIN = 0.1


class VmServicer(vm_service_pb2_grpc.VmServiceServicer):
    """Decodes, asks the VMs, encodes."""

    def __init__(self, vms: Vms, *, watches: Watches, pages: PageTokens, probes: health.Probes) -> None:
        self._vms = vms
        self._watches = watches
        self._pages = pages
        self._probes = probes

    async def CreateVm(self, request: vm_service_pb2.CreateVmRequest, _: Context) -> vm_service_pb2.CreateVmResponse:
        """Create the user's VM and start it."""
        intent = intent_of(
            request, vm_service_pb2.CreateVmResponse, lambda vm: vm_service_pb2.CreateVmResponse(vm=encode.vm(vm))
        )
        return await self._vms.create(intent, request.user_id, decode.vm_spec(request.spec))

    async def GetVm(self, request: vm_service_pb2.GetVmRequest, _: Context) -> vm_service_pb2.GetVmResponse:
        """Return one VM."""
        by_user = request.WhichOneof("key") == "user_id"
        vm = await (self._vms.get_of_user(request.user_id) if by_user else self._vms.get(request.vm_id))
        return vm_service_pb2.GetVmResponse(vm=encode.vm(vm))

    async def ListVms(self, request: vm_service_pb2.ListVmsRequest, _: Context) -> vm_service_pb2.ListVmsResponse:
        """List VMs, oldest first."""
        size = page_size(request.page.page_size)
        token = request.page.page_token
        after = after_vm(self._pages.decode(request, token)) if token else None
        states = {_STATES[number] for number in request.states}
        vms = await self._vms.list(states=states, after=after, limit=size + 1)
        page, more = vms[:size], len(vms) > size
        return vm_service_pb2.ListVmsResponse(
            vms=[encode.vm(vm) for vm in page],
            next_page_token=self._pages.encode(request, vm_cursor(page[-1])) if more else "",
        )

    async def StartVm(self, request: vm_service_pb2.StartVmRequest, _: Context) -> vm_service_pb2.StartVmResponse:
        """Want the VM to run."""
        intent = intent_of(
            request, vm_service_pb2.StartVmResponse, lambda vm: vm_service_pb2.StartVmResponse(vm=encode.vm(vm))
        )
        return await self._vms.start(intent, request.vm_id)

    async def StopVm(self, request: vm_service_pb2.StopVmRequest, _: Context) -> vm_service_pb2.StopVmResponse:
        """Want the VM stopped."""
        intent = intent_of(
            request, vm_service_pb2.StopVmResponse, lambda vm: vm_service_pb2.StopVmResponse(vm=encode.vm(vm))
        )
        return await self._vms.stop(intent, request.vm_id)

    async def RecycleVm(self, request: vm_service_pb2.RecycleVmRequest, _: Context) -> vm_service_pb2.RecycleVmResponse:
        """Want the VM in a new epoch, its writable layers thrown away."""
        intent = intent_of(
            request, vm_service_pb2.RecycleVmResponse, lambda vm: vm_service_pb2.RecycleVmResponse(vm=encode.vm(vm))
        )
        return await self._vms.recycle(intent, request.vm_id)

    async def DeleteVm(self, request: vm_service_pb2.DeleteVmRequest, _: Context) -> vm_service_pb2.DeleteVmResponse:
        """Want the VM gone with its data."""
        intent = intent_of(
            request, vm_service_pb2.DeleteVmResponse, lambda vm: vm_service_pb2.DeleteVmResponse(vm=encode.vm(vm))
        )
        return await self._vms.delete(intent, request.vm_id, force=request.force)

    def WatchVms(
        self, request: vm_service_pb2.WatchVmsRequest, _: Context
    ) -> AsyncIterator[vm_service_pb2.WatchVmsResponse]:
        """Stream every VM as it is now, then each change."""
        # Itself, not passed on item by item: what is closed early then ends here and now, and not with the collector.
        return self._watches.vms(request.vm_id, request.resume_token)

    async def CheckVmHealth(
        self, request: vm_service_pb2.CheckVmHealthRequest, _: Context
    ) -> vm_service_pb2.CheckVmHealthResponse:
        """Probe a VM layer by layer now."""
        vm = await self._vms.get(request.vm_id)
        left = deadline.remaining()
        within = timedelta(seconds=max((left or 1.0) * 0.9 - _MARGIN, _MARGIN))
        found = await health.check(self._probes, vm, within=within)
        return vm_service_pb2.CheckVmHealthResponse(
            status=encode.HEALTH[found.health],
            layers=[_layer(layer) for layer in found.layers],
            containers=[
                encode.container_status(claim.name, claim.generation, claim.status) for claim in found.containers
            ],
        )


def _layer(found: health.LayerHealth) -> vm_service_pb2.LayerHealth:
    message = vm_service_pb2.LayerHealth(layer=found.layer, status=encode.HEALTH[found.health], message=found.message)
    message.latency.FromTimedelta(found.latency)
    return message
