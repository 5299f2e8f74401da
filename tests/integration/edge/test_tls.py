"""TLS at the edge: what is spoken, which certificate is shown, and that it is renewed without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from cellmesh.hypervisor.edge.bootstrap import write
from cellmesh.hypervisor.edge.certificate import EdgeAuthority, secret
from cellmesh.hypervisor.edge.options import EdgeOptions, Listener
from support.envoy import ALICE, READY_SECONDS, EdgeUnderTest, furnish, running_edge
from support.http_client import Http2, answer, connected, head
from support.ports import held_port

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def secured() -> AsyncIterator[EdgeUnderTest]:
    """Give an edge with TLS."""
    with held_port() as port:

        def with_tls(options: EdgeOptions) -> EdgeOptions:
            return replace(options, listeners=(*options.listeners, Listener(host="127.0.0.1", port=port)))

        async with running_edge(with_tls) as it:
            await furnish(it)
            yield it


def context(edge: EdgeUnderTest, *protocols: str) -> ssl.SSLContext:
    """Return what a client trusts that trusts the edge's authority."""
    authority = EdgeAuthority(edge.options.directory).certificate_pem.decode()
    trusting = ssl.create_default_context(cadata=authority)
    trusting.set_alpn_protocols(list(protocols))
    return trusting


def address(edge: EdgeUnderTest) -> tuple[str, int]:
    """Return where it is asked with TLS."""
    return ("127.0.0.1", edge.options.listeners[1].port)


async def test_http1_and_http2_are_spoken_by_name(secured: EdgeUnderTest) -> None:
    """Prove what ALPN chooses, that the certificate is the name's, and what an app is told of the connection."""
    host = f"cell.test:{address(secured)[1]}"
    async with connected(address(secured), context(secured, "http/1.1"), "cell.test") as (reader, writer):
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.write(head("GET", "/", host=host, user=ALICE, headers=[("X-Forwarded-For", "6.6.6.6")]))
        got = await answer(reader)
        assert got.header_of_request("x-forwarded-proto") == ["https"]
        # One address, and not the one it was told: for a client on loopback Envoy says the host's own.
        (client_address,) = got.header_of_request("x-forwarded-for")
        assert ipaddress.ip_address(client_address) != ipaddress.ip_address("6.6.6.6")
    async with connected(address(secured), context(secured, "h2", "http/1.1"), "cell.test") as (reader, writer):
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        client = Http2(reader, writer)
        stream = client.ask("/dev/x", user=ALICE)
        client.flush()
        assert (await client.answers([stream]))[0][":status"] == "200"


async def test_old_protocols_are_refused(secured: EdgeUnderTest) -> None:
    """Prove that TLS before 1.2 is not spoken, and plain HTTP on that port neither."""
    old = context(secured, "http/1.1")
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        async with connected(address(secured), old, "cell.test"):
            pass
    async with connected(address(secured)) as (reader, writer):
        writer.write(head("GET", "/", user=ALICE))
        with contextlib.suppress(ConnectionError):
            assert not (await reader.read()).startswith(b"HTTP/1.1 200")


async def test_a_new_certificate_is_shown_without_a_restart(secured: EdgeUnderTest) -> None:
    """Prove that a renewed certificate is shown to who connects then, while who was connected stays."""
    tls = context(secured, "http/1.1")
    host = f"cell.test:{address(secured)[1]}"
    async with connected(address(secured), tls, "cell.test") as (reader, writer):
        before = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        renewed = EdgeAuthority(secured.options.directory).issue(("cell.test", "other.test"))
        write(secured.options.certificate_file, secret(renewed))
        async with asyncio.timeout(READY_SECONDS):
            while True:
                async with connected(address(secured), tls, "cell.test") as (_, later):
                    shown = later.get_extra_info("ssl_object").getpeercert()
                if shown["serialNumber"] != before:
                    break
        assert ("DNS", "other.test") in shown["subjectAltName"]
        writer.write(head("GET", "/", host=host, user=ALICE))
        assert (await answer(reader)).status == 200


async def test_a_broken_certificate_leaves_the_last_good_one(secured: EdgeUnderTest) -> None:
    """Prove that a file that cannot be used changes nothing."""
    before = secured.options.certificate_file.read_text()
    broken = EdgeAuthority(secured.options.directory).issue(("cell.test",))
    write(secured.options.certificate_file, secret(replace(broken, chain=b"no certificate")))
    rejected = r"^listener\..*update_rejected$|^sds\.edge\.update_rejected$"
    async with asyncio.timeout(READY_SECONDS):
        while not any((await secured.admin.stats(rejected)).values()):  # noqa: ASYNC110  # of Envoy
            await asyncio.sleep(0.02)
    async with connected(address(secured), context(secured, "http/1.1"), "cell.test") as (_, writer):
        assert writer.get_extra_info("ssl_object").getpeercert() is not None
    secured.options.certificate_file.write_text(before)
