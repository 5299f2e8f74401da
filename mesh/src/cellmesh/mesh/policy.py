"""Method policy: what every RPC declares about itself, read from the descriptors."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor

from cellmesh.api.options.v1 import method_pb2
from cellmesh.mesh.identity import Role

MAX_ATTEMPTS = 5
MAX_PERCENT = 100
_ROLES = frozenset(int(role) for role in Role)


class Retry(enum.IntEnum):
    """When a caller may send an RPC again on its own."""

    NONE = method_pb2.RETRY_CLASS_NONE
    SAFE = method_pb2.RETRY_CLASS_SAFE
    REQUEST_ID = method_pb2.RETRY_CLASS_REQUEST_ID


class ActsFor(enum.IntEnum):
    """Whether an RPC acts for a user."""

    NONE = method_pb2.ACTS_FOR_USER_NONE
    OPTIONAL = method_pb2.ACTS_FOR_USER_OPTIONAL
    REQUIRED = method_pb2.ACTS_FOR_USER_REQUIRED


_RETRIES = frozenset(int(retry) for retry in Retry)
_ACTS_FOR = frozenset(int(acts_for) for acts_for in ActsFor)
# Words of field names that stand for a user.
_USER_WORDS = frozenset({"user", "owner", "tenant", "subject", "principal", "account"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPolicy:
    """The policy of one RPC."""

    default_deadline: float
    """Seconds for a call that brings no deadline."""
    max_deadline: float
    """Seconds a longer deadline is cut to."""
    retry: Retry
    """When a caller may send it again."""
    max_attempts: int = 1
    """Tries in all, the first included."""
    retry_percent: int = 0
    """Retries allowed per hundred calls to the downstream."""
    callers: frozenset[Role]
    """Who may call."""
    acts_for: ActsFor = ActsFor.NONE
    """Whether it acts for a user."""
    user_fields: tuple[str, ...] = ()
    """Fields of the request that name the user the call acts for."""

    def seconds(self, wanted: float | None) -> float:
        """Return the seconds a call gets that wants this many, or brings no deadline."""
        return self.default_deadline if wanted is None else min(wanted, self.max_deadline)


class PolicyMissing(LookupError):
    """An RPC has no policy, or one that makes no sense; the message says which and why."""


# Services of gRPC itself carry no options of ours. Only operators reach them; as a client we call a peer's health.
_STANDARD = {
    service: MethodPolicy(
        default_deadline=5.0,
        max_deadline=86400.0,
        retry=Retry.NONE,
        callers=frozenset({Role.OPERATOR}),
    )
    for service in (
        "grpc.channelz.v1.Channelz",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    )
}
# Streams that stay open for as long as somebody looks.
_STANDARD_LONG = MethodPolicy(
    default_deadline=3600.0, max_deadline=86400.0, retry=Retry.NONE, callers=frozenset({Role.OPERATOR})
)
_LONG_METHODS = {
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}


@functools.cache
def policy_of(path: str) -> MethodPolicy:
    """Return the policy of `/pkg.Service/Method`, whose generated module is imported; raise PolicyMissing."""
    if path in _LONG_METHODS:
        return _STANDARD_LONG
    service, _, name = path.removeprefix("/").rpartition("/")
    if standard := _STANDARD.get(service):
        return standard
    try:
        descriptor = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    except KeyError:
        raise PolicyMissing(f"{path} is in no contract that was imported") from None
    if faults := list(_faults(descriptor)):
        raise PolicyMissing(f"{path}: {'; '.join(faults)}")
    return _read(descriptor)


def missing_policies(files: Iterable[FileDescriptor]) -> list[str]:
    """Return a line for each fault in the policies of the RPCs in `files`."""
    return [
        f"/{service.full_name}/{method.name}: {fault}"
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
        for fault in _faults(method)
    ]


def _read(descriptor: MethodDescriptor) -> MethodPolicy:
    option = _option(descriptor)
    return MethodPolicy(
        default_deadline=option.default_deadline.ToTimedelta().total_seconds(),
        max_deadline=option.max_deadline.ToTimedelta().total_seconds(),
        retry=Retry(option.retry),
        max_attempts=max(option.retry_budget.max_attempts, 1),
        retry_percent=option.retry_budget.percent,
        callers=frozenset(Role(role) for role in option.callers),
        acts_for=ActsFor(option.acts_for_user),
        user_fields=tuple(
            field.name for field in descriptor.input_type.fields if user_field(field) == method_pb2.USER_FIELD_ACTING
        ),
    )


def _option(descriptor: MethodDescriptor) -> method_pb2.MethodPolicy:
    """Return what the contract says; an empty message where it says nothing."""
    extensions: Any = descriptor.GetOptions().Extensions
    option: method_pb2.MethodPolicy = extensions[method_pb2.method]
    return option


def _faults(descriptor: MethodDescriptor) -> Iterator[str]:
    """Name what is wrong with the policy of one RPC."""
    option = _option(descriptor)
    if not option.ListFields():
        yield "has no (cellmesh.api.options.v1.method)"
        return
    default = option.default_deadline.ToTimedelta()
    longest = option.max_deadline.ToTimedelta()
    if not default.total_seconds() > 0:
        yield "default_deadline must be longer than nothing"
    if default > longest:
        yield "default_deadline is longer than max_deadline"
    if not option.callers:
        yield "nobody may call"
    if not _ROLES.issuperset(option.callers):
        yield "callers has a role that is never granted"
    if len(set(option.callers)) != len(option.callers):
        yield "callers names a role twice"
    yield from _retry_faults(descriptor, option)
    yield from _user_faults(descriptor, option)


def _retry_faults(descriptor: MethodDescriptor, option: method_pb2.MethodPolicy) -> Iterator[str]:
    budget = option.retry_budget
    if option.retry not in _RETRIES:
        yield "retry is not set"
    elif option.retry == method_pb2.RETRY_CLASS_NONE:
        if option.HasField("retry_budget"):
            yield "retry_budget stands beside RETRY_CLASS_NONE"
    elif not (2 <= budget.max_attempts <= MAX_ATTEMPTS and 1 <= budget.percent <= MAX_PERCENT):
        yield f"retry_budget needs max_attempts of 2 to {MAX_ATTEMPTS} and percent of 1 to {MAX_PERCENT}"
    if option.retry == method_pb2.RETRY_CLASS_REQUEST_ID and "request_id" not in descriptor.input_type.fields_by_name:
        yield f"RETRY_CLASS_REQUEST_ID, but {descriptor.input_type.name} has no request_id"


def user_field(field: FieldDescriptor) -> int:
    """Return what the contract says of the user that a field names, a number of UserField."""
    extensions: Any = field.GetOptions().Extensions
    value: int = extensions[method_pb2.user]
    return value


def _user_faults(descriptor: MethodDescriptor, option: method_pb2.MethodPolicy) -> Iterator[str]:
    if option.acts_for_user not in _ACTS_FOR:
        yield "acts_for_user is not set"
    for path, field in _fields(descriptor.input_type, "", frozenset()):
        declared = user_field(field)
        if declared == method_pb2.USER_FIELD_UNSPECIFIED:
            if _USER_WORDS.intersection(field.name.split("_")):
                yield f"{path} is named like a user and has no (cellmesh.api.options.v1.user)"
        elif declared == method_pb2.USER_FIELD_ACTING:
            if option.acts_for_user == method_pb2.ACTS_FOR_USER_NONE:
                yield f"{path} is USER_FIELD_ACTING, but the RPC acts for no user"
            # The server reads the field before the servicer does: one text, in the one message of a call.
            if descriptor.client_streaming or "." in path or field.is_repeated or field.type != field.TYPE_STRING:
                yield f"{path} is USER_FIELD_ACTING, but is no single string of a request that is not streamed"
        elif option.acts_for_user != method_pb2.ACTS_FOR_USER_NONE:
            yield f"{path} is USER_FIELD_SUBJECT, but the RPC acts for a user"


def _fields(message: Descriptor, above: str, seen: frozenset[str]) -> Iterator[tuple[str, FieldDescriptor]]:
    """Give each field that a message can hold, with its path; a message inside itself is looked at once."""
    for field in message.fields:
        path = f"{above}{field.name}"
        yield path, field
        inner = field.message_type
        if inner is not None and inner.full_name not in seen:
            yield from _fields(inner, f"{path}.", seen | {inner.full_name})
