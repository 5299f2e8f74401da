"""Bad input, made from the descriptors: every field of a request wrong in every way its type can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from support.samples import Known, Path, is_map, parent, paths, put, rules_of, sample, violations, written

HUGE = 100_000
MANY = 300
_MARK = "wrong-bytes-here"
_LEFT_OUT = "left out"
LONGEST = "as long as it may be"

BAD_TEXT = {
    "empty": "",
    "huge": "a" * HUGE,
    "nul": "a\0b",
    "newline": "a\nb",
    "carriage return": "a\rb",
    "terminal escape": "\x1b[2Ja",
    "c1 control": "a\x9bb",
    "right to left": "a\u202eb",
    "zero width": "a\u200bb",
    "line separator": "a\u2028b",
    "parents": "../../../../etc/passwd",
    "parent": "..",
    "absolute": "/etc/cellmesh-was-here",
    "parent inside": "/a/../../b",
    "escaped parents": "%2e%2e%2fetc%2fpasswd",
    "backslashes": "..\\..\\etc",
    "file url": "file:///etc/passwd",
    "shell": "$(touch /tmp/cellmesh-was-here)",
    "sql": "'; drop table vms; --",
    "format": "%s%n{0.__class__}",
    "emoji": "\U0001f980",
    "homoglyph": "s\u0430ndbox-live",
    "combining": "a\u0301" * 40,
    "spaces": "  a  ",
}
BAD_DURATIONS = {
    "negative": Duration(seconds=-1),
    "nanos of another sign": Duration(seconds=1, nanos=-1),
    "nanos over a second": Duration(seconds=1, nanos=2_000_000_000),
    "ten thousand years": Duration(seconds=315_576_000_000),
    "beyond every clock": Duration(seconds=2**62),
}
BAD_TIMESTAMPS = {
    "before the common era": Timestamp(seconds=-(2**62)),
    "beyond every calendar": Timestamp(seconds=2**62),
    "negative nanos": Timestamp(nanos=-1),
}
BAD_INTEGERS = {
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 2**31, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2**32, 2**63, 2**64 - 1),
    FieldDescriptor.CPPTYPE_INT32: (0, -1, -(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (0, -1, -(2**63), 2**63 - 1),
}
BAD_BYTES = {
    "nothing": b"",
    "all ones": b"\xff" * 64,
    "a message cut short": b"\x0a\x7f",
    "groups 200 deep": b"\x0b" * 200,
    "a length of 2 GiB": b"\x0a\xff\xff\xff\xff\x07",
    "a length below zero": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A request with one thing wrong, or at least odd."""

    field: str
    """Path of the field, as BadRequest writes it; empty for the whole message."""
    kind: str
    """What is odd about it."""
    data: bytes
    """What goes over the wire."""
    broken: tuple[str, ...] = ()
    """Paths whose rules it breaks; none if it obeys them all."""
    undecodable: bool = False
    """True if it is no message at all."""

    def __str__(self) -> str:
        return f"{self.field or 'message'}: {self.kind}"


def mutants(descriptor: Descriptor, known: Known) -> Iterator[Mutant]:
    """Give every mutant of a request; `known` holds the values that lead to something that is there."""
    for kind, data in BAD_BYTES.items():
        yield _raw(descriptor, kind, data)
    for path in paths(descriptor):
        for kind, message in _of_field(descriptor, path, known):
            broken = tuple(violations(message))
            yield Mutant(field=_named(path, kind), kind=kind, data=message.SerializeToString(), broken=broken)
        if path[-1].type == FieldDescriptor.TYPE_STRING:
            yield _not_utf8(descriptor, path, known)


def _named(path: Path, kind: str) -> str:
    """Write the path BadRequest names; for a branch that is left out it is its oneof's."""
    oneof = path[-1].containing_oneof
    if kind != _LEFT_OUT or oneof is None:
        return written(path)
    return ".".join((*(field.name for field in path[:-1]), oneof.name))


def concerns(found: str, field: str) -> bool:
    """Tell whether a violation's path is a field's, one above it or one below it; any is of the whole message."""
    return not field or found == field or found.startswith(f"{field}.") or field.startswith(f"{found}.")


def _raw(descriptor: Descriptor, kind: str, data: bytes) -> Mutant:
    if data:
        return Mutant(field="", kind=kind, data=data, undecodable=True)
    return Mutant(field="", kind=kind, data=data, broken=tuple(violations(GetMessageClass(descriptor)())))


def _not_utf8(descriptor: Descriptor, path: Path, known: Known) -> Mutant:
    message = sample(descriptor, known, along=path)
    put(parent(message, path), path[-1], [_MARK] if path[-1].is_repeated else _MARK)
    data = message.SerializeToString().replace(_MARK.encode(), b"\xff\xfe\xc0\x80" * 4)
    return Mutant(field=written(path), kind="not UTF-8", data=data, undecodable=True)


def _of_field(descriptor: Descriptor, path: Path, known: Known) -> Iterator[tuple[str, Message]]:
    field = path[-1]
    for kind, value in _odd_values(field):
        message = sample(descriptor, known, along=path)
        put(parent(message, path), field, [value] if field.is_repeated else value)
        yield kind, message
    if field.type == FieldDescriptor.TYPE_STRING:
        yield from _other_spellings(descriptor, path, known)
    cleared = sample(descriptor, known, along=path)
    parent(cleared, path).ClearField(field.name)
    yield _LEFT_OUT, cleared
    if field.is_repeated:
        crowded = sample(descriptor, known, along=path)
        holder = parent(crowded, path)
        put(holder, field, _many(field) if is_map(field) else list(getattr(holder, field.name)) * MANY)
        yield "too many", crowded


def _other_spellings(descriptor: Descriptor, path: Path, known: Known) -> Iterator[tuple[str, Message]]:
    """Give what looks like the valid value and is not it, and as much as the field may hold at all."""
    field = path[-1]
    holder = parent(sample(descriptor, known, along=path), path)
    value = getattr(holder, field.name)[0] if field.is_repeated else getattr(holder, field.name)
    rules = rules_of(field)
    item = rules.repeated.items if field.is_repeated else rules
    longest = "a" * (item.string.max_len or 1)
    for kind, other, times in (
        ("upper case", value.upper(), 1),
        ("a newline at its end", f"{value}\n", 1),
        ("a space at its end", f"{value} ", 1),
        (LONGEST, longest, rules.repeated.max_items or 1),
    ):
        message = sample(descriptor, known, along=path)
        put(parent(message, path), field, [other] * times if field.is_repeated else other)
        yield kind, message


def _many(field: FieldDescriptor) -> list[Message]:
    """Return as many entries of a map, no two of a key."""
    return [GetMessageClass(field.message_type)(key=str(place)) for place in range(MANY)]


def _odd_values(field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    if is_map(field):
        yield "huge", GetMessageClass(field.message_type)(key="a" * HUGE)
    if field.type == FieldDescriptor.TYPE_STRING:
        yield from BAD_TEXT.items()
    elif field.type == FieldDescriptor.TYPE_BYTES:
        yield from {"empty": b"", "huge": b"\xff" * HUGE, "not a token": b"\x00\xff../"}.items()
    elif field.enum_type is not None:
        yield from {"unspecified": 0, "unknown": 9999, "negative": -1}.items()
    elif field.type == FieldDescriptor.TYPE_BOOL:
        yield "false", False
    elif field.message_type == Duration.DESCRIPTOR:
        yield from BAD_DURATIONS.items()
    elif field.message_type == Timestamp.DESCRIPTOR:
        yield from BAD_TIMESTAMPS.items()
    elif field.message_type is not None:
        yield "empty", GetMessageClass(field.message_type)()
    else:
        yield from ((f"{value}", value) for value in BAD_INTEGERS[field.cpp_type])
