"""The errors of cellmesh: one class, one reason, one status code.

This module is plain Python, so that domain code can raise these without knowing gRPC; `status` gives them their wire
form.
"""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

COMMON_DOMAIN = "cellmesh"


class Code(enum.IntEnum):
    """The canonical codes of google.rpc.Code that an error may carry."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """A field of a request that breaks a rule of the contract."""

    field: str
    """Path of the field, such as `spec.vcpus`."""
    description: str
    """What is wrong with it."""
    rule: str = ""
    """Identifier of the rule, such as `string.uuid`."""


class MeshError(Exception):
    """An error with a place in a contract; subclasses fix code, reason and domain, and say in a sentence what to do."""

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    domain: ClassVar[str] = COMMON_DOMAIN

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
        field_violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after = retry_after
        self.field_violations = tuple(field_violations)


class InvalidRequest(MeshError):
    """A field breaks a rule of the contract."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class CallerNotAllowed(MeshError):
    """A caller may not call this RPC."""

    code = Code.PERMISSION_DENIED
    reason = "CALLER_NOT_ALLOWED"


class UserMissing(MeshError):
    """The RPC acts for a user, and the call brings none."""

    code = Code.UNAUTHENTICATED
    reason = "USER_MISSING"


class UserTokenInvalid(MeshError):
    """The user token is not one of auth's for this service."""

    code = Code.UNAUTHENTICATED
    reason = "USER_TOKEN_INVALID"


class UserTokenExpired(MeshError):
    """The user token is too old."""

    code = Code.UNAUTHENTICATED
    reason = "USER_TOKEN_EXPIRED"


class UserNotAccepted(MeshError):
    """The call brings a user where none is accepted."""

    code = Code.PERMISSION_DENIED
    reason = "USER_NOT_ACCEPTED"


class UserMismatch(MeshError):
    """A field of the request names another user than the one that the call acts for."""

    code = Code.PERMISSION_DENIED
    reason = "USER_MISMATCH"


class UserTokenKeysUnavailable(MeshError):
    """The service has no keys to verify user tokens with at the moment."""

    # Not UNAVAILABLE: calls without a token are served, and a breaker that counted this would end them too.
    code = Code.FAILED_PRECONDITION
    reason = "USER_TOKEN_KEYS_UNAVAILABLE"


class DeadlineExceeded(MeshError):
    """The answer was not ready in time."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class RequestIdReused(MeshError):
    """The `request_id` was used for another request."""

    code = Code.INVALID_ARGUMENT
    reason = "REQUEST_ID_REUSED"


class InvalidPageToken(MeshError):
    """The page token is not one of ours, or of another list."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_PAGE_TOKEN"


class InvalidResumeToken(MeshError):
    """The resume token is not one of ours, or of another watch."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_RESUME_TOKEN"


class ResumeTokenExpired(MeshError):
    """What came after the resume token is no longer kept."""

    code = Code.OUT_OF_RANGE
    reason = "RESUME_TOKEN_EXPIRED"


class WatcherTooSlow(MeshError):
    """The watcher reads too slowly."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "WATCHER_TOO_SLOW"


class DownstreamUnavailable(MeshError):
    """A downstream cannot be reached, or its breaker is open."""

    code = Code.UNAVAILABLE
    reason = "DOWNSTREAM_UNAVAILABLE"


class InternalError(MeshError):
    """A fault of ours; the log has the rest under the trace id."""


class InvalidAnswer(MeshError):
    """A downstream's answer breaks a rule of the contract. Map it; to our own caller it is INTERNAL."""


class RemoteError(MeshError):
    """An error a downstream answered with, as it said it. Map it; to our own caller it is INTERNAL."""

    def __init__(
        self,
        message: str,
        *,
        code: Code,
        reason: str,
        domain: str,
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
        field_violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message, metadata=metadata, retry_after=retry_after, field_violations=field_violations)
        # An instance carries what its class cannot know.
        self.__dict__.update(code=code, reason=reason, domain=domain)


def sanitize(text: str, limit: int) -> str:
    r"""Make untrusted text safe for a line of a log or terminal: at most `limit` characters, none that controls it.

    Control, format (bidi, zero width), surrogate, private and line-breaking characters become `\u{hex}`.
    """
    shown: list[str] = []
    room = limit
    for character in text[: limit + 1]:
        piece = character if _is_printable(character) else f"\\u{{{ord(character):x}}}"
        if len(piece) > room:
            break
        shown.append(piece)
        room -= len(piece)
    else:
        if len(text) <= limit:
            return "".join(shown)
    return "".join(shown)[: max(limit - 1, 0)] + "…"


def _is_printable(character: str) -> bool:
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
