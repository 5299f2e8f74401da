"""Page tokens: where a list goes on, good only for the list they came from."""

from __future__ import annotations

import base64
import binascii
import hashlib

from google.protobuf.message import Message

from cellmesh.mesh.errors import InvalidPageToken
from cellmesh.mesh.tokens import InvalidToken, TokenSigner

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000


def page_size(wanted: int) -> int:
    """Return how many items a page gets that asks for this many; 0 is the default."""
    return min(wanted or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


class PageTokens:
    """Makes and reads page tokens."""

    def __init__(self, signer: TokenSigner) -> None:
        self._signer = signer

    def encode(self, request: Message, position: str) -> str:
        """Return the token that goes on after `position` in the list `request` asks for.

        What tells lists apart is the whole request but its `page`. A position has at most 300 bytes.
        """
        return base64.urlsafe_b64encode(self._signer.sign(position.encode(), _purpose(request))).decode().rstrip("=")

    def decode(self, request: Message, token: str) -> str:
        """Return the position; raise InvalidPageToken if the token is of another list or not ours."""
        try:
            raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
            return self._signer.verify(raw, _purpose(request)).decode()
        except (InvalidToken, binascii.Error, UnicodeError):
            raise InvalidPageToken(
                "The page token is not of this list. Start again without a token, and keep the filters as they are."
            ) from None


def _purpose(request: Message) -> bytes:
    query = type(request)()
    query.CopyFrom(request)
    query.ClearField("page")
    name = request.DESCRIPTOR.full_name.encode()
    return b"page:" + name + b":" + hashlib.sha256(query.SerializeToString(deterministic=True)).digest()
