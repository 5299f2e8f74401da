"""Where the demo's edge listens."""

from __future__ import annotations

import socket

import pytest

from cellmesh.cli.edge_address import check_free, parse_listen
from demo_edge import held_address


def test_two_demos_have_an_address_each() -> None:
    """An edge can listen where its own demo says; another demo is given another place, before and after."""
    with held_address() as first, held_address() as second:
        assert first != second
        for address in (first, second):
            listen = parse_listen(address)
            check_free(listen)
            with socket.create_server((listen.host, listen.port), reuse_port=True), held_address() as third:
                assert third not in (first, second)


def test_an_address_that_is_held_is_given_to_nobody_by_chance() -> None:
    """The control: who does not name it with leave to share can't have it."""
    with held_address() as address, socket.socket() as other:
        listen = parse_listen(address)
        with pytest.raises(OSError, match="in use"):
            other.bind((listen.host, listen.port))
