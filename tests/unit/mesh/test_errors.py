"""Errors survive the wire, and nothing a stranger writes into one does harm."""

from __future__ import annotations

import unicodedata
from datetime import timedelta

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from cellmesh.api.common.v1 import error_reason_pb2
from cellmesh.mesh import errors, status
from cellmesh.mesh.errors import Code, FieldViolation, MeshError, RemoteError, sanitize
from cellmesh.service.store.errors import StoreUnavailable


class DiskFull(MeshError):
    """An error of some service."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "DISK_FULL"
    domain = "test.cellmesh"


def test_error_survives_the_wire() -> None:
    """Code, reason, domain, message, metadata, delay and fields arrive as they were sent."""
    sent = DiskFull(
        "No room. Remove something.",
        metadata={"disk": "data"},
        retry_after=timedelta(seconds=7),
        field_violations=[FieldViolation(field="spec.size", description="too large", rule="uint64.lte")],
    )
    got = status.from_status(status_pb2.Status.FromString(status.to_status(sent).SerializeToString()))
    assert isinstance(got, RemoteError)
    assert (got.code, got.reason, got.domain, got.message) == (sent.code, sent.reason, sent.domain, sent.message)
    assert (got.metadata, got.retry_after) == (sent.metadata, sent.retry_after)
    assert [(v.field, v.description) for v in got.field_violations] == [("spec.size", "too large")]


def test_common_reasons_have_a_class_each() -> None:
    """Every reason of the common contract is raised by exactly one class."""
    prefix = "ERROR_REASON_"
    contract = {name.removeprefix(prefix) for name in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name} - {
        "UNSPECIFIED"
    }
    own = [
        kind.__dict__["reason"]
        for kind in (*vars(errors).values(), StoreUnavailable)
        if isinstance(kind, type) and issubclass(kind, MeshError) and "reason" in kind.__dict__
    ]
    assert sorted(own) == sorted(contract)


def test_details_always_fit_in_a_trailer() -> None:
    """However much an error carries, its details stay below what gRPC refuses, and keep their reason."""
    huge = DiskFull(
        "x" * 100_000,
        metadata={f"k{n}": "v" * 10_000 for n in range(100)},
        field_violations=[FieldViolation(field="f" * 1000, description="d" * 10_000)] * 1000,
    )
    encoded = status.to_status(huge)
    assert encoded.ByteSize() <= status.MAX_DETAILS_BYTES
    assert status.from_status(encoded).reason == "DISK_FULL"


@pytest.mark.parametrize(
    ("raised", "code", "reason"),
    [
        (DiskFull("full"), Code.RESOURCE_EXHAUSTED, "DISK_FULL"),
        (ExceptionGroup("g", [DiskFull("full")]), Code.RESOURCE_EXHAUSTED, "DISK_FULL"),
        (ExceptionGroup("g", [DiskFull("full"), ValueError("secret")]), Code.INTERNAL, "INTERNAL"),
        (ValueError("secret"), Code.INTERNAL, "INTERNAL"),
        (RemoteError("secret", code=Code.NOT_FOUND, reason="X", domain="guest.cellmesh"), Code.INTERNAL, "INTERNAL"),
        (errors.InvalidAnswer("secret"), Code.INTERNAL, "INTERNAL"),
        (errors.DownstreamUnavailable("d"), Code.UNAVAILABLE, "DOWNSTREAM_UNAVAILABLE"),
    ],
)
def test_caller_learns_only_what_was_meant_for_it(raised: BaseException, code: Code, reason: str) -> None:
    """Errors of ours pass, also out of a task group; what merely came through from below becomes INTERNAL."""
    answer = status.public(raised, "abc")
    assert (answer.code, answer.reason) == (code, reason)
    assert "secret" not in answer.message


def test_hostile_status_is_tamed() -> None:
    """Wild codes, reasons, keys, delays and control characters from a stranger are dropped, bounded or escaped."""
    wild = status_pb2.Status(code=999, message="\x1b[2J\nroot logged in\u202e" + "x" * 10_000)
    for message in (
        error_details_pb2.ErrorInfo(reason="no\nreason", domain="evil\x00"),
        error_details_pb2.ErrorInfo(reason="FINE", domain="guest.cellmesh", metadata={"a\n": "b", "ok": "\x07" * 999}),
        error_details_pb2.RetryInfo(retry_delay={"seconds": 10**9}),
    ):
        wild.details.add().Pack(message)
    wild.details.append(any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff"))
    got = status.from_status(wild)
    assert (got.code, got.reason, got.retry_after) == (Code.UNKNOWN, "FINE", timedelta(minutes=1))
    assert len(got.message) <= status.MAX_MESSAGE
    assert list(got.metadata) == ["ok"]
    for text in (got.message, *got.metadata.values()):
        assert text.isprintable()


@given(text=st.text(), limit=st.integers(min_value=1, max_value=200))
def test_sanitized_text_is_short_and_harmless(text: str, limit: int) -> None:
    """Whatever goes in, what comes out fits, and moves no cursor, direction or line."""
    shown = sanitize(text, limit)
    assert len(shown) <= limit
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in shown)
    if len(text) <= limit and text.isprintable():
        assert shown == text


def test_error_without_details_is_still_typed() -> None:
    """Errors of gRPC itself become ours by their code."""
    unreachable = status.from_status(status_pb2.Status(code=14, message="connection refused"))
    late = status.from_status(status_pb2.Status(code=4, message="late"))
    other = status.from_status(status_pb2.Status(code=8, message="too large"))
    assert isinstance(unreachable, errors.DownstreamUnavailable)
    assert isinstance(late, errors.DeadlineExceeded)
    assert isinstance(other, RemoteError)
    assert other.code is Code.RESOURCE_EXHAUSTED
