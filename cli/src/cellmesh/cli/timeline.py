"""Shows what becomes of a wish, step by step with the time each took, until it is fulfilled or has failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.common.v1 import health_pb2
from cellmesh.api.hypervisor.v1 import event_pb2, event_service_pb2, vm_pb2
from cellmesh.cli.connection import STREAM_SECONDS, Stream, resumed, streaming
from cellmesh.cli.errors import CliError, ExitCode, NotReachedError
from cellmesh.cli.invocation import Session
from cellmesh.cli.output import Cell, as_json
from cellmesh.cli.render import event_cells
from cellmesh.cli.text import printable

Wish = TypeVar("Wish")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal(Generic[Wish]):
    """What a wish is about, and how to tell that it came true."""

    vm_id: Callable[[Wish], str]
    """The VM that the answer to the wish names."""
    reached: Callable[[Wish], bool]
    """Whether the answer itself says that nothing is left to do."""
    verdict: Callable[[Wish, event_pb2.Event], bool]
    """Whether an event of that VM fulfils the wish; raises NotReachedError if it can't be fulfilled any more."""


class EventFollower:
    """Every event of the node from the moment it was opened, across broken streams."""

    def __init__(self, session: Session, *, token: bytes = b"", vm_id: str = "", from_beginning: bool = False) -> None:
        self._session = session
        self._vm_id = vm_id
        self._from_beginning = from_beginning
        self.token = token
        """Token of the last message received."""

    async def messages(self) -> AsyncGenerator[event_service_pb2.WatchEventsResponse, None]:
        """Yield messages without end, bookmarks included."""
        async with aclosing(resumed(self._open, on_break=self._tell)) as messages:
            async for message in messages:
                self.token = message.resume_token
                yield message

    def _open(self) -> Stream[event_service_pb2.WatchEventsResponse]:
        request = event_service_pb2.WatchEventsRequest(
            vm_id=self._vm_id, resume_token=self.token, from_beginning=self._from_beginning and not self.token
        )
        return streaming(self._session.node.events.WatchEvents(request, timeout=STREAM_SECONDS))

    def _tell(self) -> None:
        self._session.output.note("The event stream broke; resuming where it was.")


async def follow(session: Session, act: Callable[[], Awaitable[Wish]], goal: Goal[Wish], patience: timedelta) -> Wish:
    """Do `act`, print each event of its VM until `goal` is reached, and return the answer to `act`."""
    try:
        async with asyncio.timeout(patience.total_seconds()):
            return await _follow(session, act, goal)
    except TimeoutError as error:
        raise CliError(
            f"It is not done after {patience.total_seconds():g} s; the node goes on with it.",
            "Watch it with `cellmesh events -f`, or wait longer with --timeout.",
            exit_code=ExitCode.DEADLINE,
            reason="TIMEOUT",
        ) from error


async def _follow(session: Session, act: Callable[[], Awaitable[Wish]], goal: Goal[Wish]) -> Wish:
    # The watch is open before the wish is made, so no step of it can be missed.
    async with aclosing(EventFollower(session).messages()) as messages:
        await anext(messages)
        start = time.time()
        wish = await act()
        if goal.reached(wish):
            return wish
        vm_id = goal.vm_id(wish)
        status = session.output.console().status("waiting …") if session.output.is_terminal else nullcontext()
        with status:
            async for message in messages:
                if message.HasField("event") and message.event.vm_id == vm_id:
                    _show(session, message.event, start)
                    if goal.verdict(wish, message.event):
                        break
    return wish


def _show(session: Session, event: event_pb2.Event, start: float) -> None:
    elapsed_ms = max(0, round((event.time.seconds + event.time.nanos / 1e9 - start) * 1000))
    if session.output.json:
        session.output.document({"elapsed_ms": elapsed_ms, "event": as_json(event)})
    else:
        session.output.styled(Cell(text=f"{elapsed_ms:>8} ms "), *event_cells(event))


def vm_goal(target: vm_pb2.VmState, *, new_epoch: bool = False) -> Goal[vm_pb2.Vm]:
    """Return the goal that a VM is in `target`; with `new_epoch`, that it came there by a start after the wish."""

    def reached(vm: vm_pb2.Vm) -> bool:
        return vm.state == target and not new_epoch

    def verdict(wish: vm_pb2.Vm, event: event_pb2.Event) -> bool:
        if event.WhichOneof("payload") != "vm_state_changed":
            return False
        change = event.vm_state_changed
        hopeless = {vm_pb2.VM_STATE_FAILED, vm_pb2.VM_STATE_QUARANTINED} - {target}
        if change.to in hopeless:
            raise NotReachedError(
                change.message or f"The VM is {vm_pb2.VmState.Name(change.to).removeprefix('VM_STATE_')}.",
                f"See `cellmesh vm show {wish.vm_id}`; `cellmesh vm start` tries again.",
                reason=change.reason or "VM_FAILED",
            )
        return change.to == target and (event.epoch > wish.epoch or not new_epoch)

    return Goal(vm_id=lambda vm: vm.vm_id, reached=reached, verdict=verdict)


def container_goal(vm_id: str, name: str) -> Goal[common_container_pb2.ContainerStatus]:
    """Return the goal that a container is well: its probe says SERVING."""

    def reached(status: common_container_pb2.ContainerStatus) -> bool:
        return status.health == health_pb2.HEALTH_STATUS_SERVING

    def verdict(wish: common_container_pb2.ContainerStatus, event: event_pb2.Event) -> bool:
        if event.container_name != name or event.generation < wish.generation:
            return False
        failed = common_container_pb2.CONTAINER_STATE_FAILED
        if event.HasField("container_state_changed") and event.container_state_changed.to == failed:
            change = event.container_state_changed
            raise NotReachedError(
                change.message or f"Container {printable(name)} has failed.",
                f"Read its output with `cellmesh logs {vm_id}/{name}`.",
                reason=change.reason or "CONTAINER_FAILED",
            )
        healthy = health_pb2.HEALTH_STATUS_SERVING
        return event.HasField("container_health_changed") and event.container_health_changed.to == healthy

    return Goal(vm_id=lambda _: vm_id, reached=reached, verdict=verdict)
