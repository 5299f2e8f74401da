"""Opaque, signed bytes a caller gives back: it can neither read them nor make its own."""

from __future__ import annotations

import hashlib
import hmac

_TAG_BYTES = 16
_VERSION = b"\x01"


class InvalidToken(ValueError):
    """Not a token of ours, or not for this purpose."""


class TokenSigner:
    """Signs payloads for a purpose. The key, at least 16 secret bytes, has to outlive the tokens."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError("a token key needs at least 16 bytes")
        self._key = key

    def sign(self, payload: bytes, purpose: bytes) -> bytes:
        """Return a token, 17 bytes longer than its payload."""
        return _VERSION + self._tag(payload, purpose) + payload

    def verify(self, token: bytes, purpose: bytes) -> bytes:
        """Return the payload; raise InvalidToken if it was not signed for exactly this purpose."""
        head = len(_VERSION) + _TAG_BYTES
        payload = token[head:]
        expected = _VERSION + self._tag(payload, purpose)
        if len(token) < head or not hmac.compare_digest(token[:head], expected):
            raise InvalidToken
        return payload

    def _tag(self, payload: bytes, purpose: bytes) -> bytes:
        message = len(purpose).to_bytes(4, "big") + purpose + payload
        return hmac.new(self._key, message, hashlib.sha256).digest()[:_TAG_BYTES]
