"""google.rpc.Status by hand, against the real thing."""

from __future__ import annotations

import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from cellmesh.api.common.v1 import error_reason_pb2 as common_reasons
from cellmesh.api.guest.v1 import error_reason_pb2 as guest_reasons
from cellmesh.guest import errors
from cellmesh.guest.errors import GuestError
from cellmesh.guest.status import encode_status, retry_delay

_CLASSES = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, GuestError)]


def test_a_status_is_what_the_host_reads() -> None:
    """The bytes are those of a Status with its ErrorInfo, text beyond ASCII and beyond one length byte included."""
    message = "grün " * 60
    status = status_pb2.Status.FromString(encode_status(9, message, "WRONG_EPOCH", "guest.cellmesh"))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message, info.reason, info.domain) == (9, message, "WRONG_EPOCH", "guest.cellmesh")


def test_the_asked_wait_is_read() -> None:
    """A RetryInfo among other details is found, and its delay bounded."""
    status = status_pb2.Status(code=8, message="slow down")
    for detail in (
        error_details_pb2.ErrorInfo(reason="TOO_MANY_REPORTS"),
        error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2, nanos=500_000_000)),
    ):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    assert retry_delay(status.SerializeToString()) == 2.5
    packed.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=10**9)))
    assert retry_delay(status_pb2.Status(details=[packed]).SerializeToString()) == 300.0


@pytest.mark.parametrize("status", [None, "text", b"", b"\xff", b"\x1a\xff", b"\x0f\x01", bytes(range(40))])
def test_what_is_no_status_asks_for_nothing(status: str | bytes | None) -> None:
    """Broken details never stop the reports."""
    assert retry_delay(status) == 0.0


@pytest.mark.parametrize("error", [item for item in _CLASSES if item is not GuestError])
def test_every_refusal_has_a_reason_of_the_contract(error: type[GuestError]) -> None:
    """No error carries a reason the contract does not know."""
    enum = guest_reasons.ErrorReason if error.domain == "guest.cellmesh" else common_reasons.ErrorReason
    assert f"ERROR_REASON_{error.reason}" in enum.keys()  # noqa: SIM118  # an enum wrapper is not a mapping
