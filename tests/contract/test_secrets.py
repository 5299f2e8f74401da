"""Fields that may hold a secret say so in the contract."""

from __future__ import annotations

import re
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from support.contracts import FILES

_SECRET = re.compile(r"(^|_)(password|passphrase|secret|credential|token|key|cookie|authorization)s?($|_)")
# Opaque to who holds them, but no secrets: they say where a list or a watch goes on.
_PLACES = frozenset({"page_token", "next_page_token", "resume_token"})
# Names of things, not the things.
_HARMLESS = frozenset({"envoy.service.auth.v3.HeaderValue.key"})
# Whose names do not say that they hold what a user put there.
_USER_VALUES = frozenset(
    {
        "cellmesh.api.common.v1.EnvironmentVariable.value",
        "envoy.service.auth.v3.AttributeContext.HttpRequest.headers",
        "envoy.service.auth.v3.AttributeContext.HttpRequest.path",
        "envoy.service.auth.v3.HeaderValue.value",
    }
)


def _fields(messages: list[Descriptor]) -> Iterator[FieldDescriptor]:
    for message in messages:
        if message.GetOptions().map_entry:
            continue  # its field is what is marked
        yield from message.fields
        yield from _fields(list(message.nested_types))


def test_secret_fields_are_marked() -> None:
    """A field whose name speaks of a secret, or that holds what a user wrote, has `debug_redact`."""
    every = [field for file in FILES for field in _fields(list(file.message_types_by_name.values()))]
    assert every
    assert {field.full_name for field in every} >= _USER_VALUES | _HARMLESS
    unmarked = [
        field.full_name
        for field in every
        if (_SECRET.search(field.name) or field.full_name in _USER_VALUES)
        and field.name not in _PLACES
        and field.full_name not in _HARMLESS
        and not field.GetOptions().debug_redact
    ]
    assert unmarked == []
