"""A guest that answers badly: its caller gets a typed error in time, and nobody else notices."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2

from cellmesh.api.common.v1 import container_pb2, exec_pb2, health_pb2
from cellmesh.api.guest.v1 import container_service_pb2 as guest_service
from cellmesh.api.hypervisor.v1 import container_service_pb2, vm_service_pb2
from cellmesh.mesh.errors import MeshError
from support import hostile_guest as hostile
from support.arena import NAME, Arena, Target
from support.hostile_guest import Bytes, Lie, refusing, saying, saying_for_ever, saying_late
from support.node import SECONDS

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module")]

SHORT = 2.0
"""How long a caller waits for an answer that does not come, seconds."""
CODES = {
    "GUEST_MISBEHAVED": "INTERNAL",
    "GUEST_UNREACHABLE": "UNAVAILABLE",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
    "CONTAINER_NOT_RUNNING": "FAILED_PRECONDITION",
}
STATS = container_pb2.ContainerStats(container_name=NAME, generation=1)
STATUS = container_pb2.ContainerStatus(
    container_name=NAME,
    generation=1,
    state=container_pb2.CONTAINER_STATE_RUNNING,
    health=health_pb2.HEALTH_STATUS_SERVING,
)
UGLY = "\x1b[2J\x1b]0;owned\x07line one\nline two\r\u202etxt.exe\u2028\x9b31m"


def stats(**fields: object) -> bytes:
    """Write an answer to GetStats with something else in it."""
    told = container_pb2.ContainerStats()
    told.CopyFrom(STATS)
    told.MergeFrom(container_pb2.ContainerStats(**fields))  # type: ignore[arg-type]  # lies have any type
    return guest_service.GetStatsResponse(stats=told).SerializeToString()


def status(**fields: object) -> bytes:
    """Write an answer to StartContainer with something else in it."""
    told = container_pb2.ContainerStatus()
    told.CopyFrom(STATUS)
    told.MergeFrom(container_pb2.ContainerStatus(**fields))  # type: ignore[arg-type]  # lies have any type
    return guest_service.StartContainerResponse(status=told).SerializeToString()


def logs(**fields: object) -> bytes:
    """Write a piece of a log with something odd in it."""
    chunk = {"stream": exec_pb2.OUTPUT_STREAM_STDOUT, **fields}
    return guest_service.StreamLogsResponse(chunks=[chunk]).SerializeToString()


def error(code: int, reason: str, **metadata: str) -> bytes:
    """Write the details of an error."""
    told = status_pb2.Status(code=code, message="no")
    told.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="guest.cellmesh", metadata=metadata))
    written: bytes = told.SerializeToString()
    return written


async def ask_stats(arena: Arena, target: Target, seconds: float) -> None:
    """Ask for what a container uses."""
    request = container_service_pb2.GetStatsRequest(vm_id=target.vm.vm_id, container_name=NAME)
    await arena.it.containers.GetStats(request, timeout=seconds)


async def ask_start(arena: Arena, target: Target, seconds: float) -> None:
    """Ask for another container."""
    request = container_service_pb2.StartContainerRequest(
        request_id=str(uuid.uuid4()),
        vm_id=target.vm.vm_id,
        container_name=NAME,
        spec=container_pb2.ContainerSpec(image=arena.image),
    )
    await arena.it.containers.StartContainer(request, timeout=seconds)


async def ask_logs(arena: Arena, target: Target, seconds: float) -> None:
    """Read a log to its end."""
    request = container_service_pb2.StreamLogsRequest(vm_id=target.vm.vm_id, container_name=NAME)
    async for _ in arena.it.containers.StreamLogs(request, timeout=seconds):
        pass


async def ask_exec(arena: Arena, target: Target, seconds: float) -> None:
    """Run a command to its end."""
    opening = exec_pb2.ExecOpen(
        vm_id=target.vm.vm_id, container_name=NAME, exec_id=str(uuid.uuid4()), argv=["echo", "hello"]
    )
    request = container_service_pb2.ExecRequest(input=exec_pb2.ExecInput(open=opening))
    async for _ in arena.it.containers.Exec(iter([request]), timeout=seconds):
        pass


Ask = Callable[[Arena, Target, float], Awaitable[None]]
METHODS: dict[Ask, str] = {
    ask_stats: "GetStats",
    ask_start: "StartContainer",
    ask_logs: "StreamLogs",
    ask_exec: "Exec",
}
MISBEHAVED, UNREACHABLE = {"GUEST_MISBEHAVED"}, {"GUEST_UNREACHABLE"}
LATE = {"GUEST_UNREACHABLE", "DEADLINE_EXCEEDED"}
LIES: dict[str, tuple[Ask, Lie, set[str]]] = {
    "five megabytes": (ask_stats, saying(b"\x00" * 5_000_000), MISBEHAVED),
    "64 KiB of error details": (
        ask_stats,
        refusing(grpc.StatusCode.NOT_FOUND, "no", details=b"\x0a" * 65536),
        MISBEHAVED,
    ),
    "a sentence of 64 KiB": (ask_stats, refusing(grpc.StatusCode.NOT_FOUND, "no " * 21845), MISBEHAVED),
    "no message at all": (ask_stats, saying(b"\xff" * 64), MISBEHAVED),
    "groups 200 deep": (ask_stats, saying(b"\x0b" * 200), MISBEHAVED),
    "text that is not UTF-8": (ask_stats, saying(stats().replace(NAME.encode(), b"\xff" * len(NAME))), MISBEHAVED),
    "an empty answer": (ask_stats, saying(b""), MISBEHAVED),
    "no answer, but success": (ask_stats, saying(), MISBEHAVED),
    # gRPC reads one answer and waits for the end, which does not come.
    "two answers to one question": (ask_stats, saying(stats(), stats()), LATE),
    "another container's numbers": (ask_stats, saying(stats(container_name="sandbox-dev")), MISBEHAVED),
    "negative time": (ask_stats, saying(stats(cpu_time=Duration(seconds=-1))), MISBEHAVED),
    "time of two signs": (ask_stats, saying(stats(cpu_time=Duration(seconds=1, nanos=-1))), MISBEHAVED),
    "an error of no contract": (
        ask_stats,
        refusing(grpc.StatusCode.NOT_FOUND, "no", details=error(code_pb2.NOT_FOUND, "OWNED", key="\x1b[2J")),
        MISBEHAVED,
    ),
    "an error that names another code": (
        ask_stats,
        refusing(grpc.StatusCode.NOT_FOUND, "no", details=error(code_pb2.OK, "CONTAINER_NOT_FOUND")),
        MISBEHAVED,
    ),
    "an error with a terminal in it": (ask_stats, refusing(grpc.StatusCode.NOT_FOUND, UGLY), MISBEHAVED),
    "a reason, and a terminal in its sentence": (
        ask_stats,
        refusing(
            grpc.StatusCode.FAILED_PRECONDITION,
            UGLY,
            details=error(code_pb2.FAILED_PRECONDITION, "CONTAINER_NOT_RUNNING"),
        ),
        {"CONTAINER_NOT_RUNNING"},
    ),
    "silence": (ask_stats, hostile.silence, LATE),
    "an answer after the deadline": (ask_stats, saying_late(stats(), seconds=5 * SHORT), LATE),
    "silence in a stream": (ask_logs, hostile.silence, LATE),
    "an unknown state": (ask_start, saying(status(state=99)), MISBEHAVED),
    "another container": (ask_start, saying(status(container_name="ghost")), MISBEHAVED),
    "an old generation": (ask_start, saying(status()), MISBEHAVED),
    "an exit code of 99999": (ask_start, saying(status(exit_code=99999)), MISBEHAVED),
    "output on no stream": (ask_logs, saying(logs(stream=0)), MISBEHAVED),
    "output beyond every calendar": (ask_logs, saying(logs(time=Timestamp(seconds=2**62))), MISBEHAVED),
    "a piece longer than pieces are": (ask_logs, saying(logs(data=b"a" * 65537)), MISBEHAVED),
    "300 pieces at once": (
        ask_logs,
        saying(guest_service.StreamLogsResponse(chunks=[{"stream": 1}] * 300).SerializeToString()),
        MISBEHAVED,
    ),
    "no log, after a good piece": (ask_logs, saying(logs(data=b"good"), b"\xff" * 64), MISBEHAVED),
    "an empty frame": (ask_exec, saying(b""), MISBEHAVED),
    "no frame at all": (ask_exec, saying(b"\xff" * 64), MISBEHAVED),
}
# Whether a connection broke or was never one depends on how far it got.
WIRES: dict[str, tuple[Bytes, set[str]]] = {
    "nothing": (hostile.deaf, LATE),
    "a closed door": (hostile.gone, UNREACHABLE),
    "what is no HTTP/2": (hostile.garbage, UNREACHABLE | MISBEHAVED),
    "one byte a second": (hostile.dripping, LATE),
    "frames of 16 MiB": (hostile.huge_frames, UNREACHABLE | MISBEHAVED),
}


async def refusal(ask: Ask, arena: Arena, target: Target, reasons: set[str]) -> MeshError:
    """Ask, and return the error it ends with; AssertionError if the lie was believed.

    Only where time is what ends it, little is given: a machine that is busy may need more to say anything else.
    """
    try:
        await ask(arena, target, SHORT if reasons & LATE == LATE else SECONDS)
    except MeshError as refused:
        return refused
    raise AssertionError("the lie was believed")


def check(refused: MeshError, reasons: set[str]) -> None:
    """Hold an error to the contract: its reason, its code, and a sentence that is safe to print."""
    assert refused.reason in reasons, f"{refused.reason}: {refused.message}"
    assert refused.code.name == CODES[refused.reason]
    assert refused.message.isprintable()
    assert len(refused.message) <= 1024
    assert all(value.isprintable() for value in refused.metadata.values())


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_is_a_typed_error_for_its_caller_alone(arena: Arena, name: str) -> None:
    """An answer that breaks the contract ends the call with what the guest did; the neighbour is well meanwhile."""
    ask, lie, reasons = LIES[name]
    async with arena.target() as target, arena.witnessed():
        target.guest.lies[METHODS[ask]] = lie
        check(await refusal(ask, arena, target, reasons), reasons)


@pytest.mark.parametrize("name", WIRES)
async def test_bytes_that_are_no_answer_are_a_typed_error_in_time(arena: Arena, name: str) -> None:
    """Below gRPC a guest can do no more: the caller hears within its deadline that the agent does not answer."""
    wire, reasons = WIRES[name]
    async with arena.target() as target, arena.witnessed():
        target.guest.wire = wire
        target.guest.cut()
        check(await refusal(ask_stats, arena, target, reasons), reasons)


@pytest.mark.parametrize(("ask", "answer"), [(ask_logs, logs(data=b"a" * 65536)), (ask_exec, b"")], ids=["log", "exec"])
async def test_a_flood_of_output_stays_in_the_guest(arena: Arena, ask: Ask, answer: bytes) -> None:
    """Output without end is taken no faster than its caller reads, and costs the host no memory."""
    frame = exec_pb2.ExecOutput(data=exec_pb2.ExecData(stream=exec_pb2.OUTPUT_STREAM_STDOUT, data=b"a" * 65536))
    output = answer or guest_service.ExecResponse(output=frame).SerializeToString()
    async with arena.target() as target, arena.witnessed():
        target.guest.lies[METHODS[ask]] = saying_for_ever(output)
        check(await refusal(ask, arena, target, LATE), LATE)


@pytest.mark.parametrize(
    "answer",
    [
        guest_service.ListContainersResponse(containers=[STATUS] * 17).SerializeToString(),
        b"\x0a\x00" * 1_000_000,
        status(state=99),
        b"\xff" * 64,
    ],
    ids=["17 containers", "a million containers", "an unknown state", "no message"],
)
async def test_a_lying_list_makes_the_agent_ill_and_nothing_else(arena: Arena, answer: bytes) -> None:
    """A health check still answers, layer by layer: the agent is NOT_SERVING, the VMM is well."""
    async with arena.target() as target, arena.witnessed():
        target.guest.lies["ListContainers"] = saying(answer)
        request = vm_service_pb2.CheckVmHealthRequest(vm_id=target.vm.vm_id)
        health = await arena.it.vms.CheckVmHealth(request)
        layers = {layer.layer: layer.status for layer in health.layers}
        assert layers == {
            "vmm_process": health_pb2.HEALTH_STATUS_SERVING,
            "vmm_api": health_pb2.HEALTH_STATUS_SERVING,
            "agent": health_pb2.HEALTH_STATUS_NOT_SERVING,
        }
        assert health.status == health_pb2.HEALTH_STATUS_NOT_SERVING
        assert not health.containers


async def test_words_of_a_guest_are_escaped_where_they_are_shown(arena: Arena) -> None:
    """A message with a terminal's control characters in it reaches nobody's terminal."""
    told = container_pb2.ContainerStatus()
    told.CopyFrom(STATUS)
    told.message = UGLY
    async with arena.target() as target, arena.witnessed():
        answer = guest_service.ListContainersResponse(containers=[told])
        target.guest.lies["ListContainers"] = saying(answer.SerializeToString())
        request = vm_service_pb2.CheckVmHealthRequest(vm_id=target.vm.vm_id)
        health = await arena.it.vms.CheckVmHealth(request)
        assert [each.message.isprintable() for each in health.containers] == [True]
        assert "\\u{1b}[2J" in health.containers[0].message
