"""Valid messages, made from the rules of the contract alone: what a mutation starts from."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import find, settings
from hypothesis import strategies as st
from protovalidate import Validator

from buf.validate import validate_pb2

RULES = Validator()
Known = Mapping[str, Callable[[], object]]
"""What a field of this name is to hold, where a rule alone does not lead to something that is there."""

Path = tuple[FieldDescriptor, ...]
"""From a request to one of its fields; through a list it is the first item's."""

_EXAMPLES = settings(database=None, derandomize=True, deadline=None)
_WHOLE = frozenset({Duration.DESCRIPTOR.full_name, Timestamp.DESCRIPTOR.full_name})


def paths(descriptor: Descriptor, above: Path = ()) -> Iterator[Path]:
    """Give every field that can be reached from a message, every branch of a oneof included; a map is one field."""
    for field in descriptor.fields:
        here = (*above, field)
        yield here
        if field.message_type is not None and field.message_type.full_name not in _WHOLE and not is_map(field):
            yield from paths(field.message_type, here)


def written(path: Path) -> str:
    """Write a path as BadRequest does, without the places in lists."""
    return ".".join(field.name for field in path)


def sample(descriptor: Descriptor, known: Known, *, along: Path = ()) -> Message:
    """Return a message that obeys every rule, each field set; of a oneof the branch on `along`, else the first."""
    message: Message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        chosen = along[0] if along else None
        if _left_out(field, chosen):
            continue
        value = _value(message, field, known, along=along[1:] if field == chosen else ())
        put(message, field, [value] if field.is_repeated else value)
    return message


def is_map(field: FieldDescriptor) -> bool:
    """Tell whether a field is a map, which the descriptors have as a list of entries."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def put(message: Message, field: FieldDescriptor, value: Any) -> None:
    """Set a field of any kind; a list's items or a map's entries come as a list."""
    if is_map(field):
        message.ClearField(field.name)
        message.MergeFrom(type(message)(**{field.name: {entry.key: entry.value for entry in value}}))
    elif field.is_repeated:
        message.ClearField(field.name)
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def parent(message: Message, path: Path) -> Message:
    """Return the message that holds the last field of a path."""
    for field in path[:-1]:
        value = getattr(message, field.name)
        message = value[0] if field.is_repeated else value
    return message


def violations(message: Message) -> list[str]:
    """Return the path of each broken rule, without the places in lists."""
    broken = [
        ".".join(element.field_name for element in found.proto.field.elements) if found.proto.field else ""
        for found in RULES.collect_violations(message)
    ]
    return broken + list(_no_times(message, ""))


def _no_times(message: Message, above: str) -> Iterator[str]:
    """Give the path of each time or duration outside its own definition."""
    for field, value in message.ListFields():
        path = f"{above}.{field.name}".removeprefix(".")
        for item in value if field.is_repeated else (value,):
            if isinstance(item, Timestamp | Duration):
                try:
                    item.ToJsonString()
                except ValueError:
                    yield path
            elif isinstance(item, Message):
                yield from _no_times(item, path)


def rules_of(field: FieldDescriptor) -> validate_pb2.FieldRules:
    """Return the rules the contract gives a field."""
    options: descriptor_pb2.FieldOptions = field.GetOptions()
    rules: Any = validate_pb2.field
    found: validate_pb2.FieldRules = options.Extensions[rules]
    return found


def _left_out(field: FieldDescriptor, chosen: FieldDescriptor | None) -> bool:
    oneof = field.containing_oneof
    if oneof is None:
        return False
    return field != (chosen if chosen in oneof.fields else oneof.fields[0])


def _value(message: Message, field: FieldDescriptor, known: Known, *, along: Path) -> object:
    """Return the first candidate for a field, or for an item of it, that breaks no rule of the field."""
    if field.name in known:
        return known[field.name]()
    rules = rules_of(field)
    item = rules.repeated.items if field.is_repeated else rules
    for candidate in _candidates(field, item, known, along):
        trial = type(message)()
        put(trial, field, [candidate] if field.is_repeated else candidate)
        if not any(path.split(".")[0] == field.name for path in violations(trial)):
            return candidate
    raise AssertionError(f"no candidate obeys the rules of {field.full_name}; teach samples.py one that does")


def _candidates(field: FieldDescriptor, rules: validate_pb2.FieldRules, known: Known, along: Path) -> Iterator[object]:
    if field.message_type is not None:
        yield from _messages(field.message_type, rules, known, along)
    elif field.type == FieldDescriptor.TYPE_STRING:
        yield from (_text(rules.string.pattern), "00000000-0000-4000-8000-000000000000", "a")
    elif field.type == FieldDescriptor.TYPE_BYTES:
        yield from (b"a", b"")
    elif field.enum_type is not None:
        yield from (value.number for value in field.enum_type.values if value.number)
    elif field.type == FieldDescriptor.TYPE_BOOL:
        yield True
    else:
        yield from (1, 0, 1 << 16)


def _messages(descriptor: Descriptor, rules: validate_pb2.FieldRules, known: Known, along: Path) -> Iterator[Message]:
    if descriptor == Duration.DESCRIPTOR:
        yield from (Duration(seconds=1), rules.duration.gte, rules.duration.lte)
    elif descriptor == Timestamp.DESCRIPTOR:
        yield Timestamp(seconds=1_800_000_000)
    else:
        yield sample(descriptor, known, along=along)


@functools.cache
def _text(pattern: str) -> str:
    """Return a text of a pattern; the shortest that has something in it."""
    strategy = st.from_regex(pattern.removesuffix("$") + r"\Z" if pattern else "a")
    always_the_same = random.Random(0)  # noqa: S311  # nothing here is a secret
    shortest: str = find(strategy, lambda text: len(text) > 1, settings=_EXAMPLES, random=always_the_same)
    return shortest
