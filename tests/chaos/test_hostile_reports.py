"""A guest that speaks out of turn: what it says is refused or ignored, noted once, and nobody else notices."""

from __future__ import annotations

import uuid

import pytest

from cellmesh.api.common.v1 import container_pb2, health_pb2
from cellmesh.api.guest.v1 import agent_service_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2, vm_pb2
from support.arena import NAME, Arena, Target
from support.node import SECONDS
from support.raw_calls import Outcome, call, channel

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio(loop_scope="module")]

HELLO, REPORT = agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"].methods
FIRST = 1_000_000
"""Sequence of a liar's first report: above those of the honest reports that go on beside it."""
FLOOD = 20_000
LOG_BYTES = 1 << 20
"""What one attack may write to the hypervisor's log."""
UGLY = "\x1b[2J\x1b]0;owned\x07line one\nline two\r\u202etxt.exe\u2028\x9b31m"


def report(target: Target, *containers: container_pb2.ContainerStatus, **fields: object) -> bytes:
    """Write a report of this target, with something else in it."""
    told = agent_service_pb2.ReportRequest(
        vm_id=target.vm.vm_id, epoch=target.vm.epoch, sequence=FIRST, containers=containers
    )
    for name, value in fields.items():
        setattr(told, name, value)
    return told.SerializeToString()


def status(**fields: object) -> container_pb2.ContainerStatus:
    """Return how the target's container is, with something else in it."""
    told = container_pb2.ContainerStatus(
        container_name=NAME,
        generation=1,
        state=container_pb2.CONTAINER_STATE_RUNNING,
        health=health_pb2.HEALTH_STATUS_SERVING,
    )
    for name, value in fields.items():
        setattr(told, name, value)
    return told


async def say(target: Target, *frames: bytes) -> Outcome:
    """Send reports as the target's agent."""
    async with channel(target.agent_socket) as to:
        return await call(to, REPORT, *frames, seconds=SECONDS, most=len(frames) + 1)


async def container(arena: Arena, target: Target) -> container_pb2.ContainerStatus:
    """Return how the node says the target's container is."""
    request = container_service_pb2.GetContainerRequest(vm_id=target.vm.vm_id, container_name=NAME)
    return (await arena.it.containers.GetContainer(request)).container.status


LIES: dict[str, tuple[dict[str, object], str, str]] = {
    "another VM": ({"vm_id": str(uuid.uuid4())}, "WRONG_EPOCH", "WRONG_VM_ID"),
    "an epoch that is over": ({"epoch": 99}, "WRONG_EPOCH", "OLD_EPOCH"),
}
BROKEN = {
    "no message": b"\xff" * 64,
    "groups 200 deep": b"\x0b" * 200,
    "a length of 2 GiB": b"\x0a\xff\xff\xff\xff\x07",
    "nothing": b"",
}


@pytest.mark.parametrize("name", LIES)
async def test_a_guest_cannot_speak_for_another(arena: Arena, name: str) -> None:
    """Who speaks is known from the socket; who says otherwise is refused, and it is noted."""
    fields, reason, kind = LIES[name]
    async with arena.target() as target, arena.witnessed():
        outcome = await say(target, report(target, status(), **fields))
        assert (outcome.code, outcome.reason) == ("FAILED_PRECONDITION", reason)
        assert [found.kind for found in await arena.misbehaviour(target)] == [kind]


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_report_is_refused_and_noted(arena: Arena, name: str) -> None:
    """What is no report gets a typed error and an event, and the honest reports beside it go on."""
    async with arena.target() as target, arena.witnessed():
        outcome = await say(target, BROKEN[name])
        assert (outcome.code, outcome.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        assert [found.kind for found in await arena.misbehaviour(target)] == ["INVALID_MESSAGE"]
        assert (await say(target, report(target, status(restart_count=7)))).code == "OK"
        assert (await container(arena, target)).restart_count == 7


@pytest.mark.parametrize(
    "containers",
    [
        [status()] * 17,
        [status(state=99)],
        [status(state=container_pb2.CONTAINER_STATE_UNSPECIFIED)],
        [status(exit_code=-1)],
        [status(container_name="../../etc")],
        [status(reason="owned\n")],
        [status(message="a" * 1025)],
        [status(), status()],
    ],
    ids=["17", "unknown state", "no state", "exit code -1", "path", "reason", "long message", "twice"],
)
async def test_a_report_against_the_rules_is_refused_and_noted(
    arena: Arena, containers: list[container_pb2.ContainerStatus]
) -> None:
    """A claim that breaks a rule takes nothing into the store."""
    async with arena.target() as target, arena.witnessed():
        before = await container(arena, target)
        outcome = await say(target, report(target, *containers))
        assert (outcome.code, outcome.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        assert [found.kind for found in await arena.misbehaviour(target)] == ["INVALID_MESSAGE"]
        assert await container(arena, target) == before


@pytest.mark.parametrize("size", [300_000, 5_000_000], ids=["300 kB", "5 MB"])
async def test_a_report_longer_than_reports_are_is_not_even_read(arena: Arena, size: int) -> None:
    """Length is judged before a byte is decoded; a list of a million containers is just long."""
    async with arena.target() as target, arena.witnessed():
        outcome = await say(target, b"\x22\x00" * (size // 2))
        assert outcome.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("claim", "kind"),
    [
        (status(container_name="ghost"), "UNKNOWN_CONTAINER"),
        (status(generation=2), "UNKNOWN_CONTAINER"),
        (status(generation=2**64 - 1), "UNKNOWN_CONTAINER"),
    ],
    ids=["ghost", "a generation to come", "the last generation"],
)
async def test_containers_nobody_started_do_not_come_to_be(
    arena: Arena, claim: container_pb2.ContainerStatus, kind: str
) -> None:
    """A claim of what the host never started is ignored and noted."""
    async with arena.target() as target, arena.witnessed():
        before = await container(arena, target)
        assert (await say(target, report(target, claim))).code == "OK"
        assert [found.kind for found in await arena.misbehaviour(target) if found.kind != "SEQUENCE_GAP"] == [kind]
        assert await container(arena, target) == before
        listing = container_service_pb2.ListContainersRequest(vm_id=target.vm.vm_id)
        assert len((await arena.it.containers.ListContainers(listing)).containers) == 1


async def test_the_past_does_not_come_back(arena: Arena) -> None:
    """An old generation and a sequence that goes back are answered and change nothing."""
    async with arena.target() as target, arena.witnessed():
        await arena.it.start_container(target.vm.vm_id, arena.image, name=NAME)
        failed = container_pb2.CONTAINER_STATE_FAILED
        old = report(target, status(generation=1, state=failed), sequence=FIRST)
        now = report(target, status(generation=2, restart_count=3), sequence=FIRST + 1)
        back = report(target, status(generation=2, state=failed), sequence=FIRST)
        assert (await say(target, old, now, back)).code == "OK"
        shown = await container(arena, target)
        assert (shown.generation, shown.restart_count) == (2, 3)
        assert shown.state == container_pb2.CONTAINER_STATE_RUNNING


async def test_words_are_stored_escaped(arena: Arena) -> None:
    """What a guest says of a container can be printed anywhere: on a terminal, in a log, in an event."""
    async with arena.target() as target, arena.witnessed():
        claim = status(state=container_pb2.CONTAINER_STATE_FAILED, reason="OWNED", message=UGLY)
        assert (await say(target, report(target, claim))).code == "OK"
        words = [(await container(arena, target)).message]
        for event in await arena.it.all_events(target.vm.vm_id):
            words += [event.container_state_changed.message, event.agent_misbehaved.message]
        assert words[0].startswith("\\u{1b}[2J")
        assert all(each.isprintable() for each in words)
    assert "owned\x07" not in arena.it.log.read_text()


async def test_a_guest_that_claims_health_with_its_machine_gone_is_not_believed(arena: Arena) -> None:
    """A VM's state comes from its VMM: dead, it is not SERVING, whatever was claimed a moment ago."""
    async with arena.target() as target, arena.witnessed():
        assert (await say(target, report(target, status()))).code == "OK"
        arena.hub.process(target.agent_socket.parent).kill()
        await arena.it.until_vm(target.vm.vm_id, lambda vm: vm.state != vm_pb2.VM_STATE_RUNNING or vm.epoch > 1)


async def test_another_boot_is_told_so_and_the_vm_starts_anew(arena: Arena) -> None:
    """A second boot id in one epoch is a reboot: a typed error for it, a new epoch for the VM."""
    hello = agent_service_pb2.HelloRequest(boot_id=str(uuid.uuid4()), protocol_versions=[1])
    async with arena.target() as target, arena.witnessed():
        async with channel(target.agent_socket) as to:
            outcome = await call(to, HELLO, hello.SerializeToString())
        assert (outcome.code, outcome.reason) == ("FAILED_PRECONDITION", "GUEST_REBOOTED")
        await arena.it.until(target.vm.vm_id, vm_pb2.VM_STATE_RUNNING, epoch=target.vm.epoch + 1)


async def test_a_flood_of_reports_is_dropped_and_counted(arena: Arena) -> None:
    """Reports at full speed end in TOO_MANY_REPORTS; few events, a small log, a neighbour that does not notice."""
    log = arena.it.log.stat().st_size
    async with arena.target() as target:
        # Before anybody is asked how the neighbour is, whose guest is in this process and would have to wait.
        frames = [report(target, status(restart_count=n % 1000), sequence=FIRST + n) for n in range(FLOOD)]
        async with arena.witnessed():
            outcomes = [await say(target, *frames[start : start + 1000]) for start in range(0, FLOOD, 1000)]
            # gRPC may forget why a stream ended that was still written to; one of a few reports is written by then.
            outcomes += [await say(target, *frames[:5]) for _ in range(20)]
        refused = [outcome for outcome in outcomes if outcome.reason == "TOO_MANY_REPORTS"]
        assert refused
        assert {outcome.code for outcome in refused} == {"RESOURCE_EXHAUSTED"}
        kinds = [found.kind for found in await arena.misbehaviour(target)]
        assert "TOO_MANY_REPORTS" in kinds
        assert len(kinds) < 20
    assert arena.it.log.stat().st_size - log < LOG_BYTES
