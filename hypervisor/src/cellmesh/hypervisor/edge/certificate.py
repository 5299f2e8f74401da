"""The edge's certificate: the one that was given, or one signed by an authority of this host's own.

Envoy reads certificate and key from one file and reads it again when another takes its place, so no connection has to
end for a new certificate, and none is ever shown with another's key.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cellmesh.hypervisor.edge.options import EdgeMisconfigured, Json
from cellmesh.mesh import pki
from cellmesh.mesh.private_file import locked, put

AUTHORITY_FILE = "edge-authority.pem"
"""Certificate and key of the authority, in the state directory; browsers may be told to trust the certificate."""
_LOCK_FILE = "edge-authority.lock"
_AUTHORITY_LIFETIME = dt.timedelta(days=3650)
# Browsers take no more than 398 days.
_LEAF_LIFETIME = dt.timedelta(days=90)
_LOOK_AGAIN = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A chain with its key, PEM."""

    chain: bytes
    key: bytes
    renew_at: dt.datetime
    """When another one should take its place."""

    def __repr__(self) -> str:
        """Leave the key out, wherever this is printed."""
        return f"Certificate(renew_at={self.renew_at.isoformat()})"


def secret(certificate: Certificate, *, name: str = "edge") -> Json:
    """Return the file Envoy reads it from."""
    return {
        "resources": [
            {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
                "name": name,
                "tls_certificate": {
                    "certificate_chain": {"inline_string": certificate.chain.decode("ascii")},
                    "private_key": {"inline_string": certificate.key.decode("ascii")},
                },
            }
        ]
    }


def given(chain: Path, key: Path, *, clock: pki.Clock = pki.utc_now) -> Certificate:
    """Return the certificate somebody else keeps, and may replace at any time; raise EdgeMisconfigured."""
    try:
        chain_pem, key_pem = chain.read_bytes(), key.read_bytes()
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
        private = serialization.load_pem_private_key(key_pem, password=None)
    except (OSError, ValueError, TypeError) as error:
        raise EdgeMisconfigured(f"The certificate {chain} or its key {key} cannot be read: {error}.") from error
    if private.public_key() != leaf.public_key():
        raise EdgeMisconfigured(
            f"The key {key} is not that of the certificate {chain}. Give the two that belong together."
        )
    return Certificate(chain=chain_pem, key=key_pem, renew_at=clock() + _LOOK_AGAIN)


class EdgeAuthority:
    """Signs the edge's certificate where nobody gave one; made at the first start."""

    def __init__(self, state_dir: Path, *, clock: pki.Clock = pki.utc_now) -> None:
        self._clock = clock
        path = state_dir / AUTHORITY_FILE
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(state_dir / _LOCK_FILE):
            if not path.exists():
                put(path, _make_authority(clock()))
        try:
            content = path.read_bytes()
            key = serialization.load_pem_private_key(content, password=None)
            self._certificate = x509.load_pem_x509_certificate(content)
        except (OSError, ValueError) as error:
            raise EdgeMisconfigured(f"{path} cannot be read ({error}). Remove it to have a new one made.") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise EdgeMisconfigured(f"{path} holds a key of another kind. Remove it to have a new one made.")
        self._key = key

    @property
    def certificate_pem(self) -> bytes:
        """The authority's certificate: who trusts it, trusts the edge."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, domains: Sequence[str]) -> Certificate:
        """Return a new certificate for these host names and addresses."""
        now = self._clock()
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domains[0][:64])]))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - pki.CLOCK_SKEW)
            .not_valid_after(min(now + _LEAF_LIFETIME, self._certificate.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName([_general_name(each) for each in domains]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(pki.key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Certificate(
            chain=certificate.public_bytes(serialization.Encoding.PEM),
            key=pki.private_pem(key),
            renew_at=now + _LEAF_LIFETIME * 2 / 3,
        )


def _make_authority(now: dt.datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cellmesh edge of this host")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - pki.CLOCK_SKEW)
        .not_valid_after(now + _AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(pki.key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return pki.private_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _general_name(domain: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(domain))
    except ValueError:
        return x509.DNSName(domain)
