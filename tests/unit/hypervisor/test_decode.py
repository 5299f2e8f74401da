"""Requests as the domain sees them: every default filled in, every wish with its fingerprint."""

from __future__ import annotations

from datetime import timedelta

from cellmesh.api.common.v1 import container_pb2
from cellmesh.api.hypervisor.v1 import vm_pb2
from cellmesh.hypervisor.domain.vm import RestartMode
from cellmesh.hypervisor.servicers import decode
from cellmesh.mesh import validation

IMAGE = f"sha256:{'0' * 64}"


def test_an_empty_vm_spec_is_every_default() -> None:
    """What the contract says of zero is what is stored."""
    spec = decode.vm_spec(vm_pb2.VmSpec())
    assert (spec.vcpus, spec.memory_bytes, spec.data_disk_bytes) == (1, 512 << 20, 2 << 30)
    assert (spec.restart_policy.mode, spec.restart_policy.max_restarts) == (RestartMode.ON_FAILURE, 5)
    assert spec.restart_policy.initial_backoff == timedelta(seconds=1)


def test_a_first_wait_above_the_longest_raises_the_longest() -> None:
    """A policy whose first wait is longer than its longest waits that long."""
    policy = container_pb2.RestartPolicy()
    policy.initial_backoff.FromSeconds(60)
    spec = decode.vm_spec(vm_pb2.VmSpec(restart_policy=policy))
    assert spec.restart_policy.max_backoff == timedelta(seconds=60)


def test_a_container_spec_is_complete_and_valid_afterwards() -> None:
    """The agent gets a document without anything left to guess, that keeps every rule of the contract."""
    probe = container_pb2.HealthProbe(http=container_pb2.HttpProbe(port=80))
    spec = decode.container_spec(container_pb2.ContainerSpec(image=IMAGE, probe=probe))
    document = container_pb2.ContainerSpec.FromString(spec.document)
    validation.check_request(document)
    assert spec.stop_grace == timedelta(seconds=5)
    assert document.probe.http.path == "/"
    assert document.probe.failure_threshold == 3
    assert document.resources.memory_bytes == 128 << 20
    assert document.restart_policy.mode == container_pb2.RESTART_MODE_ON_FAILURE


def test_no_grace_is_not_the_default_grace() -> None:
    """A grace of zero that was asked for stays zero."""
    message = container_pb2.ContainerSpec(image=IMAGE)
    message.stop_grace.FromSeconds(0)
    assert decode.container_spec(message).stop_grace == timedelta()
