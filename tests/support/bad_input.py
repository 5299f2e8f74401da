"""What the contract promises of bad input, as checks that name what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration

from cellmesh.mesh.identity import Role
from cellmesh.mesh.limits import REPORT_BYTES, SERVICE_MESSAGE_BYTES
from cellmesh.mesh.policy import policy_of
from support.contracts import path_of
from support.mutants import Mutant, concerns, mutants
from support.raw_calls import Outcome
from support.samples import is_map, paths, written

CONTROLS = frozenset({"nul", "newline", "carriage return", "terminal escape", "c1 control", "right to left"})
FREE_TEXT = {
    "cellmesh.api.common.v1.ContainerSpec.argv": "passed to execve, which takes any bytes but NUL",
    "cellmesh.api.common.v1.ContainerSpec.working_dir": "a path inside the container, where any byte but NUL may stand",
    "cellmesh.api.common.v1.ContainerStatus.message": "a guest's words; escaped before they are stored",
    "cellmesh.api.common.v1.EnvironmentVariable.value": "passed to execve",
    "cellmesh.api.common.v1.ExecOpen.argv": "passed to execve",
    "cellmesh.api.common.v1.ExecOpen.working_dir": "a path inside the container",
    "cellmesh.api.common.v1.ExecProbe.argv": "passed to execve",
    "cellmesh.api.common.v1.PageRequest.page_token": "opaque; one that is not ours is INVALID_PAGE_TOKEN",
}
"""Strings that may hold control characters, and why that is right."""
SIGNED = frozenset({"cellmesh.api.guest.v1.SyncClockResponse.adjustment"})
"""Durations that may be negative."""
_FATAL = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})


def unruled(descriptor: Descriptor) -> list[str]:
    """Name every field of a message for which the contract lacks a rule it needs, and what gets through."""
    through: dict[str, set[str]] = {}
    for mutant in mutants(descriptor, {}):
        if not mutant.broken and not mutant.undecodable:
            through.setdefault(mutant.field, set()).add(mutant.kind)
    return [
        f"{path[-1].full_name} lets through: {kind}"
        for path in paths(descriptor)
        for kind in sorted(_must_refuse(path[-1]) & through.get(written(path), set()))
    ]


def most_bytes(method: MethodDescriptor) -> int:
    """Return how long a request of a method may be, whatever is in it."""
    return REPORT_BYTES if Role.GUEST_AGENT in policy_of(path_of(method)).callers else SERVICE_MESSAGE_BYTES


def fault(mutant: Mutant, outcome: Outcome, *, most: int) -> str | None:
    """Say what is wrong with the answer to a mutant, or None if it is as the contract promises."""
    if len(mutant.data) > most and outcome.code == "RESOURCE_EXHAUSTED":
        # gRPC's own answer, given before the message is read.
        return None
    if mutant.undecodable or mutant.broken:
        return _of_refusal(mutant, outcome)
    if outcome.code == "OK" or (outcome.code == "DEADLINE_EXCEEDED" and outcome.answers):
        return None
    if outcome.code in _FATAL:
        return f"{mutant}: {outcome.code}: {outcome.message}"
    if not outcome.in_contract:
        return (
            f"{mutant}: {outcome.code} with the reason {outcome.reason!r}, which is in no contract: {outcome.message}"
        )
    return None


def _of_refusal(mutant: Mutant, outcome: Outcome) -> str | None:
    if (outcome.code, outcome.reason, outcome.domain) != ("INVALID_ARGUMENT", "INVALID_REQUEST", "cellmesh"):
        return (
            f"{mutant}: {outcome.code}/{outcome.reason} in place of INVALID_ARGUMENT/INVALID_REQUEST: {outcome.message}"
        )
    if mutant.broken and not any(concerns(found, mutant.field) for found in outcome.fields):
        return f"{mutant}: BadRequest names {outcome.fields}"
    if any(ord(character) < ord(" ") for character in outcome.message):
        return f"{mutant}: the message has control characters: {outcome.message!r}"
    return None


def _must_refuse(field: FieldDescriptor) -> frozenset[str]:
    kinds = set(_kinds(field))
    if field.is_repeated:
        kinds.add("too many")
    return frozenset(kinds)


def _kinds(field: FieldDescriptor) -> Iterator[str]:
    """Give the mutations no field of this type may let through."""
    if field.type == FieldDescriptor.TYPE_STRING:
        yield "huge"
        if field.full_name not in FREE_TEXT:
            yield from CONTROLS
    elif field.type == FieldDescriptor.TYPE_BYTES or is_map(field):
        yield "huge"
    elif field.enum_type is not None:
        yield from ("unknown", "negative")
    elif field.message_type == Duration.DESCRIPTOR and field.full_name not in SIGNED:
        yield "negative"
