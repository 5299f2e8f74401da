"""What a request for a route gets: served by whom, or waiting for what, and for how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmesh.hypervisor.domain.container import Container, ContainerState, ContainerStatus, Health
from cellmesh.hypervisor.domain.route import (
    CurrentRoute,
    RouteState,
    RouteTarget,
    WaitReason,
    cluster_of,
    current,
    default_routes,
    retry_after,
    route_of_container,
    slot_of,
)
from cellmesh.hypervisor.domain.vm import ColdStart, DesiredState, Reason, Vm, VmSpec, VmState
from support import contracts
from support.vms import NOW, make_container, make_vm

RUNS = ContainerStatus(state=ContainerState.RUNNING, health=Health.SERVING)
VM = make_vm(state=VmState.RUNNING, epoch=3)
CONTAINER = make_container(VM.vm_id, "sandbox-live", generation=5, epoch=3, status=RUNS)
LIVE = default_routes(VM.vm_id, NOW)[0]


def look(*, vm: Vm = VM, container: Container | None = CONTAINER, generation: int = 0) -> CurrentRoute:
    """Return the live route as it is."""
    return current(replace(LIVE, target=RouteTarget(container="sandbox-live", generation=generation)), vm, container)


def status(state: ContainerState, **fields: object) -> Container:
    """Return the container with another status."""
    return replace(CONTAINER, status=ContainerStatus(state=state, **fields))  # type: ignore[arg-type]


def test_a_new_vm_leads_to_its_two_sandboxes() -> None:
    """`/` is the live sandbox, `/dev/` the one in the making."""
    assert [(r.prefix, r.target, r.revision) for r in default_routes(VM.vm_id, NOW)] == [
        ("/", RouteTarget(container="sandbox-live"), 1),
        ("/dev/", RouteTarget(container="sandbox-dev"), 1),
    ]


def test_a_container_of_another_name_gets_its_own_path() -> None:
    """Sidecars lie at /_/<name>/; the two sandboxes need no other path."""
    route = route_of_container(VM.vm_id, "search", NOW)
    assert route is not None
    assert (route.prefix, route.target) == ("/_/search/", RouteTarget(container="search"))
    assert [route_of_container(VM.vm_id, name, NOW) for name in ("sandbox-live", "sandbox-dev")] == [None, None]


@given(names=st.sets(st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True), min_size=2, max_size=8))
def test_no_two_paths_are_one_cluster(names: set[str]) -> None:
    """Whatever sidecars are called, live and dev among them, each path is a cluster of its own."""
    prefixes = ["/", "/dev/", *(f"/_/{name}/" for name in names | {"live", "dev"})]
    assert len({cluster_of("user", prefix) for prefix in prefixes}) == len(prefixes)
    assert (slot_of("/"), slot_of("/dev/"), slot_of("/_/live/")) == ("live", "dev", "_live")


def test_a_container_that_runs_in_the_present_epoch_answers() -> None:
    """Its epoch and generation are told; of one without a probe the agent says that it is well."""
    found = look(container=status(ContainerState.RUNNING, health=Health.SERVING)).status
    assert (found.state, found.epoch, found.generation) == (RouteState.SERVING, 3, 5)
    assert (found.reason, found.message) == ("", "")
    assert look(generation=5).status.state is RouteState.SERVING


@pytest.mark.parametrize(
    ("vm", "reason"),
    [
        ({"state": VmState.PENDING}, WaitReason.VM_STARTING),
        ({"state": VmState.STARTING}, WaitReason.VM_STARTING),
        ({"state": VmState.BACKOFF}, WaitReason.VM_RESTARTING),
        ({"state": VmState.STOPPING}, WaitReason.VM_RESTARTING),
        ({"state": VmState.FAILED}, WaitReason.VM_FAILED),
        ({"state": VmState.QUARANTINED}, WaitReason.VM_QUARANTINED),
        ({"state": VmState.DELETING}, WaitReason.VM_DELETING),
        ({"state": VmState.RUNNING, "desired": DesiredState.STOPPED}, WaitReason.VM_STOPPING),
        ({"state": VmState.STOPPING, "desired": DesiredState.STOPPED}, WaitReason.VM_STOPPING),
        ({"state": VmState.STOPPED, "desired": DesiredState.STOPPED}, WaitReason.VM_STOPPED),
        ({"state": VmState.STOPPED, "desired": DesiredState.RUNNING}, WaitReason.VM_STARTING),
        ({"state": VmState.RUNNING, "desired": DesiredState.DELETED}, WaitReason.VM_DELETING),
        ({"state": VmState.QUARANTINED, "desired": DesiredState.STOPPED}, WaitReason.VM_QUARANTINED),
    ],
)
def test_nobody_answers_for_a_vm_that_does_not_run(vm: dict[str, object], reason: WaitReason) -> None:
    """Whatever its container was said to be, the VM's own state is the reason."""
    found = look(vm=replace(VM, **vm)).status  # type: ignore[arg-type]
    assert (found.state, found.reason) == (RouteState.WAITING, reason.value)
    assert (found.epoch, found.generation) == (0, 0)
    assert found.message.endswith(".")


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        (None, WaitReason.CONTAINER_NOT_FOUND),
        (status(ContainerState.PENDING), WaitReason.CONTAINER_STARTING),
        (status(ContainerState.STARTING), WaitReason.CONTAINER_STARTING),
        (status(ContainerState.BACKOFF, message="OOM."), WaitReason.CONTAINER_RESTARTING),
        (status(ContainerState.STOPPING), WaitReason.CONTAINER_RESTARTING),
        (status(ContainerState.STOPPED), WaitReason.CONTAINER_STOPPED),
        (status(ContainerState.FAILED, message="No such program."), WaitReason.CONTAINER_FAILED),
        (status(ContainerState.RUNNING, health=Health.UNKNOWN), WaitReason.CONTAINER_STARTING),
        (status(ContainerState.RUNNING, health=Health.NOT_SERVING), WaitReason.CONTAINER_UNHEALTHY),
        (replace(CONTAINER, epoch=2), WaitReason.CONTAINER_STARTING),
        (replace(CONTAINER, wanted=False), WaitReason.CONTAINER_STOPPED),
    ],
)
def test_nobody_answers_for_a_container_that_cannot(container: Container | None, reason: WaitReason) -> None:
    """One that does not run, is not well, is of an older boot, or is wanted no longer gets no new request."""
    found = look(container=container).status
    assert (found.state, found.reason) == (RouteState.WAITING, reason.value)
    assert (found.epoch, found.generation) == (0, 0)
    if container is not None:
        assert container.status.message in found.message


@pytest.mark.parametrize("pinned", [4, 6])
def test_a_pinned_generation_is_served_by_no_other(pinned: int) -> None:
    """A route to one generation never falls through to the next one, or to one from before."""
    found = look(generation=pinned).status
    assert (found.state, found.reason) == (RouteState.WAITING, WaitReason.GENERATION_NOT_FOUND.value)


def test_who_may_start_a_stopped_vm_is_said() -> None:
    """The message of a stopped VM follows its policy."""
    stopped = replace(VM, state=VmState.STOPPED, desired=DesiredState.STOPPED)
    never = replace(stopped, spec=VmSpec(guest_image="sha256:aa", cold_start=ColdStart.NEVER))
    assert "request" in look(vm=stopped).status.message
    assert "only StartVm" in look(vm=never).status.message


def test_asking_again_makes_sense_while_something_comes_to_an_end_by_itself() -> None:
    """What is under way is asked for soon, what waits for room or its next try later, what waits for a hand never."""

    def wait(vm: Vm, container: Container | None = CONTAINER) -> timedelta | None:
        return retry_after(look(vm=vm, container=container).status, vm, NOW)

    second = timedelta(seconds=1)
    assert wait(VM) is None
    assert wait(replace(VM, state=VmState.STARTING)) == second
    assert wait(replace(VM, state=VmState.PENDING, reason=Reason.NODE_FULL)) == 5 * second
    backoff = replace(VM, state=VmState.BACKOFF, next_try_time=NOW + 20 * second)
    assert wait(backoff) == 20 * second
    assert wait(replace(backoff, next_try_time=NOW - second)) == second
    assert wait(VM, status(ContainerState.STARTING)) == second
    assert wait(VM, status(ContainerState.FAILED)) is None
    assert wait(VM, None) is None
    assert wait(replace(VM, state=VmState.FAILED)) is None


def test_the_runbook_says_what_to_do_about_each_reason() -> None:
    """Whoever reads a reason on a page finds it there."""
    runbook = (contracts.ROOT / "docs" / "runbook.md").read_text()
    assert [reason.value for reason in WaitReason if reason.value not in runbook] == []


def test_a_generation_has_a_port_of_its_own() -> None:
    """Containers never share a port, generations only after so many that none of the first is left."""
    ports = {
        replace(CONTAINER, ingress_slot=slot, generation=generation).ingress_port
        for slot in range(16)
        for generation in (1, 2, 65_535, 65_536)
    }
    assert len(ports) == 16 * 4
    assert min(ports) >= 65_536
    assert max(ports) < 2**32
