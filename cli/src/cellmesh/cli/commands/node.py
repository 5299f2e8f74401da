"""`cellmesh node`: the machine the VMs run on."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cellmesh.api.hypervisor.v1 import node_service_pb2
from cellmesh.cli import units
from cellmesh.cli.invocation import Session, call
from cellmesh.cli.options import JsonOption, noun
from cellmesh.cli.output import Cell

app = noun("Look at the node, and take it out of service.")


@app.command()
def show(context: typer.Context, *, json_output: JsonOption = False) -> None:
    """Show versions, room, and what is missing for full isolation."""

    async def body(session: Session) -> None:
        answer = await session.node.node.GetNode(node_service_pb2.GetNodeRequest())
        if session.output.json:
            session.output.message(answer)
        else:
            session.output.fields(_fields(answer.node))

    call(context, body, json_output=json_output)


@app.command()
def drain(
    context: typer.Context,
    *,
    off: Annotated[bool, typer.Option("--off", help="Take VMs again.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Take no new VMs and starts; VMs that run go on running."""

    async def body(session: Session) -> None:
        request = node_service_pb2.DrainNodeRequest(request_id=session.request_id, draining=not off)
        answer = await session.node.node.DrainNode(request)
        if session.output.json:
            session.output.message(answer)
        elif answer.node.draining:
            session.output.line(f"The node takes no new VMs; {answer.node.running_vm_count} go on running.")
        else:
            session.output.line("The node takes VMs.")

    call(context, body, json_output=json_output)


def _fields(node: node_service_pb2.Node) -> list[tuple[str, Cell]]:
    memory = f"{units.size(node.memory_committed_bytes)} of {units.size(node.memory_capacity_bytes)}"
    return [
        ("node", Cell(text=node.node_id)),
        ("version", Cell(text=node.version)),
        ("vmm", Cell(text=node.vmm_version)),
        ("takes VMs", Cell(text="no, it drains" if node.draining else "yes")),
        ("VMs", Cell(text=f"{node.running_vm_count} run, {node.vm_count} in all, {node.max_vms} at most")),
        ("memory", Cell(text=f"{memory} promised")),
        ("guest image", Cell(text=node.default_guest_image or "none: run `cellmesh image build`")),
        ("up for", Cell(text=units.age(node.start_time, time.time()))),
        *(("warning", Cell(text=warning, style="yellow")) for warning in node.warnings),
    ]
