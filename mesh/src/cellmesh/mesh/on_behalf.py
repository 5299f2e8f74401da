"""On whose behalf a call is made: what its metadata and its request say of a user, and what of that is believed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import Message

from cellmesh.mesh.errors import (
    InvalidRequest,
    UserMismatch,
    UserMissing,
    UserNotAccepted,
    UserTokenInvalid,
    UserTokenKeysUnavailable,
)
from cellmesh.mesh.identity import Caller, Role, User
from cellmesh.mesh.limits import USER_TOKEN_BYTES
from cellmesh.mesh.policy import ActsFor, MethodPolicy

TOKEN_KEY = "cellmesh-on-behalf-of"  # noqa: S105  # the name of a header
"""Metadata with the user token of a call."""
USER_KEY = "cellmesh-user"
"""Metadata with the user that an operator names; a UUID."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COMPACT_JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
# grpcio's type of it says str and bytes alike.
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserToken:
    """A signed statement for whom a call to one service acts. Whoever holds it can use it there until it expires."""

    value: str = field(repr=False)
    """The JWS in compact form; secret."""
    audience: str
    """The SPIFFE id of the service it is for."""


class Verify(Protocol):
    """Verifies the user tokens that are for one service."""

    @property
    def audience(self) -> str:
        """The SPIFFE id of the service."""

    def __call__(self, token: str) -> User:
        """Return whom a token is for.

        Raises UserTokenInvalid, UserTokenExpired, UserTokenKeysUnavailable.
        """


_tokens: ContextVar[tuple[UserToken, ...]] = ContextVar("cellmesh_user_tokens", default=())


@contextmanager
def acting_for(*tokens: UserToken) -> Iterator[None]:
    """Let calls made inside act for the user of these tokens, and for none where no token is for the service called.

    The tokens of an outer scope do not count inside: `acting_for()` acts for nobody.
    """
    before = _tokens.set(tokens)
    try:
        yield
    finally:
        _tokens.reset(before)


def outbound(policy: MethodPolicy, *, audience: str, named_user: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata that says for whom a call to `audience` acts.

    A token goes to its own audience only, and a user that an operator names to where one is accepted.
    """
    if policy.acts_for is ActsFor.NONE:
        return ()
    if named_user:
        return ((USER_KEY, named_user),)
    return tuple((TOKEN_KEY, token.value) for token in _tokens.get() if audience and token.audience == audience)[:1]


def inbound(
    method: str, policy: MethodPolicy, caller: Caller, metadata: Metadata, verify: Verify | None
) -> tuple[User | None, tuple[UserToken, ...]]:
    """Return the user that the metadata of a call proves, and the token that does.

    Raises UserNotAccepted, UserTokenInvalid, UserTokenExpired, UserTokenKeysUnavailable, InvalidRequest.
    """
    # A list comprehension for each would read a call's metadata twice, and almost no call has either.
    tokens, names = [], []
    for key, value in metadata:
        if key == TOKEN_KEY:
            tokens.append(value)
        elif key == USER_KEY:
            names.append(value)
    if not tokens and not names:
        return None, ()
    if policy.acts_for is ActsFor.NONE:
        raise UserNotAccepted(f"{method} acts for no user. Call it without one.")
    if caller.role is Role.GUEST_AGENT:
        raise UserNotAccepted("A guest acts for no user. Its VM says whose it is.")
    if names:
        return _named(caller, names, has_token=bool(tokens)), ()
    value = _single(tokens)
    if verify is None:
        raise UserTokenKeysUnavailable(
            "This service accepts no user token: its settings name no key document. Let them name auth's."
        )
    return verify(value), (UserToken(value=value, audience=verify.audience),)


def settled(
    method: str, policy: MethodPolicy, caller: Caller, user: User | None, request: Message | None
) -> User | None:
    """Return the user that a call acts for, once the fields of its request are looked at; None of a stream's.

    Raises UserMismatch if a field names another user, UserMissing if there must be one and is not.
    """
    for name in policy.user_fields if request is not None else ():
        named: str = getattr(request, name)
        if not named:
            continue
        if user is None and caller.role is Role.OPERATOR:
            user = User(user_id=named, named_by_operator=True)
        elif user is not None and user.user_id != named:
            raise UserMismatch(f"{name} names another user than the one this call acts for. Name that one, or none.")
    if user is None and policy.acts_for is ActsFor.REQUIRED:
        raise UserMissing(
            f"{method} acts for a user. Send a user token as {TOKEN_KEY}; an operator sends a UUID as {USER_KEY}."
        )
    return user


def _named(caller: Caller, names: list[str | bytes], *, has_token: bool) -> User:
    if caller.role is not Role.OPERATOR:
        raise UserNotAccepted(f"Only an operator names a user with {USER_KEY}. Send a user token as {TOKEN_KEY}.")
    name = names[0]
    if has_token or len(names) > 1 or not isinstance(name, str) or not _UUID.fullmatch(name):
        raise InvalidRequest(f"{USER_KEY} has to be one UUID in lower case, and to stand without a token.")
    return User(user_id=name, named_by_operator=True)


def _single(tokens: list[str | bytes]) -> str:
    """Return the one token; raise UserTokenInvalid for what cannot be one, and say nothing of what it is."""
    value = tokens[0]
    if len(tokens) > 1:
        raise UserTokenInvalid(f"{TOKEN_KEY} stands there {len(tokens)} times. Send one user token.")
    if len(value) > USER_TOKEN_BYTES:
        raise UserTokenInvalid(f"The user token is longer than {USER_TOKEN_BYTES} bytes. Send one that auth issued.")
    if not isinstance(value, str) or not _COMPACT_JWS.fullmatch(value):
        raise UserTokenInvalid("The user token is no JWS in compact form. Send one that auth issued.")
    return value
