"""User tokens: JWS in compact form, signed by auth with Ed25519, verified with the keys of a document that rotates.

Only a service that is called for users imports this: it loads cryptography, about 9 MB.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from cellmesh.mesh.errors import UserTokenExpired, UserTokenInvalid, UserTokenKeysUnavailable
from cellmesh.mesh.identity import Cell, User

ALGORITHM = "EdDSA"
TYPE = "cellmesh-user+jwt"
"""The `typ` of a user token, so that no other token that auth signs is taken for one (RFC 8725 §3.11)."""
LIFETIME = 300
"""Longest life of a token, in seconds."""
_SKEW = 5
"""Seconds that the clock of auth may be ahead of ours."""
_DOCUMENT_BYTES = 64 * 1024
_KEYS = 16
_CACHED = 1024
_SCOPES = 32
_CLAIMS = frozenset({"iss", "aud", "sub", "scope", "iat", "exp", "jti"})
_CELL = frozenset({"vm_id", "container", "generation", "epoch"})
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
_SCOPE = re.compile(r"[a-z][a-z0-9_.:-]{0,63}")
_CONTAINER = re.compile(r"[a-z][a-z0-9-]{0,31}")
_SECONDS = range(1 << 40)
_COUNTS = range(1, 1 << 63)
_JWS = jwt.PyJWS(algorithms=[ALGORITHM])


@dataclass(frozen=True, slots=True)
class _Document:
    keys: Mapping[str, jwt.PyJWK]
    expires_at: int


class KeyDocument:
    """A JWK Set (RFC 7517) in a file: Ed25519 keys by `kid`, and `expires_at`, after which it counts for nothing.

    It is read again whenever it was replaced, so keys are added and taken away without a restart. Whoever may write it
    says who every user is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._read: _Document | str = ""
        self.version = 0
        """Grows whenever the document was read again."""

    def keys(self, now: float) -> Mapping[str, jwt.PyJWK]:
        """Return the keys that count now; raise UserTokenKeysUnavailable if there is no document that does."""
        try:
            # A stat of a local file is quicker than a thread.
            status = self._path.stat()
        except OSError as error:
            raise self._unavailable(f"cannot be read ({error.strerror})") from None
        if self._seen != (seen := (status.st_ino, status.st_mtime_ns, status.st_size)):
            self._read = self._load()
            self._seen = seen
            self.version += 1
        if isinstance(self._read, str):
            raise self._unavailable(self._read)
        if now >= self._read.expires_at:
            raise self._unavailable("has expired")
        return self._read.keys

    def _load(self) -> _Document | str:
        """Return the document, or what is wrong with it."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o022:
                    return "may be written by others than its owner"
                content = file.read(_DOCUMENT_BYTES + 1)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if len(content) > _DOCUMENT_BYTES:
            return f"is longer than {_DOCUMENT_BYTES} bytes"
        try:
            return _document(_json(content))
        except _Malformed as error:
            return str(error)

    def _unavailable(self, fault: str) -> UserTokenKeysUnavailable:
        return UserTokenKeysUnavailable(
            f"User tokens cannot be verified: the key document {self._path} {fault}. "
            "Let auth write it again, then call again."
        )


class Verifier:
    """Verifies the tokens that `issuer` signs for `audience`, both SPIFFE ids. `clock` gives seconds since 1970."""

    def __init__(
        self, document: KeyDocument, *, issuer: str, audience: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._document = document
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        # By hash: what was verified once is good until it expires or the keys change.
        self._verified: OrderedDict[bytes, tuple[User, int]] = OrderedDict()
        self._version = 0

    @property
    def audience(self) -> str:
        """The SPIFFE id of the service that tokens have to be for."""
        return self._audience

    def __call__(self, token: str) -> User:
        """Return whom a token is for.

        Raises UserTokenInvalid, UserTokenExpired, UserTokenKeysUnavailable; none of them says what the token has in it.
        """
        now = self._clock()
        keys = self._document.keys(now)
        if self._version != self._document.version:
            self._verified.clear()
            self._version = self._document.version
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is None:
            known = self._verify(token, keys, now)
            while len(self._verified) >= _CACHED:
                self._verified.popitem(last=False)
            self._verified[digest] = known
        user, expires = known
        if now >= expires:
            self._verified.pop(digest, None)
            raise UserTokenExpired("The user token has expired. Get another from auth and call again.")
        return user

    def _verify(self, token: str, keys: Mapping[str, jwt.PyJWK], now: float) -> tuple[User, int]:
        """Return whom a token is for and when it expires; raise UserTokenInvalid."""
        try:
            payload = _signed(token, keys)
            claims = _object(_json(payload), "the claims")
            return _user(claims, issuer=self._issuer, audience=self._audience, now=now)
        except _Malformed as error:
            raise UserTokenInvalid(f"The user token is refused: {error}. Send one that auth issued.") from None


class _Malformed(ValueError):
    """What is wrong with a token or a document, in words that hold nothing of it."""


def _signed(token: str, keys: Mapping[str, jwt.PyJWK]) -> bytes:
    """Return what a token carries, if one of `keys` signed it."""
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _Malformed("its header cannot be read") from None
    # Each member is known: a key or an address that a header brings is never looked at.
    if header.keys() != {"alg", "kid", "typ"} or header["typ"] != TYPE or header["alg"] != ALGORITHM:
        raise _Malformed(f"its header is not that of a {TYPE} signed with {ALGORITHM}")
    key = keys.get(header["kid"])
    if key is None:
        raise _Malformed("its key is none of the key document")
    try:
        payload: bytes = _JWS.decode_complete(token, key=key, algorithms=[ALGORITHM])["payload"]
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _Malformed("its signature is wrong") from None
    return payload


def _user(claims: Mapping[str, Any], *, issuer: str, audience: str, now: float) -> tuple[User, int]:
    by_session = claims.keys() == _CLAIMS | {"sid"}
    if not by_session and claims.keys() != _CLAIMS | {"cell"}:
        raise _Malformed("a claim is missing or unknown")
    if claims["iss"] != issuer:
        raise _Malformed("its issuer is another")
    if claims["aud"] != audience:
        raise _Malformed("it is for another service")
    issued, expires = _number(claims["iat"], "iat", _SECONDS), _number(claims["exp"], "exp", _SECONDS)
    if not 0 < expires - issued <= LIFETIME:
        raise _Malformed(f"it does not live between 1 and {LIFETIME} s")
    if issued > now + _SKEW:
        raise _Malformed("it was issued in the future; compare the clocks")
    return User(
        user_id=_text(claims["sub"], "sub", _UUID),
        session_id=_text(claims["sid"], "sid", _UUID) if by_session else "",
        cell=None if by_session else _cell(_object(claims["cell"], "cell")),
        scopes=_scopes(claims["scope"]),
        token_id=_text(claims["jti"], "jti", _TOKEN_ID),
    ), expires


def _cell(claim: Mapping[str, Any]) -> Cell:
    if claim.keys() != _CELL:
        raise _Malformed("a member of cell is missing or unknown")
    return Cell(
        vm_id=_text(claim["vm_id"], "cell.vm_id", _UUID),
        container=_text(claim["container"], "cell.container", _CONTAINER),
        generation=_number(claim["generation"], "cell.generation", _COUNTS),
        epoch=_number(claim["epoch"], "cell.epoch", _COUNTS),
    )


def _scopes(claim: object) -> frozenset[str]:
    scopes = claim.split(" ") if isinstance(claim, str) and claim else []
    malformed = len(scopes) > _SCOPES or not all(_SCOPE.fullmatch(scope) for scope in scopes)
    if not isinstance(claim, str) or malformed or len(set(scopes)) != len(scopes):
        raise _Malformed("scope is malformed")
    return frozenset(scopes)


def _document(content: object) -> _Document:
    members = _object(content, "it")
    if members.keys() != {"keys", "expires_at"} or not isinstance(members["keys"], list):
        raise _Malformed("is no JWK Set with keys and expires_at, and nothing else")
    if not 1 <= len(members["keys"]) <= _KEYS:
        raise _Malformed(f"has not 1 to {_KEYS} keys")
    keys = dict(_key(_object(each, "a key")) for each in members["keys"])
    if len(keys) != len(members["keys"]):
        raise _Malformed("has two keys of one kid")
    return _Document(keys, _number(members["expires_at"], "expires_at", _SECONDS))


def _key(members: Mapping[str, Any]) -> tuple[str, jwt.PyJWK]:
    if "d" in members:
        raise _Malformed("has a private key in it; replace that key, whoever read the document has it")
    expected = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": ALGORITHM}
    if members.keys() != {*expected, "x", "kid"} or any(members[name] != value for name, value in expected.items()):
        raise _Malformed(f"has a key that is not OKP, Ed25519, sig, {ALGORITHM} with x and kid")
    try:
        return _text(members["kid"], "kid", _KEY_ID), jwt.PyJWK(dict(members))
    except (jwt.PyJWTError, ValueError, TypeError):
        raise _Malformed("has a key that is none") from None


def _json(content: bytes) -> object:
    def pairs(members: list[tuple[str, object]]) -> dict[str, object]:
        if len(found := dict(members)) != len(members):
            raise ValueError
        return found

    try:
        return json.loads(content, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise _Malformed("is no JSON, or has a name twice") from None


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Malformed(f"{name} is no object")
    return value


def _text(value: object, name: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _Malformed(f"{name} is malformed")
    return value


def _number(value: object, name: str, allowed: range) -> int:
    # To Python a bool is a number.
    if type(value) is not int or value not in allowed:
        raise _Malformed(f"{name} is malformed")
    return value
