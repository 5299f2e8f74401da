"""A certificate says who calls, and nothing else passes for one."""

from __future__ import annotations

import datetime as dt
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cellmesh.api.hypervisor.v1 import vm_service_pb2_grpc
from cellmesh.mesh import pki
from cellmesh.mesh.authority import AuthorityFault, LocalAuthority, LocalIdentity
from cellmesh.mesh.channel import mtls_channel
from cellmesh.mesh.errors import DownstreamUnavailable, RemoteError
from cellmesh.mesh.identity import Caller, Role, caller, caller_of, spiffe_id
from cellmesh.mesh.server import MeshServer
from support.vm_service import GET, Vms

DOMAIN = "cells.test"
_PATIENCE = 30.0


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = dt.datetime.now(dt.UTC)

    def __call__(self) -> dt.datetime:
        """Return it."""
        return self.now


def _authority(directory: Path, clock: Clock | None = None, domain: str = DOMAIN) -> LocalAuthority:
    return LocalAuthority(directory, trust_domain=domain, clock=clock or Clock())


@asynccontextmanager
async def _served(identity: pki.Identity) -> AsyncIterator[tuple[str, list[Caller | None]]]:
    """Serve over mutual TLS; give the address and who called."""
    seen: list[Caller | None] = []

    async def note() -> None:
        seen.append(caller())

    server = MeshServer([Vms(note).register])
    port = server.add_mtls("127.0.0.1:0", identity)
    async with server:
        yield f"127.0.0.1:{port}", seen


async def _call(address: str, identity: pki.Identity, service: str = "hypervisor") -> None:
    async with mtls_channel(address, service=service, identity=identity) as channel:
        await vm_service_pb2_grpc.VmServiceStub(channel).GetVm(GET, timeout=_PATIENCE)


@pytest.mark.asyncio
async def test_service_is_known_by_its_certificate(tmp_path: Path) -> None:
    """Each name is its role, one the contracts do not know is a service like others."""
    authority = _authority(tmp_path / "pki")
    async with _served(LocalIdentity(authority, "hypervisor")) as (address, seen):
        for name in ("auth", "reports"):
            await _call(address, LocalIdentity(authority, name))
        with pytest.raises(RemoteError) as refusal:
            await _call(address, LocalIdentity(authority, "hypervisor"))
    assert refusal.value.reason == "CALLER_NOT_ALLOWED"
    assert seen == [
        Caller(role=Role.AUTH, name=f"spiffe://{DOMAIN}/service/auth"),
        Caller(role=Role.SERVICE, name=f"spiffe://{DOMAIN}/service/reports"),
    ]


@pytest.mark.asyncio
async def test_stranger_gets_nowhere(tmp_path: Path) -> None:
    """A certificate of another authority, or of none, ends in the handshake; so does a server that is another."""
    authority, other = _authority(tmp_path / "one"), _authority(tmp_path / "two")
    async with _served(LocalIdentity(authority, "hypervisor")) as (address, seen):
        with pytest.raises(DownstreamUnavailable):
            await _call(address, LocalIdentity(other, "auth"))
        with pytest.raises(DownstreamUnavailable):
            await _call(address, LocalIdentity(authority, "auth"), service="memory")
        credentials = grpc.ssl_channel_credentials(authority.bundle())
        async with grpc.aio.secure_channel(
            address, credentials, options=[("grpc.ssl_target_name_override", f"hypervisor.{DOMAIN}")]
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await vm_service_pb2_grpc.VmServiceStub(channel).GetVm(GET, timeout=_PATIENCE)
    assert seen == []


@pytest.mark.asyncio
async def test_change_of_authority_fails_no_call(tmp_path: Path) -> None:
    """Old and new certificates are accepted on both sides, whichever side renews first, and on open connections."""
    clock = Clock()
    clock.now -= 2 * pki.LEAF_LIFETIME
    authority = _authority(tmp_path / "pki", clock)
    clock.now += 2 * pki.LEAF_LIFETIME
    server, client = LocalIdentity(authority, "hypervisor", clock=clock), LocalIdentity(authority, "auth", clock=clock)
    late = LocalIdentity(authority, "memory", clock=clock)
    async with (
        _served(server) as (address, seen),
        mtls_channel(address, service="hypervisor", identity=client) as channel,
    ):
        stub = vm_service_pb2_grpc.VmServiceStub(channel)
        await stub.GetVm(GET, timeout=_PATIENCE)
        authority.replace()
        client.renew()
        await stub.GetVm(GET, timeout=_PATIENCE)
        server.renew()
        await stub.GetVm(GET, timeout=_PATIENCE)
        await _call(address, late)
    assert len(seen) == 4


def test_authority_is_not_replaced_before_everybody_knows_the_next(tmp_path: Path) -> None:
    """Replacing twice in a day would leave services behind that accept neither."""
    clock = Clock()
    authority = _authority(tmp_path, clock)
    with pytest.raises(AuthorityFault, match="some do not accept it yet"):
        authority.replace()
    clock.now += pki.LEAF_LIFETIME
    authority.replace()
    assert authority.bundle().count(b"BEGIN CERTIFICATE") == 3
    clock.now += pki.LEAF_LIFETIME
    assert authority.bundle().count(b"BEGIN CERTIFICATE") == 2


def test_authority_survives_a_restart_and_replaces_itself_in_time(tmp_path: Path) -> None:
    """The same files give the same authority; half a year later the next one signs."""
    clock = Clock()
    first = _authority(tmp_path, clock).bundle()
    assert _authority(tmp_path, clock).bundle() == first
    clock.now += dt.timedelta(days=200)
    later = _authority(tmp_path, clock).bundle()
    current, announced = first.split(b"-----END CERTIFICATE-----\n")[:2]
    assert later.startswith(announced)
    assert current in later
    assert _authority(tmp_path, clock).bundle() == later, "a start on the same day changes nothing, and does not fail"
    clock.now += pki.LEAF_LIFETIME
    assert announced not in _authority(tmp_path, clock).bundle().split(b"-----END CERTIFICATE-----\n")[0]


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    """Nobody else can read the authority's files; files that somebody opened up are refused."""
    directory = tmp_path / "pki"
    authority = _authority(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert b"PRIVATE" not in repr(authority.issue("auth")).encode()
    (directory / "current.pem").chmod(0o640)
    with pytest.raises(AuthorityFault, match="chmod go-rwx"):
        _authority(directory)


def test_broken_authority_says_what_to_do(tmp_path: Path) -> None:
    """Files that are no authority stop the start with a way out."""
    _authority(tmp_path)
    (tmp_path / "current.pem").write_text("not a key")
    with pytest.raises(AuthorityFault, match="remove it to have a new one made"):
        _authority(tmp_path)


def test_certificate_is_renewed_at_half_of_its_life(tmp_path: Path) -> None:
    """Before, the same one is shown again and again; a certificate lasts a day at most."""
    clock = Clock()
    identity = LocalIdentity(_authority(tmp_path, clock), "auth", clock=clock)
    first = identity.leaf()
    certificate = x509.load_pem_x509_certificate(first.certificate_pem)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= dt.timedelta(hours=24)
    clock.now += dt.timedelta(hours=11, minutes=59)
    assert identity.leaf() is first
    clock.now += dt.timedelta(minutes=1)
    assert identity.leaf() is not first


def _peer(names: list[x509.GeneralName]) -> dict[str, list[bytes]]:
    """Return what gRPC tells of a peer whose certificate has these names."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(key, hashes.SHA256())
    )
    return {"x509_pem_cert": [certificate.public_bytes(serialization.Encoding.PEM)]}


_URI = x509.UniformResourceIdentifier(spiffe_id(DOMAIN, "auth"))
_DNS = x509.DNSName(f"auth.{DOMAIN}")


@pytest.mark.parametrize(
    "names",
    [
        [_URI],
        [_DNS],
        [_URI, _URI],
        [_URI, _DNS, _DNS],
        [_URI, x509.DNSName(f"secrets.{DOMAIN}")],
        [_URI, _DNS, x509.RFC822Name("a@b.test")],
        [_DNS, x509.UniformResourceIdentifier(f"{_URI.value}\0")],
        [_DNS, x509.UniformResourceIdentifier(f"{_URI.value}/more")],
        [_DNS, x509.UniformResourceIdentifier(_URI.value.upper())],
        [_DNS, x509.UniformResourceIdentifier(spiffe_id("other.test", "auth"))],
        [_DNS, x509.UniformResourceIdentifier(f"https://{DOMAIN}/service/auth")],
    ],
)
def test_other_names_are_nobody(names: list[x509.GeneralName]) -> None:
    """Missing, doubled, foreign, longer or NUL-ended names are not read as the nearest good one."""
    assert pki.caller_of_peer(_peer(names), DOMAIN) is None


def test_good_names_are_somebody_until_they_expire() -> None:
    """The names we issue are read, and no longer once the certificate's time is over on an open connection."""
    peer = _peer([_URI, _DNS])
    assert pki.caller_of_peer(peer, DOMAIN) == Caller(role=Role.AUTH, name=_URI.value)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
    assert pki.caller_of_peer(peer, DOMAIN, clock=lambda: later) is None
    assert pki.caller_of_peer({}, DOMAIN) is None
    assert pki.caller_of_peer({"x509_pem_cert": [b"junk"]}, DOMAIN) is None


@pytest.mark.parametrize("name", ["", "Auth", "a/b", "a\n", "-a", "a" * 64])
def test_bad_service_names_are_refused(name: str) -> None:
    """No name can end a SPIFFE id early or stand for another."""
    with pytest.raises(ValueError, match="is no service name"):
        spiffe_id(DOMAIN, name)
    assert caller_of(f"spiffe://{DOMAIN}/service/{name}", DOMAIN) is None
