"""Every field that comes from outside is bounded by a rule of the contract."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, MethodDescriptor

from support.bad_input import FREE_TEXT, SIGNED, unruled
from support.contracts import METHODS, path_of
from support.mutants import mutants
from support.samples import sample, violations

FROM_GUESTS = tuple(method for method in METHODS if method.containing_service.name.startswith("Guest"))


def test_every_field_of_a_request_has_the_rules_it_needs(own: MethodDescriptor) -> None:
    """No request carries a text, list or blob without end, a control character, an unknown enum or a negative time."""
    assert unruled(own.input_type) == []


@pytest.mark.parametrize("asked", FROM_GUESTS, ids=path_of)
def test_every_field_of_a_guests_answer_has_the_rules_it_needs(asked: MethodDescriptor) -> None:
    """What a guest answers is bounded as what it asks is."""
    assert unruled(asked.output_type) == []


def test_a_field_without_rules_is_noticed() -> None:
    """The control: a contract with nothing but types in it is caught, field by field."""
    assert unruled(_planted()) == [
        "planted.Request.blob lets through: huge",
        "planted.Request.kind lets through: negative",
        "planted.Request.kind lets through: unknown",
        "planted.Request.name lets through: c1 control",
        "planted.Request.name lets through: carriage return",
        "planted.Request.name lets through: huge",
        "planted.Request.name lets through: newline",
        "planted.Request.name lets through: nul",
        "planted.Request.name lets through: right to left",
        "planted.Request.name lets through: terminal escape",
        "planted.Request.places lets through: too many",
        "planted.Request.labels lets through: huge",
        "planted.Request.labels lets through: too many",
        "planted.Request.wait lets through: negative",
    ]


def test_what_mutations_start_from_is_valid(method: MethodDescriptor) -> None:
    """Else a refusal would prove nothing; and each field is reached by at least one mutation that breaks a rule."""
    assert violations(sample(method.input_type, {})) == []
    assert any(mutant.undecodable for mutant in mutants(method.input_type, {}))


def test_exceptions_name_fields_that_exist() -> None:
    """An exception for a field that was renamed or removed would excuse nothing, or the wrong thing."""
    pool = descriptor_pool.Default()
    for name in (*FREE_TEXT, *SIGNED):
        assert pool.FindFieldByName(name)


def _planted() -> Descriptor:
    file = descriptor_pb2.FileDescriptorProto(
        name="planted.proto", package="planted", syntax="proto3", dependency=["google/protobuf/duration.proto"]
    )
    kind = file.enum_type.add(name="Kind")
    kind.value.add(name="KIND_UNSPECIFIED", number=0)
    kind.value.add(name="KIND_ONE", number=1)
    request = file.message_type.add(name="Request")
    field = descriptor_pb2.FieldDescriptorProto
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    request.field.add(name="blob", number=1, type=field.TYPE_BYTES, label=one)
    request.field.add(name="kind", number=2, type=field.TYPE_ENUM, type_name=".planted.Kind", label=one)
    request.field.add(name="name", number=3, type=field.TYPE_STRING, label=one)
    request.field.add(name="places", number=4, type=field.TYPE_UINT32, label=many)
    entry = request.nested_type.add(name="LabelsEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=one)
    entry.field.add(name="value", number=2, type=field.TYPE_STRING, label=one)
    labels = ".planted.Request.LabelsEntry"
    request.field.add(name="labels", number=6, type=field.TYPE_MESSAGE, type_name=labels, label=many)
    duration = ".google.protobuf.Duration"
    request.field.add(name="wait", number=5, type=field.TYPE_MESSAGE, type_name=duration, label=one)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return pool.FindMessageTypeByName("planted.Request")
