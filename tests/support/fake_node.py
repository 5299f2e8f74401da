"""A node's services on an operator socket, with no VM behind them: for tests of what speaks to a node."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from functools import partial
from pathlib import Path

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from cellmesh.api.audit.v1 import audit_service_pb2_grpc
from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.common.v1 import exec_pb2, health_pb2, log_pb2
from cellmesh.api.hypervisor.v1 import (
    container_pb2,
    container_service_pb2,
    container_service_pb2_grpc,
    event_pb2,
    event_service_pb2,
    event_service_pb2_grpc,
    node_service_pb2,
    node_service_pb2_grpc,
    route_service_pb2_grpc,
    vm_pb2,
    vm_service_pb2,
    vm_service_pb2_grpc,
)
from support.fake_audit import FakeAudit
from support.fake_command import FakeCommand, Gate
from support.fake_routes import FakeRoutes, refuse

_THREADS = 16
_CHUNK = 1000


def environment_of(run_dir: Path, home: Path) -> dict[str, str]:
    """Return the environment in which the command finds a node, and no colours or terminals of the test run."""
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(home),
        "CELLMESH_RUN_DIR": str(run_dir),
        "CELLMESH_STATE_DIR": str(home / "state"),
        "TERM": "xterm",
    }


def now() -> Timestamp:
    """Return the time as the contracts write it."""
    stamp = Timestamp()
    stamp.FromNanoseconds(time.time_ns())
    return stamp


class FakeNode(
    vm_service_pb2_grpc.VmServiceServicer,
    container_service_pb2_grpc.ContainerServiceServicer,
    event_service_pb2_grpc.EventServiceServicer,
    node_service_pb2_grpc.NodeServiceServicer,
):
    """VMs are entries of a dict, events a list; `breaks` says after how many messages streams end with UNAVAILABLE."""

    def __init__(self) -> None:
        self.vms: dict[str, vm_pb2.Vm] = {}
        self.containers: dict[tuple[str, str], container_pb2.Container] = {}
        self.events: list[event_pb2.Event] = []
        self.after_mutation: Callable[[vm_pb2.Vm], None] = lambda _: None
        self.requests: list[object] = []
        self.commands: dict[str, FakeCommand] = {}
        self.routes = FakeRoutes()
        self.audit = FakeAudit()
        self.log = b""
        self.log_stream = exec_pb2.OUTPUT_STREAM_STDOUT
        self.breaks: list[int] = []
        self.unavailable_once: set[str] = set()
        self.draining = False
        self.forgets_commands = False
        self.started = threading.Event()
        self._gate = Gate()
        self._server: grpc.Server | None = None

    def start(self, socket: Path) -> None:
        """Serve on `socket`."""
        self._server = grpc.server(futures.ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
        vm_service_pb2_grpc.add_VmServiceServicer_to_server(self, self._server)
        container_service_pb2_grpc.add_ContainerServiceServicer_to_server(self, self._server)
        event_service_pb2_grpc.add_EventServiceServicer_to_server(self, self._server)
        node_service_pb2_grpc.add_NodeServiceServicer_to_server(self, self._server)
        route_service_pb2_grpc.add_RouteServiceServicer_to_server(self.routes, self._server)
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server(self.audit, self._server)
        self._server.add_insecure_port(f"unix:{socket}")
        self._server.start()

    def stop(self) -> None:
        """End every call and stop serving."""
        self._gate.close()
        self.routes.close()
        if self._server is not None:
            self._server.stop(0).wait()

    def add_vm(self, state: vm_pb2.VmState = vm_pb2.VM_STATE_RUNNING, **fields: object) -> vm_pb2.Vm:
        """Add a VM and return it."""
        vm = vm_pb2.Vm(
            vm_id=str(fields.pop("vm_id", uuid.uuid4())),
            user_id=str(fields.pop("user_id", uuid.uuid4())),
            spec=vm_pb2.VmSpec(vcpus=1, memory_bytes=512 << 20, data_disk_bytes=2 << 30),
            state=state,
            create_time=now(),
            update_time=now(),
            epoch=1,
            **fields,
        )
        self.vms[vm.vm_id] = vm
        return vm

    def move(self, vm: vm_pb2.Vm, to: vm_pb2.VmState, reason: str = "", message: str = "") -> None:
        """Change a VM's state and tell the watchers."""
        change = event_pb2.VmStateChanged(to=to, reason=reason, message=message, **{"from": vm.state})
        vm.state = to
        self.tell(event_pb2.Event(vm_id=vm.vm_id, epoch=vm.epoch, vm_state_changed=change))

    def tell(self, event: event_pb2.Event) -> None:
        """Commit an event."""
        event.sequence = len(self.events) + 1
        event.time.CopyFrom(now())
        self.events.append(event)
        self._gate.open()

    def _break(self, context: grpc.ServicerContext, sent: int) -> None:
        if self.breaks and sent >= self.breaks[0]:
            self.breaks.pop(0)
            refuse(context, code_pb2.UNAVAILABLE, "NODE_SHUTTING_DOWN", "The stream was cut.")

    def _vm(self, vm_id: str, context: grpc.ServicerContext) -> vm_pb2.Vm:
        if vm_id not in self.vms:
            refuse(context, code_pb2.NOT_FOUND, "VM_NOT_FOUND", f"There is no VM {vm_id}.")
        return self.vms[vm_id]

    def _mutated(self, request: object, method: str, vm: vm_pb2.Vm, context: grpc.ServicerContext) -> vm_pb2.Vm:
        self.requests.append(request)
        if method in self.unavailable_once:
            self.unavailable_once.discard(method)
            refuse(context, code_pb2.UNAVAILABLE, "NODE_SHUTTING_DOWN", "The node is stopping.")
        answer = vm_pb2.Vm()
        answer.CopyFrom(vm)
        self.after_mutation(vm)
        return answer

    # VmService

    def CreateVm(
        self, request: vm_service_pb2.CreateVmRequest, context: grpc.ServicerContext
    ) -> vm_service_pb2.CreateVmResponse:
        """Create a PENDING VM; a second of one user is refused."""
        if any(vm.user_id == request.user_id for vm in self.vms.values()):
            refuse(context, code_pb2.ALREADY_EXISTS, "VM_ALREADY_EXISTS", "The user has a VM already.")
        vm = vm_pb2.Vm(user_id=request.user_id, spec=request.spec, state=vm_pb2.VM_STATE_PENDING, epoch=1)
        vm.vm_id = str(uuid.uuid4())
        vm.desired_state = vm_pb2.DESIRED_STATE_RUNNING
        if "CreateVm" not in self.unavailable_once:
            self.vms[vm.vm_id] = vm
        return vm_service_pb2.CreateVmResponse(vm=self._mutated(request, "CreateVm", vm, context))

    def StartVm(
        self, request: vm_service_pb2.StartVmRequest, context: grpc.ServicerContext
    ) -> vm_service_pb2.StartVmResponse:
        """Wish a VM to run."""
        vm = self._vm(request.vm_id, context)
        return vm_service_pb2.StartVmResponse(vm=self._mutated(request, "StartVm", vm, context))

    def StopVm(
        self, request: vm_service_pb2.StopVmRequest, context: grpc.ServicerContext
    ) -> vm_service_pb2.StopVmResponse:
        """Wish a VM stopped."""
        vm = self._vm(request.vm_id, context)
        return vm_service_pb2.StopVmResponse(vm=self._mutated(request, "StopVm", vm, context))

    def RecycleVm(
        self, request: vm_service_pb2.RecycleVmRequest, context: grpc.ServicerContext
    ) -> vm_service_pb2.RecycleVmResponse:
        """Wish a VM started anew."""
        vm = self._vm(request.vm_id, context)
        return vm_service_pb2.RecycleVmResponse(vm=self._mutated(request, "RecycleVm", vm, context))

    def DeleteVm(
        self, request: vm_service_pb2.DeleteVmRequest, context: grpc.ServicerContext
    ) -> vm_service_pb2.DeleteVmResponse:
        """Wish a VM gone."""
        vm = self._vm(request.vm_id, context)
        vm.desired_state = vm_pb2.DESIRED_STATE_DELETED
        return vm_service_pb2.DeleteVmResponse(vm=self._mutated(request, "DeleteVm", vm, context))

    def GetVm(
        self, request: vm_service_pb2.GetVmRequest, context: grpc.ServicerContext
    ) -> vm_service_pb2.GetVmResponse:
        """Return a VM by id or owner."""
        found = [vm for vm in self.vms.values() if vm.vm_id == request.vm_id or vm.user_id == request.user_id]
        if not found:
            refuse(context, code_pb2.NOT_FOUND, "VM_NOT_FOUND", "There is no such VM.")
        return vm_service_pb2.GetVmResponse(vm=found[0])

    def ListVms(
        self, request: vm_service_pb2.ListVmsRequest, context: grpc.ServicerContext
    ) -> vm_service_pb2.ListVmsResponse:
        """Return one VM a page, so that whoever forgets the next page is found out."""
        index = int(request.page.page_token or 0)
        page = list(self.vms.values())[index : index + 1]
        following = str(index + 1) if index + 1 < len(self.vms) else ""
        return vm_service_pb2.ListVmsResponse(vms=page, next_page_token=following)

    def WatchVms(
        self, request: vm_service_pb2.WatchVmsRequest, context: grpc.ServicerContext
    ) -> Iterator[vm_service_pb2.WatchVmsResponse]:
        """Stream the VMs as they are, then as they are after each event."""
        position = int(request.resume_token or 0)
        if not request.resume_token:
            position = len(self.events)
            for vm in self.vms.values():
                if request.vm_id in ("", vm.vm_id):
                    yield vm_service_pb2.WatchVmsResponse(vm=vm, resume_token=str(position).encode())
        caught_up = vm_service_pb2.WatchVmsResponse.Bookmark(caught_up=True)
        yield vm_service_pb2.WatchVmsResponse(bookmark=caught_up, resume_token=str(position).encode())
        for number, event in self._committed(position, context):
            if event.HasField("vm_state_changed") and event.vm_id in self.vms:
                vm = vm_pb2.Vm()
                vm.CopyFrom(self.vms[event.vm_id])
                vm.state = event.vm_state_changed.to
                yield vm_service_pb2.WatchVmsResponse(vm=vm, resume_token=str(number).encode())

    def CheckVmHealth(
        self, request: vm_service_pb2.CheckVmHealthRequest, context: grpc.ServicerContext
    ) -> vm_service_pb2.CheckVmHealthResponse:
        """Say that a RUNNING VM is well."""
        is_well = self._vm(request.vm_id, context).state == vm_pb2.VM_STATE_RUNNING
        status = health_pb2.HEALTH_STATUS_SERVING if is_well else health_pb2.HEALTH_STATUS_NOT_SERVING
        layers = [vm_service_pb2.LayerHealth(layer=layer, status=status) for layer in ("vmm_process", "agent")]
        return vm_service_pb2.CheckVmHealthResponse(status=status, layers=layers)

    # EventService

    def ListEvents(
        self, request: event_service_pb2.ListEventsRequest, context: grpc.ServicerContext
    ) -> event_service_pb2.ListEventsResponse:
        """Return one event a page."""
        index = int(request.page.page_token or 0)
        following = str(index + 1) if index + 1 < len(self.events) else ""
        return event_service_pb2.ListEventsResponse(events=self.events[index : index + 1], next_page_token=following)

    def WatchEvents(
        self, request: event_service_pb2.WatchEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[event_service_pb2.WatchEventsResponse]:
        """Stream events after the token; the token is a position in decimal."""
        start = 0 if request.from_beginning else len(self.events)
        position = int(request.resume_token) if request.resume_token else start
        bookmark = event_service_pb2.WatchEventsResponse.Bookmark()
        yield event_service_pb2.WatchEventsResponse(bookmark=bookmark, resume_token=str(position).encode())
        for sent, (number, event) in enumerate(self._committed(position, context)):
            self._break(context, sent)
            if request.vm_id in ("", event.vm_id):
                yield event_service_pb2.WatchEventsResponse(event=event, resume_token=str(number).encode())

    def _committed(self, position: int, context: grpc.ServicerContext) -> Iterator[tuple[int, event_pb2.Event]]:
        while self._gate.wait(partial(self._has_after, position), context):
            position += 1
            yield position, self.events[position - 1]

    def _has_after(self, position: int) -> bool:
        return len(self.events) > position

    # ContainerService

    def StartContainer(
        self, request: container_service_pb2.StartContainerRequest, context: grpc.ServicerContext
    ) -> container_service_pb2.StartContainerResponse:
        """Run a container at once."""
        self.requests.append(request)
        container = container_pb2.Container(
            vm_id=request.vm_id, container_name=request.container_name, spec=request.spec, generation=1
        )
        container.status.container_name = request.container_name
        container.status.state = common_container_pb2.CONTAINER_STATE_RUNNING
        self.containers[request.vm_id, request.container_name] = container
        self.started.set()
        return container_service_pb2.StartContainerResponse(container=container)

    def GetContainer(
        self, request: container_service_pb2.GetContainerRequest, context: grpc.ServicerContext
    ) -> container_service_pb2.GetContainerResponse:
        """Return a container that was started."""
        container = self.containers.get((request.vm_id, request.container_name))
        if container is None:
            refuse(context, code_pb2.NOT_FOUND, "CONTAINER_NOT_FOUND", "There is no such container.")
        return container_service_pb2.GetContainerResponse(container=container)

    def ListContainers(
        self, request: container_service_pb2.ListContainersRequest, context: grpc.ServicerContext
    ) -> container_service_pb2.ListContainersResponse:
        """Return the containers of a VM."""
        found = [container for (vm_id, _), container in self.containers.items() if vm_id == request.vm_id]
        return container_service_pb2.ListContainersResponse(containers=found)

    def StreamLogs(
        self, request: container_service_pb2.StreamLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[container_service_pb2.StreamLogsResponse]:
        """Stream `log` from the offset in small pieces."""
        self.requests.append(request)
        for sent, offset in enumerate(range(request.offset, len(self.log), _CHUNK)):
            self._break(context, sent)
            data = self.log[offset : offset + _CHUNK]
            chunk = log_pb2.LogChunk(offset=offset, stream=self.log_stream, time=now(), data=data)
            yield container_service_pb2.StreamLogsResponse(generation=3, chunks=[chunk], next_offset=offset + len(data))

    def Exec(
        self, request_iterator: Iterator[container_service_pb2.ExecRequest], context: grpc.ServicerContext
    ) -> Iterator[container_service_pb2.ExecResponse]:
        """Run one of FakeCommand's programs, or come back to it."""
        first = next(request_iterator).input.open
        self.requests.append(first)
        if first.resume and (self.forgets_commands or first.exec_id not in self.commands):
            refuse(context, code_pb2.NOT_FOUND, "EXEC_NOT_FOUND", "There is no such command.")
        is_known = first.exec_id in self.commands
        command = self.commands.setdefault(first.exec_id, FakeCommand(first))
        frames = (request.input for request in request_iterator)
        for sent, output in enumerate(command.attach(first, frames, context, is_known=is_known)):
            self._break(context, sent)
            yield container_service_pb2.ExecResponse(output=output)

    # NodeService

    def GetNode(
        self, request: node_service_pb2.GetNodeRequest, context: grpc.ServicerContext
    ) -> node_service_pb2.GetNodeResponse:
        """Return the node."""
        return node_service_pb2.GetNodeResponse(node=self._node())

    def DrainNode(
        self, request: node_service_pb2.DrainNodeRequest, context: grpc.ServicerContext
    ) -> node_service_pb2.DrainNodeResponse:
        """Start or end a drain."""
        self.draining = request.draining
        return node_service_pb2.DrainNodeResponse(node=self._node())

    def _node(self) -> node_service_pb2.Node:
        return node_service_pb2.Node(
            node_id=str(uuid.UUID(int=1)),
            version="0.0.0",
            vmm_version="v53.0",
            draining=self.draining,
            vm_count=len(self.vms),
            max_vms=8,
            memory_capacity_bytes=8 << 30,
            start_time=now(),
            warnings=["no limits\x1b[31m here"],
        )
