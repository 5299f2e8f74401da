"""Certificates: how a service proves who it is to another.

Every certificate has one URI name, a SPIFFE id of the trust domain, which alone says who a caller is; and one DNS name
made from it, which gRPC needs to check a server.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from cellmesh.mesh.identity import Caller, caller_of, spiffe_id

LEAF_LIFETIME = dt.timedelta(hours=24)
# Clocks of hosts differ; a certificate is valid from a little earlier.
CLOCK_SKEW = dt.timedelta(minutes=5)

Clock = Callable[[], dt.datetime]


def utc_now() -> dt.datetime:
    """Return the time, with its zone."""
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate with its key, and the authorities its holder accepts."""

    key_pem: bytes
    """Private key, PEM."""
    certificate_pem: bytes
    """Certificate, PEM."""
    bundle_pem: bytes
    """Authorities to accept, PEM: two while one takes over from the other."""
    renew_at: dt.datetime
    """When to ask for the next one."""

    def __repr__(self) -> str:
        """Leave the key out, wherever this is printed."""
        return f"Leaf(renew_at={self.renew_at.isoformat()})"


class Identity(Protocol):
    """Who a process is."""

    @property
    def trust_domain(self) -> str:
        """The trust domain all services share."""

    def leaf(self) -> Leaf:
        """Return a certificate that is not past its half-life. May be called from any thread, often."""


def issue(
    name: str, *, trust_domain: str, authority: x509.Certificate, key: ec.EllipticCurvePrivateKey, now: dt.datetime
) -> tuple[bytes, bytes]:
    """Return the PEM of a new key and of a certificate for service `name`, signed by `authority`."""
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(spiffe_id(trust_domain, name)),
        x509.DNSName(server_name(name, trust_domain)),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(leaf_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LEAF_LIFETIME - CLOCK_SKEW)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return private_pem(leaf_key), certificate.public_bytes(serialization.Encoding.PEM)


def server_name(name: str, trust_domain: str) -> str:
    """Return the DNS name in the certificate of service `name`."""
    return f"{name}.{trust_domain}"


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Return credentials that ask every caller for a certificate, and show the newest of ours at each handshake."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        leaf = identity.leaf()
        return grpc.ssl_server_certificate_configuration(
            [(leaf.key_pem, leaf.certificate_pem)], root_certificates=leaf.bundle_pem
        )

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=True)


def caller_of_peer(
    auth_context: Mapping[str, Iterable[bytes]], trust_domain: str, clock: Clock = utc_now
) -> Caller | None:
    """Return who the certificate of a connection names, or None if it names nobody of ours or has expired since."""
    pems = list(auth_context.get("x509_pem_cert", ()))
    if len(pems) != 1:
        return None
    found = _read(pems[0], trust_domain)
    if found is None:
        return None
    caller, expires = found
    # TLS looks at this once, when the connection is made; connections live longer than certificates.
    return caller if clock() < expires else None


@functools.lru_cache(maxsize=256)
def _read(pem: bytes, trust_domain: str) -> tuple[Caller, dt.datetime] | None:
    """Return the caller a certificate names and when it expires; None unless its names are exactly those we issue."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound):
        return None
    # A NUL, a second URI or a name of another kind could be read differently by somebody else: refuse it.
    if len(uris) != 1 or len(names) != 2:
        return None
    caller = caller_of(uris[0], trust_domain)
    if caller is None:
        return None
    expected = server_name(caller.name.rpartition("/")[2], trust_domain)
    if names.get_values_for_type(x509.DNSName) != [expected]:
        return None
    return caller, certificate.not_valid_after_utc


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as PEM, not encrypted: what keeps it is the mode of its file."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_usage(*, digital_signature: bool = False, sign_certificates: bool = False) -> x509.KeyUsage:
    """Return a KeyUsage with nothing but what is named."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
