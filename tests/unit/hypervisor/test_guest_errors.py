"""What a guest's errors become for a caller of the hypervisor."""

from __future__ import annotations

import pytest

from cellmesh.api.guest.v1 import error_reason_pb2
from cellmesh.api.hypervisor.v1 import error_reason_pb2 as hypervisor_error_reason_pb2
from cellmesh.hypervisor.domain import errors
from cellmesh.hypervisor.guest.errors import translated
from cellmesh.mesh.errors import Code, DeadlineExceeded, DownstreamUnavailable, InvalidAnswer, MeshError, RemoteError

REASONS = [name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()[1:]]  # not a dict


def remote(reason: str, code: Code = Code.FAILED_PRECONDITION, domain: str = "guest.cellmesh") -> RemoteError:
    """Return what a guest answered."""
    return RemoteError("it said so", code=code, reason=reason, domain=domain)


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_of_a_guest_becomes_one_of_ours(reason: str) -> None:
    """Whatever a guest answers, its caller gets an error of the hypervisor's contract."""
    error = translated(remote(reason), vm_id="v", name="c")
    assert error.domain == "hypervisor.cellmesh"
    assert f"ERROR_REASON_{error.reason}" in hypervisor_error_reason_pb2.ErrorReason.keys()  # noqa: SIM118  # not a dict


def test_a_reason_with_another_code_is_not_believed() -> None:
    """A guest that pairs a known reason with a foreign code broke the contract."""
    error = translated(remote("EXEC_NOT_FOUND", Code.UNAUTHENTICATED), vm_id="v")
    assert isinstance(error, errors.GuestMisbehaved)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DownstreamUnavailable("gone"), errors.GuestUnreachable),
        (DeadlineExceeded("slow"), errors.GuestUnreachable),
        (InvalidAnswer("nonsense"), errors.GuestMisbehaved),
        (remote("PERMISSION", Code.PERMISSION_DENIED, "elsewhere"), errors.GuestMisbehaved),
        (remote("EXEC_NOT_FOUND", Code.NOT_FOUND), errors.ExecNotFound),
        (remote("CONTAINER_NOT_FOUND", Code.NOT_FOUND), errors.ContainerNotFound),
        (remote("WRONG_EPOCH"), errors.GuestUnreachable),
        (remote("IMAGE_NOT_ATTACHED", Code.NOT_FOUND), errors.ContainerStartFailed),
    ],
)
def test_what_ails_a_guest_is_named(error: MeshError, expected: type[MeshError]) -> None:
    """Silence is UNREACHABLE, nonsense is MISBEHAVED, a known reason is itself."""
    assert type(translated(error, vm_id="v", name="c")) is expected


def test_each_error_class_is_one_reason_of_the_contract() -> None:
    """No two classes share a reason, and each reason stands in its contract."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__]
    ours = [kind.reason for kind in kinds if kind.domain == "hypervisor.cellmesh"]
    contract = {n.removeprefix("ERROR_REASON_") for n in hypervisor_error_reason_pb2.ErrorReason.keys()[1:]}
    assert sorted(ours) == sorted(contract)


@pytest.mark.parametrize(
    ("reason", "told", "passed"),
    [
        ("EXEC_START_FAILED", {"exit_code": "127", "other": "x"}, {"exit_code": "127"}),
        ("EXEC_START_FAILED", {"exit_code": "126"}, {"exit_code": "126"}),
        ("EXEC_START_FAILED", {"exit_code": "0"}, {}),
        ("EXEC_NOT_FOUND", {"exit_code": "127"}, {}),
    ],
)
def test_only_exit_codes_of_a_shell_are_passed_on(reason: str, told: dict[str, str], passed: dict[str, str]) -> None:
    """A guest can write anything into an error's metadata; no command fails as if it had succeeded."""
    code = Code.NOT_FOUND if reason == "EXEC_NOT_FOUND" else Code.FAILED_PRECONDITION
    error = RemoteError("it said so", code=code, reason=reason, domain="guest.cellmesh", metadata=told)
    assert translated(error, vm_id="v").metadata == passed
