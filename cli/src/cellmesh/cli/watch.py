"""The VMs of the node, as they are from moment to moment."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING

from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.cli import render, units
from cellmesh.cli.connection import STREAM_SECONDS, Node, Stream, resumed, streaming
from cellmesh.cli.output import Cell, Output, rich_table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live


class VmWatch:
    """The VMs of a node, kept current by a watch that survives broken streams; `below` is shown with a live table."""

    def __init__(
        self, node: Node, output: Output, *, is_live: bool, below: Callable[[], RenderableType] | None = None
    ) -> None:
        self._is_live = is_live and output.is_terminal and not output.json
        self._below = below
        self._node = node
        self._output = output
        self._token = b""
        self.vms: dict[str, vm_pb2.Vm] = {}

    async def changes(self, vm_id: str = "") -> None:
        """Follow the VMs, or one of them, until cancelled; print each change."""
        with self._live() as live:
            stream = resumed(lambda: self._open(vm_id), on_break=lambda: self._output.note("Watch broke; resuming."))
            async with aclosing(stream) as messages:
                async for message in messages:
                    self._token = message.resume_token
                    self._take(message)
                    self._show(message, live)

    def _open(self, vm_id: str) -> Stream[vm_service_pb2.WatchVmsResponse]:
        request = vm_service_pb2.WatchVmsRequest(vm_id=vm_id, resume_token=self._token)
        return streaming(self._node.vms.WatchVms(request, timeout=STREAM_SECONDS))

    def _take(self, message: vm_service_pb2.WatchVmsResponse) -> None:
        if not message.HasField("vm"):
            return
        if message.vm.state == vm_pb2.VM_STATE_DELETED:
            self.vms.pop(message.vm.vm_id, None)
        else:
            self.vms[message.vm.vm_id] = message.vm

    def _show(self, message: vm_service_pb2.WatchVmsResponse, live: Live | None) -> None:
        if live is not None:
            live.refresh()
        elif self._output.json:
            self._output.message(message)
        elif message.HasField("vm"):
            vm = message.vm
            when = Cell(text=units.clock(vm.update_time), style="dim")
            state = render.styled(render.vm_state(vm.state))
            self._output.styled(when, Cell(text=vm.vm_id), state, Cell(text=vm.reason))

    def _live(self) -> Live | nullcontext[None]:
        if not self._is_live:
            return nullcontext()
        from rich.live import Live

        return Live(get_renderable=self._table, console=self._output.console(), refresh_per_second=1)

    def _table(self) -> RenderableType:
        vms = rich_table(render.VM_COLUMNS, [render.vm_row(vm) for vm in self.vms.values()])
        if self._below is None:
            return vms
        from rich.console import Group

        return Group(vms, "", self._below())
