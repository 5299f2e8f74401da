"""NodeService: the machine the hypervisor runs on."""

from __future__ import annotations

from importlib.metadata import version

from cellmesh.api.hypervisor.v1 import node_service_pb2, node_service_pb2_grpc
from cellmesh.hypervisor.lifecycle.node import Nodes, NodeStatus
from cellmesh.hypervisor.servicers import encode
from cellmesh.mesh.interceptor import Context
from cellmesh.service.answers import intent_of


class NodeServicer(node_service_pb2_grpc.NodeServiceServicer):
    """Decodes, asks the node, encodes."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    async def GetNode(self, _: node_service_pb2.GetNodeRequest, __: Context) -> node_service_pb2.GetNodeResponse:
        """Return the node."""
        return node_service_pb2.GetNodeResponse(node=_node(await self._nodes.status()))

    async def DrainNode(
        self, request: node_service_pb2.DrainNodeRequest, _: Context
    ) -> node_service_pb2.DrainNodeResponse:
        """Set whether the node takes new VMs and starts."""
        intent = intent_of(
            request,
            node_service_pb2.DrainNodeResponse,
            lambda node: node_service_pb2.DrainNodeResponse(node=_node(node)),
        )
        return await self._nodes.drain(intent, draining=request.draining)


def _node(status: NodeStatus) -> node_service_pb2.Node:
    return node_service_pb2.Node(
        node_id=status.node_id,
        version=version("cellmesh"),
        vmm_version=status.vmm_version,
        default_guest_image=status.default_guest_image,
        draining=status.draining,
        vm_count=status.vm_count,
        running_vm_count=status.running_vm_count,
        max_vms=status.max_vms,
        memory_committed_bytes=status.memory_committed_bytes,
        memory_capacity_bytes=status.memory_capacity_bytes,
        start_time=encode.timestamp(status.start_time),
        warnings=status.warnings,
    )
