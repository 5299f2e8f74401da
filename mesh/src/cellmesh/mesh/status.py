"""The wire form of errors: google.rpc.Status both ways. Nothing else in cellmesh touches grpc.StatusCode."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no stubs for these two

from cellmesh.mesh.errors import (
    COMMON_DOMAIN,
    Code,
    DeadlineExceeded,
    DownstreamUnavailable,
    FieldViolation,
    InternalError,
    InvalidAnswer,
    MeshError,
    RemoteError,
    sanitize,
)

DETAILS_KEY = "grpc-status-details-bin"

# Trailers above 8 KiB are refused by grpc clients; what we send stays well below, what we read is bounded too.
MAX_DETAILS_BYTES = 6 * 1024
MAX_MESSAGE = 1024
_MAX_VIOLATIONS = 16
_MAX_METADATA = 16
_MAX_RETRY_AFTER = timedelta(minutes=1)
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
_DOMAIN = re.compile(r"[a-z][a-z0-9.-]{0,63}")
_METADATA_KEY = re.compile(r"[a-z][A-Za-z0-9_-]{0,63}")
_CODES = {int(code): code for code in Code}
M = TypeVar("M", bound=Message)
# What grpc.aio 1.85 says, in place of the status it was sent, of a stream that ended while it was writing to it.
_CUT_WHILE_WRITING = "Internal error from Core"
_GRPC_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def grpc_code(error: MeshError) -> grpc.StatusCode:
    """Return the code of an error as gRPC has it."""
    return _GRPC_CODES[int(error.code)]


def public(error: BaseException, trace_id: str) -> MeshError:
    """Return what a caller may know of an error: ours as it is, any other INTERNAL with the trace id, no detail."""
    if isinstance(error, BaseExceptionGroup):
        errors = list(_leaves(error))
        if all(_is_ours(leaf) for leaf in errors):
            return public(errors[0], trace_id)
    if isinstance(error, MeshError) and _is_ours(error):
        return error
    return InternalError(
        f"The service failed in a way it did not expect. Look in its log for trace {trace_id}.",
        metadata={"trace_id": trace_id},
    )


def to_status(error: MeshError) -> status_pb2.Status:
    """Return the google.rpc.Status of an error, cut to what fits in a trailer."""
    details: list[any_pb2.Any] = [
        _pack(
            error_details_pb2.ErrorInfo(
                reason=error.reason,
                domain=error.domain,
                metadata={key: sanitize(value, 256) for key, value in list(error.metadata.items())[:_MAX_METADATA]},
            )
        )
    ]
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_after)
        details.append(_pack(retry))
    if error.field_violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.field_violations[:_MAX_VIOLATIONS]:
            bad.field_violations.add(
                field=sanitize(violation.field, 128),
                description=sanitize(violation.description, 200),
                reason=re.sub(r"[^A-Z0-9_]", "_", violation.rule.upper())[:63],
            )
        details.append(_pack(bad))
    status = status_pb2.Status(code=int(error.code), message=sanitize(error.message, MAX_MESSAGE), details=details)
    while status.ByteSize() > MAX_DETAILS_BYTES and len(status.details) > 1:
        status.details.pop()
    return status


def from_status(status: status_pb2.Status) -> MeshError:
    """Return the error a Status says, every part of it checked, bounded and escaped: its sender may be hostile."""
    code = _CODES.get(status.code, Code.UNKNOWN)
    reason, domain, metadata = "", "", {}
    retry_after: timedelta | None = None
    violations: list[FieldViolation] = []
    for detail in status.details[:8]:
        if (info := _unpack(detail, error_details_pb2.ErrorInfo)) is not None:
            if _REASON.fullmatch(info.reason) and _DOMAIN.fullmatch(info.domain):
                reason, domain, metadata = info.reason, info.domain, _safe_metadata(info.metadata.items())
        elif (retry := _unpack(detail, error_details_pb2.RetryInfo)) is not None:
            retry_after = _safe_delay(retry)
        elif (bad := _unpack(detail, error_details_pb2.BadRequest)) is not None:
            violations.extend(
                FieldViolation(field=sanitize(v.field, 128), description=sanitize(v.description, 200))
                for v in bad.field_violations[:_MAX_VIOLATIONS]
            )
    message = sanitize(status.message, MAX_MESSAGE)
    if not reason:
        return _plain(code, message, retry_after)
    return RemoteError(
        message,
        code=code,
        reason=reason,
        domain=domain,
        metadata=metadata,
        retry_after=retry_after,
        field_violations=violations,
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> MeshError:
    """Return the error a call ended with.

    A stream that ended while we wrote to it is DownstreamUnavailable: why it did is lost, and asking again tells.
    """
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == _CUT_WHILE_WRITING:
        return DownstreamUnavailable("The other side ended the stream while it was written to. Try again.")
    code = error.code().value[0]
    trailing: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]  # stub
    for key, value in trailing:
        if key == DETAILS_KEY and isinstance(value, bytes) and len(value) <= MAX_DETAILS_BYTES:
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            if status.code == code:
                return from_status(status)
    return from_status(status_pb2.Status(code=code, message=error.details() or ""))


def trailers(error: MeshError) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata that carries an error's details."""
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


def _plain(code: Code, message: str, retry_after: timedelta | None) -> MeshError:
    """Return the error of a status without ErrorInfo: gRPC's own, or a stranger's."""
    if code is Code.UNAVAILABLE:
        return DownstreamUnavailable(f"It cannot be reached: {message}. Try again.", retry_after=retry_after)
    if code is Code.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"No answer came in time: {message}. Try again, or allow more time.")
    return RemoteError(message, code=code, reason=InternalError.reason, domain=COMMON_DOMAIN, retry_after=retry_after)


def _is_ours(error: BaseException) -> bool:
    """Tell whether a servicer meant its caller to see this error: never one that merely passed through from below."""
    return isinstance(error, MeshError) and not isinstance(error, (RemoteError, InvalidAnswer))


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _unpack(detail: any_pb2.Any, kind: type[M]) -> M | None:
    message = kind()
    try:
        return message if detail.Unpack(message) else None
    except DecodeError:
        return None


def _safe_metadata(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    kept = [(key, sanitize(value, 256)) for key, value in items if _METADATA_KEY.fullmatch(key)]
    return dict(kept[:_MAX_METADATA])


def _safe_delay(retry: error_details_pb2.RetryInfo) -> timedelta | None:
    try:
        delay: timedelta = retry.retry_delay.ToTimedelta()
    except (ValueError, OverflowError):
        return None
    return min(max(delay, timedelta()), _MAX_RETRY_AFTER)
