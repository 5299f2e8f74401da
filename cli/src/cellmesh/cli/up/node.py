"""Runs a node until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable
from contextlib import aclosing

from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.cli.connection import STREAM_SECONDS, Node, connect, streaming
from cellmesh.cli.lookup import all_vms
from cellmesh.cli.output import Cell, Output
from cellmesh.cli.settings import Settings
from cellmesh.cli.up.edge import Edge
from cellmesh.cli.up.process import HypervisorProcess
from cellmesh.cli.watch import VmWatch
from cellmesh.mesh.errors import MeshError

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DELETING = "VM_DELETING"
_ENDED = frozenset({"VM_NOT_FOUND", "VM_QUARANTINED", _DELETING})
"""What may have become of a VM since it was listed, for which it need not be stopped."""
_STOPPED = frozenset({vm_pb2.VM_STATE_STOPPED, vm_pb2.VM_STATE_DELETED, vm_pb2.VM_STATE_QUARANTINED})


async def run_node(settings: Settings, output: Output, *, edge: Edge | None, stop_vms: bool) -> None:
    """Run the hypervisor and its edge until Ctrl-C; raises HypervisorError, EdgeError if one can't be had.

    Told to stop before all of it runs, it takes down what it had started and raises CancelledError.
    """
    _on_stop(_stop_once())
    hypervisor = await HypervisorProcess.start(settings, os.environ)
    try:
        await hypervisor.ready(output.note)
        async with connect(settings.socket) as node:
            try:
                if edge is not None:
                    await edge.start(os.environ)
                asked = asyncio.Event()
                # Before anybody hears that the node is ready: from then on a signal is its orderly end.
                _on_stop(asked.set)
                _say_ready(settings, output, hypervisor, edge)
                await _serve(hypervisor, node, output, edge, asked)
            finally:
                if edge is not None:
                    await edge.stop()
            if stop_vms:
                await _stop_vms(node, output)
            remaining = [vm for vm in await all_vms(node) if vm.vmm_pid]
    finally:
        await hypervisor.stop()
    _say_goodbye(output, remaining)


def _stop_once() -> Callable[[], None]:
    """Return what cancels this task once: an impatient second Ctrl-C must not cut short how it takes things down."""
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        if not task.cancelling():
            task.cancel()

    return stop


def _on_stop(act: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, act)


async def _serve(
    hypervisor: HypervisorProcess, node: Node, output: Output, edge: Edge | None, asked: asyncio.Event
) -> None:
    """Show the VMs until it is asked to stop; raises HypervisorError if the hypervisor ends first."""
    async with asyncio.TaskGroup() as tasks:
        owned = [
            tasks.create_task(hypervisor.wait()),
            tasks.create_task(asked.wait()),
            tasks.create_task(
                VmWatch(node, output, is_live=True, below=None if edge is None else edge.table).changes()
            ),
        ]
        if edge is not None:
            owned.append(tasks.create_task(edge.keep()))
        await asyncio.wait(owned[:2], return_when=asyncio.FIRST_COMPLETED)
        for task in owned:
            task.cancel()
    if not asked.is_set():
        raise hypervisor.ended()


async def _stop_vms(node: Node, output: Output) -> None:
    """Stop every VM and wait until none runs."""
    waiting = set()
    for vm in await all_vms(node):
        if vm.state not in _STOPPED and await _stop_vm(node, vm.vm_id):
            waiting.add(vm.vm_id)
    if not waiting:
        return
    output.note(f"Stopping {len(waiting)} VMs …")
    watch = streaming(node.vms.WatchVms(vm_service_pb2.WatchVmsRequest(), timeout=STREAM_SECONDS))
    there = set()
    async with aclosing(watch) as messages:
        async for message in messages:
            if message.HasField("vm"):
                there.add(message.vm.vm_id)
                if message.vm.state in _STOPPED:
                    waiting.discard(message.vm.vm_id)
            elif message.bookmark.caught_up:
                # One that was deleted before the watch began is told of by nobody.
                waiting &= there
            if not waiting:
                return


async def _stop_vm(node: Node, vm_id: str) -> bool:
    """Want a VM stopped; False if there is nothing to wait for, as it is gone, or quarantined by now."""
    try:
        await node.vms.StopVm(vm_service_pb2.StopVmRequest(request_id=str(uuid.uuid4()), vm_id=vm_id))
    except MeshError as error:
        if error.reason not in _ENDED:
            raise
        return error.reason == _DELETING
    return True


def _say_ready(settings: Settings, output: Output, hypervisor: HypervisorProcess, edge: Edge | None) -> None:
    if output.json:
        ready = {"socket": str(settings.socket), "pid": hypervisor.pid, "log": str(hypervisor.log)}
        output.document({"ready": {**ready, **({} if edge is None else {"edge": edge.document()})}})
        return
    output.styled(Cell(text="The node is ready:", style="green"), Cell(text=str(settings.socket)))
    if edge is not None:
        edge.tell()
    output.note(f"Its log is {hypervisor.log}. Create a VM with `cellmesh vm create --wait`; Ctrl-C stops the node.")


def _say_goodbye(output: Output, remaining: list[vm_pb2.Vm]) -> None:
    if remaining:
        output.note(
            f"The node has stopped; {len(remaining)} VMs keep running. `cellmesh up` takes them over again; to stop "
            "them too, run `cellmesh up --stop-vms` and press Ctrl-C."
        )
    else:
        output.note("The node has stopped; no VM runs.")
