"""Contract rules, checked: the one place that knows protovalidate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from protovalidate import Validator

from cellmesh.mesh import well_known
from cellmesh.mesh.errors import FieldViolation, InvalidAnswer, InvalidRequest

if TYPE_CHECKING:
    from protovalidate import Violation

# Rules are compiled once per message type and kept, so all callers share one.
_VALIDATOR = Validator()


def warm(descriptor: Descriptor) -> None:
    """Compile the rules of a message type now, so that a rule that cannot be compiled stops the start."""
    _VALIDATOR.collect_violations(GetMessageClass(descriptor)())


def check_request(message: Message) -> None:
    """Raise InvalidRequest, with every field that breaks a rule."""
    if violations := _violations(message):
        first = violations[0]
        raise InvalidRequest(
            f"{message.DESCRIPTOR.name}.{first.field}: {first.description}. Correct the request.",
            field_violations=violations,
        )


def check_answer(message: Message, downstream: str) -> None:
    """Raise InvalidAnswer if what a downstream sent breaks a rule."""
    if violations := _violations(message):
        first = violations[0]
        raise InvalidAnswer(
            f"{downstream} broke the contract: {message.DESCRIPTOR.name}.{first.field}: {first.description}.",
            field_violations=violations,
        )


def _violations(message: Message) -> list[FieldViolation]:
    broken = [
        FieldViolation(field=_path(found), description=found.proto.message, rule=found.proto.rule_id)
        for found in _VALIDATOR.collect_violations(message)
    ]
    return [*broken, *well_known.faults(message)]


def _path(violation: Violation) -> str:
    """Write a field path as `spec.disks[2].name`."""
    written = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        written += f".{element.field_name}" if written else element.field_name
        if element.subscript is not None:
            written += f"[{element.subscript.value!r}]"
    return written
