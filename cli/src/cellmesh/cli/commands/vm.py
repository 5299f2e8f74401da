"""`cellmesh vm`: the life of VMs."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.common.v1 import health_pb2
from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.cli import render, units
from cellmesh.cli.errors import ExitCode
from cellmesh.cli.invocation import Session, call
from cellmesh.cli.lookup import all_vms, find_vm, valid_user
from cellmesh.cli.options import JsonOption, TimeoutOption, UserOption, VmArgument, WaitOption, noun
from cellmesh.cli.output import Cell, as_json
from cellmesh.cli.timeline import Goal, follow, vm_goal
from cellmesh.cli.watch import VmWatch

app = noun("Create, start, stop and look at VMs.")

Mutation = Callable[[Session, str], Awaitable[vm_pb2.Vm]]
_PATIENCE = "5m"


class Restart(StrEnum):
    """When something that ended by itself is started again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"

    def policy(self, max_restarts: int) -> common_container_pb2.RestartPolicy:
        """Return the policy of the contracts."""
        return common_container_pb2.RestartPolicy(mode=f"RESTART_MODE_{self.name}", max_restarts=max_restarts)


class ColdStart(StrEnum):
    """What a request from the edge does to a stopped VM."""

    ON_REQUEST = "on-request"
    NEVER = "never"


@app.command()
def create(
    context: typer.Context,
    *,
    user: Annotated[str | None, typer.Option("--user", metavar="UUID", help="Its owner; a new one if absent.")] = None,
    image: Annotated[str, typer.Option(help="Digest of a guest image; the node's default if absent.")] = "",
    vcpus: Annotated[int, typer.Option(help="Virtual CPUs; 0 is 1.", min=0, max=64)] = 0,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory; 0 is 512M.")] = "0",
    disk: Annotated[str, typer.Option(metavar="SIZE", help="Data disk, sparse; 0 is 2G.")] = "0",
    restart: Annotated[Restart, typer.Option(help="When to start it again after it died.")] = Restart.ON_FAILURE,
    max_restarts: Annotated[int, typer.Option(help="Tries in a row; 0 is 5.", min=0, max=1000)] = 0,
    cold_start: Annotated[
        ColdStart, typer.Option(help="Whether a request for its pages starts it when it is stopped.")
    ] = ColdStart.ON_REQUEST,
    wait: WaitOption = False,
    timeout: TimeoutOption = _PATIENCE,
    json_output: JsonOption = False,
) -> None:
    """Create a user's VM and start it."""

    async def act(session: Session, _: str) -> vm_pb2.Vm:
        spec = vm_pb2.VmSpec(
            guest_image=image,
            vcpus=vcpus,
            memory_bytes=units.parse_size(memory),
            data_disk_bytes=units.parse_size(disk),
            restart_policy=restart.policy(max_restarts),
            cold_start=f"COLD_START_{cold_start.name}",
        )
        owner = valid_user(user) if user else str(uuid.uuid4())
        request = vm_service_pb2.CreateVmRequest(request_id=session.request_id, user_id=owner, spec=spec)
        return (await session.node.vms.CreateVm(request)).vm

    async def body(session: Session) -> None:
        await _change(
            session, "", act, vm_goal(vm_pb2.VM_STATE_RUNNING) if wait else None, units.parse_duration(timeout)
        )

    call(context, body, json_output=json_output)


@app.command()
def start(
    context: typer.Context,
    vm: VmArgument = None,
    *,
    user: UserOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = _PATIENCE,
    json_output: JsonOption = False,
) -> None:
    """Start a VM; one that runs is left alone."""

    async def act(session: Session, vm_id: str) -> vm_pb2.Vm:
        request = vm_service_pb2.StartVmRequest(request_id=session.request_id, vm_id=vm_id)
        return (await session.node.vms.StartVm(request)).vm

    goal = vm_goal(vm_pb2.VM_STATE_RUNNING) if wait else None
    call(context, _changing(vm, user, act, goal, timeout), json_output=json_output)


@app.command()
def stop(
    context: typer.Context,
    vm: VmArgument = None,
    *,
    user: UserOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = _PATIENCE,
    json_output: JsonOption = False,
) -> None:
    """Stop a VM and keep its data."""

    async def act(session: Session, vm_id: str) -> vm_pb2.Vm:
        request = vm_service_pb2.StopVmRequest(request_id=session.request_id, vm_id=vm_id)
        return (await session.node.vms.StopVm(request)).vm

    goal = vm_goal(vm_pb2.VM_STATE_STOPPED) if wait else None
    call(context, _changing(vm, user, act, goal, timeout), json_output=json_output)


@app.command()
def recycle(
    context: typer.Context,
    vm: VmArgument = None,
    *,
    user: UserOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = _PATIENCE,
    json_output: JsonOption = False,
) -> None:
    """Start a VM anew, with the containers' own changes thrown away and their persistent paths kept."""

    async def act(session: Session, vm_id: str) -> vm_pb2.Vm:
        request = vm_service_pb2.RecycleVmRequest(request_id=session.request_id, vm_id=vm_id)
        return (await session.node.vms.RecycleVm(request)).vm

    goal = vm_goal(vm_pb2.VM_STATE_RUNNING, new_epoch=True) if wait else None
    call(context, _changing(vm, user, act, goal, timeout), json_output=json_output)


@app.command()
def delete(
    context: typer.Context,
    vm: VmArgument = None,
    *,
    user: UserOption = None,
    force: Annotated[bool, typer.Option("--force", help="Also remove a QUARANTINED VM.")] = False,
    wait: WaitOption = False,
    timeout: TimeoutOption = _PATIENCE,
    json_output: JsonOption = False,
) -> None:
    """Stop a VM and remove it with its data."""

    async def act(session: Session, vm_id: str) -> vm_pb2.Vm:
        request = vm_service_pb2.DeleteVmRequest(request_id=session.request_id, vm_id=vm_id, force=force)
        return (await session.node.vms.DeleteVm(request)).vm

    goal = vm_goal(vm_pb2.VM_STATE_DELETED) if wait else None
    call(context, _changing(vm, user, act, goal, timeout), json_output=json_output)


@app.command("ls")
def list_vms(context: typer.Context, *, json_output: JsonOption = False) -> None:
    """List the VMs, oldest first."""

    async def body(session: Session) -> None:
        vms = await all_vms(session.node)
        if session.output.json:
            session.output.document({"vms": [as_json(vm) for vm in vms]})
        else:
            session.output.table(render.VM_COLUMNS, [render.vm_row(vm) for vm in vms])

    call(context, body, json_output=json_output)


@app.command()
def show(
    context: typer.Context, vm: VmArgument = None, *, user: UserOption = None, json_output: JsonOption = False
) -> None:
    """Show one VM."""

    async def body(session: Session) -> None:
        vm_id = await find_vm(session.node, vm, user)
        answer = await session.node.vms.GetVm(vm_service_pb2.GetVmRequest(vm_id=vm_id))
        if session.output.json:
            session.output.message(answer)
        else:
            session.output.fields(render.vm_fields(answer.vm))

    call(context, body, json_output=json_output)


@app.command()
def health(
    context: typer.Context, vm: VmArgument = None, *, user: UserOption = None, json_output: JsonOption = False
) -> None:
    """Probe a VM now, layer by layer; exit code 1 unless all is well."""

    async def body(session: Session) -> int:
        vm_id = await find_vm(session.node, vm, user)
        answer = await session.node.vms.CheckVmHealth(vm_service_pb2.CheckVmHealthRequest(vm_id=vm_id))
        if session.output.json:
            session.output.message(answer)
        else:
            _print_health(session, answer)
        well = answer.status == health_pb2.HEALTH_STATUS_SERVING
        return ExitCode.OK if well else ExitCode.FAILED

    call(context, body, json_output=json_output)


@app.command()
def watch(
    context: typer.Context, vm: VmArgument = None, *, user: UserOption = None, json_output: JsonOption = False
) -> None:
    """Print each VM as it is, then each change, until Ctrl-C."""

    async def body(session: Session) -> None:
        vm_id = await find_vm(session.node, vm, user) if vm or user else ""
        await VmWatch(session.node, session.output, is_live=False).changes(vm_id)

    call(context, body, json_output=json_output)


def _changing(
    vm: str | None, user: str | None, act: Mutation, goal: Goal[vm_pb2.Vm] | None, timeout: str
) -> Callable[[Session], Awaitable[None]]:
    async def body(session: Session) -> None:
        await _change(session, await find_vm(session.node, vm, user), act, goal, units.parse_duration(timeout))

    return body


async def _change(
    session: Session, vm_id: str, act: Mutation, goal: Goal[vm_pb2.Vm] | None, patience: timedelta
) -> None:
    """Change a VM, follow the change if there is a goal, and print the VM as it is at the end."""
    vm = await (act(session, vm_id) if goal is None else follow(session, lambda: act(session, vm_id), goal, patience))
    if goal is not None and vm.desired_state != vm_pb2.DESIRED_STATE_DELETED:
        vm = (await session.node.vms.GetVm(vm_service_pb2.GetVmRequest(vm_id=vm.vm_id))).vm
    if session.output.json:
        session.output.document({"vm": as_json(vm)})
    elif vm.desired_state == vm_pb2.DESIRED_STATE_DELETED and goal is not None:
        session.output.line(f"{vm.vm_id} is gone.")
    else:
        session.output.styled(Cell(text=vm.vm_id), render.styled(render.vm_state(vm.state)), Cell(text=vm.reason))


def _print_health(session: Session, answer: vm_service_pb2.CheckVmHealthResponse) -> None:
    layers = [
        [
            Cell(text=layer.layer),
            render.styled(render.health(layer.status)),
            Cell(text=f"{layer.latency.ToMilliseconds()} ms"),
            Cell(text=layer.message),
        ]
        for layer in answer.layers
    ]
    session.output.table(("LAYER", "HEALTH", "LATENCY", "MESSAGE"), layers)
    if answer.containers:
        session.output.table(render.CONTAINER_COLUMNS, [render.status_row(status) for status in answer.containers])
    session.output.styled(render.styled(render.health(answer.status)))
