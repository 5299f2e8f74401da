"""Every RPC says how it is to be called, and a contract that does not is noticed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration

from cellmesh.api.options.v1 import method_pb2
from cellmesh.mesh.identity import Role
from cellmesh.mesh.policy import ActsFor, Retry, missing_policies, policy_of
from support.contracts import ENVOYS, FILES, METHODS, path_of

_READS = re.compile(r"^(Get|List|Watch|Stream|Check)[A-Z]")
# Changes that may be asked for any number of times, and why that is right without a request_id.
_REPEATABLE = {
    "/cellmesh.api.hypervisor.v1.RouteService/ActivateRoute": "it wants a state, and a VM that is wanted is left alone",
}


def test_every_rpc_has_a_complete_policy() -> None:
    """No contract of ours has an RPC without a policy, or with one that makes no sense."""
    assert METHODS
    assert missing_policies(FILES) == []


def test_policy_is_read_as_written(method: MethodDescriptor) -> None:
    """Deadlines are ordered, and retries are said where and only where there are any."""
    policy = policy_of(path_of(method))
    assert 0 < policy.default_deadline <= policy.max_deadline <= 86400
    assert (policy.max_attempts == 1 and policy.retry_percent == 0) == (policy.retry is Retry.NONE)
    assert policy.callers


def test_mutations_carry_a_request_id(method: MethodDescriptor) -> None:
    """What an outside caller may change can be sent twice without being done twice."""
    if not method.full_name.startswith("cellmesh.api.hypervisor.") or _READS.match(method.name):
        return
    if method.client_streaming:
        # Exec: its `exec_id` does what a request_id does, in the first frame.
        assert policy_of(path_of(method)).retry is Retry.NONE
        return
    if path_of(method) in _REPEATABLE:
        assert policy_of(path_of(method)).retry is Retry.SAFE
        return
    assert policy_of(path_of(method)).retry is Retry.REQUEST_ID
    assert "request_id" in method.input_type.fields_by_name


def test_reads_are_safe_to_repeat(method: MethodDescriptor) -> None:
    """An RPC named as a read has no side effects, so that a caller may retry it."""
    if _READS.match(method.name):
        assert policy_of(path_of(method)).retry is Retry.SAFE
        assert "request_id" not in method.input_type.fields_by_name


def test_exceptions_name_rpcs_that_exist() -> None:
    """An exception for an RPC that was renamed or removed would excuse nothing, or the wrong thing."""
    assert {path_of(method) for method in METHODS} >= set(_REPEATABLE)


def test_messages_are_named_after_their_rpc(own: MethodDescriptor) -> None:
    """Each RPC has a request and an answer of its own, so that either can grow."""
    assert own.input_type.name == f"{own.name}Request"
    assert own.output_type.name == f"{own.name}Response"


@pytest.mark.parametrize("envoys", ENVOYS, ids=path_of)
def test_only_the_edge_speaks_envoys_contracts(envoys: MethodDescriptor) -> None:
    """What our rules for messages and names leave out is what nobody but the edge may send, and is never repeated."""
    assert policy_of(path_of(envoys)).callers == {Role.EDGE}
    assert policy_of(path_of(envoys)).retry is Retry.NONE
    assert envoys.containing_service.file.name.startswith("cellmesh/envoy/")


def test_envoys_contracts_are_those_of_its_folder() -> None:
    """No contract of ours escapes our rules by calling itself Envoy's, nor does one of Envoy's pass for ours."""
    assert ENVOYS
    assert {file.name for file in FILES if file.package.startswith("envoy.")} == {
        file.name for file in FILES if file.name.startswith("cellmesh/envoy/")
    }


def _planted(
    option: method_pb2.MethodPolicy | None,
    *,
    name: str = "note",
    user: method_pb2.UserField = method_pb2.USER_FIELD_UNSPECIFIED,
    repeated: bool = False,
) -> list[str]:
    """Return what the check says of a contract with one RPC of this policy, whose request has one field."""
    file = descriptor_pb2.FileDescriptorProto(
        name="planted.proto", package="planted", syntax="proto3", dependency=[method_pb2.DESCRIPTOR.name]
    )
    field_type = descriptor_pb2.FieldDescriptorProto
    field = file.message_type.add(name="PlantRequest").field.add(
        name=name,
        number=1,
        type=field_type.TYPE_STRING,
        label=field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL,
    )
    if user:
        of_field: Any = field.options.Extensions
        of_field[method_pb2.user] = user
    file.message_type.add(name="PlantResponse")
    rpc = file.service.add(name="PlantService").method.add(
        name="Plant", input_type=".planted.PlantRequest", output_type=".planted.PlantResponse"
    )
    if option is not None:
        extensions: Any = rpc.options.Extensions
        extensions[method_pb2.method].CopyFrom(option)
    pool = descriptor_pool.DescriptorPool()
    for known in (*method_pb2.DESCRIPTOR.dependencies, method_pb2.DESCRIPTOR):
        copy = descriptor_pb2.FileDescriptorProto()
        known.CopyToProto(copy)
        pool.Add(copy)
    pool.Add(file)
    return missing_policies([pool.FindFileByName("planted.proto")])


def _policy(**changes: Any) -> method_pb2.MethodPolicy:
    """Return a good policy but for some fields; None leaves a field out."""
    whole = {
        "default_deadline": Duration(seconds=2),
        "max_deadline": Duration(seconds=5),
        "retry": method_pb2.RETRY_CLASS_SAFE,
        "retry_budget": method_pb2.RetryBudget(max_attempts=3, percent=20),
        "callers": [method_pb2.ROLE_OPERATOR],
        "acts_for_user": method_pb2.ACTS_FOR_USER_OPTIONAL,
    }
    return method_pb2.MethodPolicy(**{**whole, **changes})


def test_whole_policy_is_accepted() -> None:
    """The plants below differ from a good policy only by what each is about."""
    assert _planted(_policy()) == []


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        (None, "has no (cellmesh.api.options.v1.method)"),
        (_policy(default_deadline=None), "longer than nothing"),
        (_policy(default_deadline=Duration(seconds=6)), "longer than max_deadline"),
        (_policy(retry=None), "retry is not set"),
        (_policy(retry=method_pb2.RETRY_CLASS_NONE), "stands beside RETRY_CLASS_NONE"),
        (_policy(retry_budget=None), "retry_budget needs"),
        (_policy(retry_budget=method_pb2.RetryBudget(max_attempts=6, percent=20)), "retry_budget needs"),
        (_policy(retry_budget=method_pb2.RetryBudget(max_attempts=3, percent=101)), "retry_budget needs"),
        (_policy(retry=method_pb2.RETRY_CLASS_REQUEST_ID), "has no request_id"),
        (_policy(callers=None), "nobody may call"),
        (_policy(callers=[method_pb2.ROLE_UNSPECIFIED]), "never granted"),
        (_policy(callers=[method_pb2.ROLE_OPERATOR] * 2), "twice"),
        (_policy(acts_for_user=None), "acts_for_user is not set"),
    ],
)
def test_planted_fault_is_found(option: method_pb2.MethodPolicy | None, fault: str) -> None:
    """A contract whose RPC has no policy, or a senseless one, fails the check by name."""
    found = _planted(option)
    assert len(found) >= 1
    assert any(line.startswith("/planted.PlantService/Plant: ") and fault in line for line in found)


_NONE = method_pb2.ACTS_FOR_USER_NONE
_ACTING = method_pb2.USER_FIELD_ACTING
_SUBJECT = method_pb2.USER_FIELD_SUBJECT


def test_field_that_says_what_its_user_stands_for_is_accepted() -> None:
    """The plants below differ from these by what each is about."""
    assert _planted(_policy(), name="user_id", user=_ACTING) == []
    assert _planted(_policy(acts_for_user=_NONE), name="user_id", user=_SUBJECT) == []


@pytest.mark.parametrize(
    ("name", "user", "changes", "repeated", "fault"),
    [
        ("user_id", method_pb2.USER_FIELD_UNSPECIFIED, {}, False, "user_id is named like a user"),
        ("owner", method_pb2.USER_FIELD_UNSPECIFIED, {}, False, "owner is named like a user"),
        ("user_id", _ACTING, {"acts_for_user": _NONE}, False, "acts for no user"),
        ("user_ids", _ACTING, {}, True, "no single string"),
        ("user_id", _SUBJECT, {}, False, "the RPC acts for a user"),
    ],
)
def test_planted_field_that_names_a_user_is_found(
    name: str, user: method_pb2.UserField, changes: dict[str, Any], repeated: bool, fault: str
) -> None:
    """A new field that is named like a user does not land before the contract says what its user stands for."""
    assert any(fault in line for line in _planted(_policy(**changes), name=name, user=user, repeated=repeated))


def test_every_rpc_says_whether_it_acts_for_a_user(method: MethodDescriptor) -> None:
    """What a guest, the edge or the hypervisor itself calls acts for no user and cannot be made to."""
    policy = policy_of(path_of(method))
    if policy.callers & {Role.GUEST_AGENT, Role.HYPERVISOR, Role.EDGE}:
        assert policy.acts_for is ActsFor.NONE
