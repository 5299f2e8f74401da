"""`cellmesh container` against a node."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

from cellmesh.api.common.v1 import container_pb2, health_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2, event_pb2
from support.fake_node import FakeNode
from unit.cli.conftest import Cellmesh

IMAGE = "sha256:" + "ab" * 32


def test_every_option_reaches_the_spec(node: FakeNode, cellmesh: Cellmesh) -> None:
    """What is said on the command line is what the node is asked for."""
    options = ["--image", IMAGE, "--memory", "64M", "--cpus", "0.5", "--pids", "32", "--io-weight", "10"]
    options += ["--env", "A=b=c", "--working-dir", "/srv", "--restart", "always", "--max-restarts", "3"]
    options += ["--probe-http", "8080/healthz", "--persist", "/data/x", "--http-port", "8081", "--stop-grace", "1500ms"]
    result = cellmesh("container", "start", f"{node.add_vm().vm_id}/sandbox-dev", *options, "--", "sh", "-c", "x")
    assert result.returncode == 0, result.stderr
    request = node.requests[0]
    assert isinstance(request, container_service_pb2.StartContainerRequest)
    expected = container_pb2.ContainerSpec(
        image=IMAGE,
        argv=["sh", "-c", "x"],
        environment=[container_pb2.EnvironmentVariable(name="A", value="b=c")],
        working_dir="/srv",
        resources=container_pb2.ContainerResources(memory_bytes=64 << 20, cpu_millis=500, pids=32, io_weight=10),
        restart_policy=container_pb2.RestartPolicy(mode="RESTART_MODE_ALWAYS", max_restarts=3),
        probe=container_pb2.HealthProbe(http=container_pb2.HttpProbe(port=8080, path="/healthz")),
        http_port=8081,
        persistent_paths=[container_pb2.PersistentPath(path="/data/x")],
    )
    expected.stop_grace.FromMilliseconds(1500)
    assert request.spec == expected


def test_two_probes_are_refused(node: FakeNode, cellmesh: Cellmesh) -> None:
    """A container has one probe; two are a wrong usage and nothing is asked of the node."""
    options = ("--image", IMAGE, "--probe-tcp", "80", "--probe-exec", "true")
    assert cellmesh("container", "start", f"{node.add_vm().vm_id}/x", *options).returncode == 2
    assert node.requests == []


def test_wait_ends_when_the_probe_is_well(node: FakeNode, environment: Mapping[str, str]) -> None:
    """`start --wait` shows the health turning and ends only then."""
    vm = node.add_vm()
    argv = [sys.executable, "-m", "cellmesh.cli", "container", "start", f"{vm.vm_id}/live", "--image", IMAGE]
    with subprocess.Popen([*argv, "--wait", "--json"], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        node.started.wait(60)
        for health in (health_pb2.HEALTH_STATUS_NOT_SERVING, health_pb2.HEALTH_STATUS_SERVING):
            change = event_pb2.ContainerHealthChanged(to=health)
            node.tell(
                event_pb2.Event(vm_id=vm.vm_id, container_name="live", generation=1, container_health_changed=change)
            )
        lines = [json.loads(line) for line in process.stdout]
        assert process.wait(60) == 0
    healths = [line["event"]["container_health_changed"]["to"] for line in lines[:-1]]
    assert healths == ["HEALTH_STATUS_NOT_SERVING", "HEALTH_STATUS_SERVING"]
    assert lines[-1]["container"]["container_name"] == "live"
