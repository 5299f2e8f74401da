"""`cellmesh route` against a node."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping

import pytest
from google.rpc import code_pb2

from cellmesh.api.hypervisor.v1 import event_pb2, route_pb2, route_service_pb2
from cellmesh.cli.traffic import Rates
from support.fake_node import FakeNode
from unit.cli.conftest import Cellmesh


def traffic(**fields: object) -> route_service_pb2.WatchTrafficResponse:
    """Return an answer with one route's counters."""
    return route_service_pb2.WatchTrafficResponse(traffic=[route_service_pb2.RouteTraffic(prefix="/", **fields)])


def test_routes_are_listed(node: FakeNode, cellmesh: Cellmesh) -> None:
    """Every page is read; where a route leads and what it waits for stand in columns that can be split at blanks."""
    vm, other = node.add_vm(), node.add_vm()
    serving = route_pb2.ROUTE_STATE_SERVING
    node.routes.add(vm.vm_id, "/", "sandbox-live", state=serving, epoch=2, generation=7)
    node.routes.add(vm.vm_id, "/dev/", "sandbox-dev", state=route_pb2.ROUTE_STATE_WAITING, reason="VM_STOPPED")
    node.routes.add(other.vm_id, "/", "sandbox-live")
    header, *rows = [line.split() for line in cellmesh("route", "ls").stdout.splitlines()]
    assert [row[1] for row in rows] == ["/", "/dev/", "/"]
    assert rows[0][2:6] == ["sandbox-live", "SERVING", "2", "7"]
    assert rows[1][-1] == "VM_STOPPED"
    assert all(len(row) == len(header) for row in rows)
    assert len(json.loads(cellmesh("route", "ls", vm.vm_id, "--json").stdout)["routes"]) == 2


def test_a_switch_says_what_is_wanted_and_how_long_it_took(node: FakeNode, cellmesh: Cellmesh) -> None:
    """Container, generation, revision and drain reach the node; the answer has the route and the time."""
    vm = node.add_vm()
    node.routes.add(vm.vm_id, "/dev/", "sandbox-dev")
    options = ("--generation", "3", "--drain", "1500ms", "--expect-revision", "1")
    result = cellmesh("route", "switch", vm.vm_id[:8], "/dev", "sandbox-live", *options, "--json")
    answer = json.loads(result.stdout)
    assert answer["route"]["target"] == {"container_name": "sandbox-live", "generation": "3"}
    assert answer["elapsed_ms"] >= 0
    request = node.routes.requests[0]
    assert isinstance(request, route_service_pb2.SwitchRouteRequest)
    assert (request.prefix, request.expected_revision) == ("/dev/", 1)
    assert request.drain_timeout.ToMilliseconds() == 1500


def test_without_drain_open_streams_are_left_alone(node: FakeNode, cellmesh: Cellmesh) -> None:
    """No drain is absent, which leaves streams; it is not a drain of no time, which would cut them at once."""
    vm = node.add_vm()
    node.routes.add(vm.vm_id, "/", "sandbox-live")
    shown = cellmesh("route", "switch", vm.vm_id, "/", "sandbox-dev").stdout
    assert "→ sandbox-dev SERVING revision 2" in shown
    request = node.routes.requests[0]
    assert isinstance(request, route_service_pb2.SwitchRouteRequest)
    assert not request.HasField("drain_timeout")


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (code_pb2.ABORTED, "ROUTE_CHANGED", 5),
        (code_pb2.FAILED_PRECONDITION, "ROUTE_REFUSED", 5),
        (code_pb2.NOT_FOUND, "ROUTE_NOT_FOUND", 3),
    ],
)
def test_a_switch_that_fails_says_why(
    code: int, reason: str, exit_code: int, node: FakeNode, cellmesh: Cellmesh
) -> None:
    """The node's reason and sentence are shown with what to do, and nothing is on standard output."""
    vm = node.add_vm()
    node.routes.refusal = (code, reason, "It was not to be.\x1b[2J")
    result = cellmesh("route", "switch", vm.vm_id, "/", "sandbox-dev")
    assert (result.returncode, result.stdout) == (exit_code, "")
    assert "It was not to be." in result.stderr
    assert "\x1b" not in result.stderr
    assert "cellmesh" in result.stderr.splitlines()[1]


@pytest.mark.parametrize("prefix", ["dev", "/other/", "/_/Upper/", "/_/", "//", "/dev/x"])
def test_a_prefix_that_is_none_is_a_wrong_usage(prefix: str, node: FakeNode, cellmesh: Cellmesh) -> None:
    """A path that can't be a route is refused before the node is asked."""
    assert cellmesh("route", "switch", node.add_vm().vm_id, prefix, "x").returncode == 2
    assert node.routes.requests == []


def test_watch_goes_on_after_a_break(node: FakeNode, environment: Mapping[str, str]) -> None:
    """A watch that is opened anew prints what changed or went meanwhile, and nothing that did not."""
    vm = node.add_vm()
    live = node.routes.add(vm.vm_id, "/", "sandbox-live")
    node.routes.add(vm.vm_id, "/_/gone/", "gone")
    node.routes.breaks = [1]
    seen = []
    argv = [sys.executable, "-m", "cellmesh.cli", "route", "watch", vm.vm_id, "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if "bookmark" in message and node.routes.opened == 1:
                # Told, but cut before it is sent: the next watch begins with it.
                live.target.container_name = "sandbox-dev"
                del node.routes.routes[vm.vm_id, "/_/gone/"]
                node.routes.tell(route=live)
            elif "bookmark" not in message:
                kind = next(iter(message))
                seen.append((kind, message[kind]["prefix"], message[kind].get("target", {}).get("container_name")))
            if len(seen) == 4:
                break
        process.terminate()
    assert seen[:3] == [("route", "/", "sandbox-live"), ("route", "/_/gone/", "gone"), ("route", "/", "sandbox-dev")]
    assert seen[3][:2] == ("removed", "/_/gone/")


def test_rates_are_differences_over_time() -> None:
    """The first answer has no rate; an edge that began anew counts from nothing; the busiest is first."""
    clock = itertools.count(0.0, 2.0)
    rates = Rates(lambda: next(clock))
    assert rates.of(traffic(requests=100, received_bytes=1000))[0].requests == 0
    grown = rates.of(traffic(requests=130, server_errors=4, received_bytes=5000, sent_bytes=10))[0]
    assert (grown.requests, grown.server_errors, grown.received_bytes, grown.sent_bytes) == (15, 2, 2000, 5)
    assert rates.of(traffic(requests=6, received_bytes=10))[0].requests == 3
    two = route_service_pb2.WatchTrafficResponse()
    two.traffic.add(prefix="/", requests=6)
    two.traffic.add(prefix="/dev/", requests=2)
    assert [rate.now.prefix for rate in rates.of(two)] == ["/dev/", "/"]


def test_top_prints_a_table_or_the_counters(node: FakeNode, cellmesh: Cellmesh) -> None:
    """People get a table for each answer, programs the counters as they are."""
    vm = node.add_vm()
    node.routes.traffic = [traffic(vm_id=vm.vm_id, requests=number) for number in (1, 2)]
    lines = cellmesh("route", "top").stdout.splitlines()
    assert len(lines) == 4
    assert [len(line.split()) for line in lines] == [9] * 4
    counters = [json.loads(line) for line in cellmesh("route", "top", "--json").stdout.splitlines()]
    assert [answer["traffic"][0]["requests"] for answer in counters] == ["1", "2"]


def test_route_events_are_told(node: FakeNode, cellmesh: Cellmesh) -> None:
    """A switch and a refusal stand in `events` with where the route led and leads, the edge's words escaped."""
    vm = node.add_vm()
    live, dev = route_pb2.RouteTarget(container_name="live"), route_pb2.RouteTarget(container_name="dev", generation=4)
    switched = event_pb2.RouteSwitched(prefix="/", to=dev, **{"from": live})
    node.tell(event_pb2.Event(vm_id=vm.vm_id, route_switched=switched))
    refused = event_pb2.RouteRefused(prefix="/", target=live, message="no\x1b[31m")
    node.tell(event_pb2.Event(vm_id=vm.vm_id, route_refused=refused))
    first, second = cellmesh("events").stdout.splitlines()
    assert first.endswith("SWITCHED / live → dev@4")
    assert second.endswith("REFUSED / → live no\\x1b[31m")


def test_the_shell_completes_routes(cellmesh: Cellmesh, environment: dict[str, str]) -> None:
    """Completion knows the commands, and the prefixes every VM has."""
    environment["_CELLMESH_COMPLETE"] = "complete_bash"
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "cellmesh route ", "2"
    assert {"ls", "switch", "watch", "top"} <= set(cellmesh().stdout.split())
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "cellmesh route switch x ", "4"
    assert cellmesh().stdout.split() == ["/", "/dev/"]
