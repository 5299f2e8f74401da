"""A page token is good for the list it came from and no other."""

from __future__ import annotations

import pytest

from cellmesh.api.common.v1 import page_pb2
from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.mesh.errors import InvalidPageToken
from cellmesh.mesh.pages import PageTokens, page_size
from cellmesh.mesh.tokens import TokenSigner

LIST = vm_service_pb2.ListVmsRequest(states=[vm_pb2.VM_STATE_RUNNING])
TOKENS = PageTokens(TokenSigner(b"k" * 32))


def test_token_goes_on_whatever_the_page_size() -> None:
    """The next page may have another size and carries the token; neither makes it another list."""
    token = TOKENS.encode(LIST, "position-7")
    again = vm_service_pb2.ListVmsRequest(states=LIST.states, page=page_pb2.PageRequest(page_size=3, page_token=token))
    assert TOKENS.decode(again, token) == "position-7"
    assert len(TOKENS.encode(LIST, "p" * 300)) <= 512


@pytest.mark.parametrize(
    ("request_", "token"),
    [
        (vm_service_pb2.ListVmsRequest(), TOKENS.encode(LIST, "p")),
        (LIST, PageTokens(TokenSigner(b"x" * 32)).encode(LIST, "p")),
        (LIST, TOKENS.encode(LIST, "p")[:-2]),
        (LIST, "not base64!"),
        (LIST, "ünïcode"),
        (LIST, "AAAA"),
        (LIST, "A"),
    ],
    ids=["other filter", "other key", "cut", "no base64", "no ascii", "short", "one letter"],
)
def test_wrong_token_is_refused(request_: vm_service_pb2.ListVmsRequest, token: str) -> None:
    """Tokens of other lists, other nodes or nobody are told apart."""
    with pytest.raises(InvalidPageToken):
        TOKENS.decode(request_, token)


def test_page_sizes() -> None:
    """Nothing asked is a hundred, too much is a thousand."""
    assert [page_size(wanted) for wanted in (0, 1, 1000, 1001)] == [100, 1, 1000, 1000]


def test_short_keys_are_refused() -> None:
    """A key that could be guessed signs nothing."""
    with pytest.raises(ValueError, match="16 bytes"):
        TokenSigner(b"short")
