"""Times and durations outside their own definition, which protovalidate lets pass.

One of them stored or passed on would break whoever writes it as JSON or makes a datetime of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cellmesh.mesh.errors import FieldViolation


def faults(message: Message, above: str = "") -> Iterator[FieldViolation]:
    """Name every google.protobuf.Timestamp and Duration in a message that is none."""
    if not _carries_time(message.DESCRIPTOR):
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        path = f"{above}.{field.name}" if above else field.name
        for place, item in enumerate(value) if field.is_repeated else ((None, value),):
            here = path if place is None else f"{path}[{place}]"
            if isinstance(item, Timestamp | Duration):
                yield from _fault(item, here)
            elif isinstance(item, Message):
                yield from faults(item, here)


def _fault(value: Timestamp | Duration, path: str) -> Iterator[FieldViolation]:
    try:
        value.ToJsonString()
    except ValueError as error:
        name = value.DESCRIPTOR.name.lower()
        yield FieldViolation(field=path, description=f"is no {name}: {error}", rule=f"{name}.valid")


@functools.cache
def _carries_time(descriptor: Descriptor) -> bool:
    """Tell whether a message of this type can hold a time, so that the others are never walked."""
    times = {Timestamp.DESCRIPTOR, Duration.DESCRIPTOR}
    seen: set[Descriptor] = set()
    todo = [descriptor]
    while todo:
        here = todo.pop()
        if here in times:
            return True
        if here not in seen:
            seen.add(here)
            todo.extend(field.message_type for field in here.fields if field.message_type is not None)
    return False
