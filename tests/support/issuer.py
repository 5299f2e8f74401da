"""An issuer of user tokens, until auth is one: keys, the document of their public halves, tokens good and bad."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cellmesh.mesh.identity import User
from cellmesh.mesh.on_behalf import UserToken
from cellmesh.mesh.user_tokens import TYPE, KeyDocument, Verifier

ISSUER = "spiffe://cellmesh.internal/service/auth"
AUDIENCE = "spiffe://cellmesh.internal/service/hypervisor"
USER = "6f1c2d9e-8a55-4f43-9d3c-0c8e1d2b7a10"
OTHER_USER = "9b0d6f0a-3f0c-4a63-8d35-1f7f7a4f2c11"
SESSION = "1d7cf3c2-52f5-4b6c-9f43-5a2f0c6b9e22"
_DAY = 86400


@dataclass(slots=True)
class Issuer:
    """Signs with the key `kid` of `keys`; `document` is where verifiers look."""

    document: Path
    keys: dict[str, Ed25519PrivateKey] = field(default_factory=lambda: {"first": Ed25519PrivateKey.generate()})
    kid: str = "first"

    def publish(self, **changes: Any) -> None:
        """Put the document in place, with other members where `changes` says so."""
        members = {
            "keys": [public(kid, key) for kid, key in self.keys.items()],
            "expires_at": int(time.time()) + _DAY,
            **changes,
        }
        temporary = self.document.with_suffix(".new")
        temporary.write_text(json.dumps(members))
        temporary.chmod(0o644)
        temporary.replace(self.document)

    def verifier(self, **options: Any) -> Verifier:
        """Return what verifies the tokens of this issuer."""
        return Verifier(KeyDocument(self.document), issuer=ISSUER, audience=AUDIENCE, **options)

    def token(self, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a token of USER, with other claims or header members where they are given; None leaves one out."""
        return self.signed(self.claims(**claims), header=header)

    def user_token(self, *, audience: str = AUDIENCE, **claims: Any) -> UserToken:
        """Return a token as a client passes it on."""
        return UserToken(value=self.token(aud=audience, **claims), audience=audience)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return the claims of a good token, with changes; None leaves one out."""
        now = int(time.time())
        whole = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": USER,
            "sid": SESSION,
            "scope": "vm:read vm:write",
            "iat": now,
            "exp": now + 300,
            "jti": base64.urlsafe_b64encode(Ed25519PrivateKey.generate().private_bytes_raw()[:12]).decode(),
            **changes,
        }
        return {name: value for name, value in whole.items() if value is not None}

    def signed(self, claims: object, *, header: dict[str, Any] | None = None) -> str:
        """Sign any claims under any header with the current key."""
        members = {"alg": "EdDSA", "kid": self.kid, "typ": TYPE, **(header or {})}
        head = {name: value for name, value in members.items() if value is not None}
        message = f"{encoded(json.dumps(head).encode())}.{encoded(json.dumps(claims).encode())}"
        return f"{message}.{encoded(self.keys[self.kid].sign(message.encode()))}"


class Believer:
    """Believes any token to be USER's, as no verifier may."""

    audience = AUDIENCE

    def __call__(self, _: str) -> User:
        """Look at nothing."""
        return User(user_id=USER)


def public(kid: str, key: Ed25519PrivateKey) -> dict[str, Any]:
    """Return the JWK of a key's public half."""
    x = encoded(key.public_key().public_bytes_raw())
    return {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": x}


def encoded(raw: bytes) -> str:
    """Write bytes as JOSE does."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(token: str) -> str:
    """Return a token with another's signature: one bit of it is changed."""
    head, _, signature = token.rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[0] ^= 1
    return f"{head}.{encoded(bytes(raw))}"


def unsigned(token: str) -> str:
    """Return a token that says it needs no signature."""
    head, claims, _ = token.split(".")
    members = json.loads(base64.urlsafe_b64decode(head + "==")) | {"alg": "none"}
    return f"{encoded(json.dumps(members).encode())}.{claims}."
