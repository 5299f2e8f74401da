"""A certificate authority of this host's own, made at its first start, with the one that will take over from it.

Everybody accepts both, so the day the next one begins to sign nobody has to be told; what the one before signed is
accepted until it has expired.
"""

from __future__ import annotations

import datetime as dt
import secrets
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cellmesh.mesh import pki
from cellmesh.mesh.identity import spiffe_id
from cellmesh.mesh.private_file import locked, put

_LIFETIME = dt.timedelta(days=365)
# Key and certificate in one file, so that no crash can leave one of another.
_CURRENT = "current.pem"
_NEXT = "next.pem"
_PREVIOUS = "previous.pem"
_LOCK = "lock"
_REMEDY = "Restore it, or remove it to have a new one made."


class AuthorityFault(RuntimeError):
    """The authority's files cannot be used; the message says why and what to do."""


class LocalAuthority:
    """Signs certificates for the services of this host; its key lies in `directory`, which only its owner may enter."""

    def __init__(self, directory: Path, *, trust_domain: str, clock: pki.Clock = pki.utc_now) -> None:
        spiffe_id(trust_domain, "authority")
        self.trust_domain = trust_domain
        self._clock = clock
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_open(directory)
        self._current_path = directory / _CURRENT
        self._next_path = directory / _NEXT
        self._previous_path = directory / _PREVIOUS
        self._lock = directory / _LOCK
        with locked(self._lock):
            self._load()
            # The one that takes over first is as old; until the next one is known it signs on.
            if self._current.certificate.not_valid_before_utc + _LIFETIME / 2 < clock() and self._is_next_known():
                self._replace()

    def replace(self) -> None:
        """Let the next authority sign from now on; raise AuthorityFault if not everybody can have heard of it."""
        with locked(self._lock):
            # Another process may have done so.
            self._load()
            self._replace()

    def _replace(self) -> None:
        if not self._is_next_known():
            raise AuthorityFault(
                f"The next authority is less than {pki.LEAF_LIFETIME} old: some do not accept it yet. Try again then."
            )
        put(self._previous_path, self._current.pem)
        self._next_path.replace(self._current_path)
        self._load()

    def bundle(self) -> bytes:
        """Return the authorities to accept, PEM."""
        bundle = self._current.pem + self._next.pem
        # The next one was made when the one before stopped signing.
        if self._previous_path.exists() and not self._is_next_known():
            bundle += self._previous_path.read_bytes()
        return bundle

    def issue(self, name: str) -> pki.Leaf:
        """Return a new certificate for service `name`; raise ValueError for a name that is none."""
        now = self._clock()
        key, certificate = pki.issue(
            name, trust_domain=self.trust_domain, authority=self._current.certificate, key=self._current.key, now=now
        )
        return pki.Leaf(
            key_pem=key,
            certificate_pem=certificate,
            bundle_pem=self.bundle(),
            renew_at=now + pki.LEAF_LIFETIME / 2,
        )

    def _is_next_known(self) -> bool:
        """Tell whether every certificate that is in use came with the next authority."""
        return self._clock() >= self._next.since + pki.LEAF_LIFETIME

    def _load(self) -> None:
        """Read both authorities, and make what is missing: at the first start, and after the next one took over."""
        for path in (self._current_path, self._next_path):
            if not path.exists():
                put(path, _make(self._clock()))
        self._current = _read(self._current_path)
        self._next = _read(self._next_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def since(self) -> dt.datetime:
        return self.certificate.not_valid_before_utc + pki.CLOCK_SKEW


def _make(now: dt.datetime) -> bytes:
    """Return the PEM of a new key and its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"cellmesh {secrets.token_hex(8)}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - pki.CLOCK_SKEW)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(pki.key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return pki.private_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _read(path: Path) -> _Authority:
    _refuse_open(path)
    try:
        content = path.read_bytes()
        key = serialization.load_pem_private_key(content, password=None)
        certificate = x509.load_pem_x509_certificate(content)
    except (OSError, ValueError) as error:
        raise AuthorityFault(f"{path} cannot be read ({error}). {_REMEDY}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise AuthorityFault(f"{path} holds a key and a certificate of different authorities. {_REMEDY}")
    return _Authority(key=key, certificate=certificate)


class LocalIdentity:
    """A service's identity, renewed by this host's authority at half of its certificate's life."""

    def __init__(self, authority: LocalAuthority, name: str, *, clock: pki.Clock = pki.utc_now) -> None:
        self._authority = authority
        self._name = name
        self._clock = clock
        # gRPC asks from its own threads.
        self._lock = threading.Lock()
        self._leaf = authority.issue(name)

    @property
    def trust_domain(self) -> str:
        """The trust domain of the authority."""
        return self._authority.trust_domain

    def leaf(self) -> pki.Leaf:
        """Return a certificate that is not past its half-life."""
        with self._lock:
            if self._clock() >= self._leaf.renew_at:
                self._leaf = self._authority.issue(self._name)
            return self._leaf

    def renew(self) -> None:
        """Get a new certificate now, such as after the authority was replaced."""
        with self._lock:
            self._leaf = self._authority.issue(self._name)


def _refuse_open(path: Path) -> None:
    """Raise AuthorityFault if others than the owner may get at `path`."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_IMODE(mode) & 0o077:
        raise AuthorityFault(f"{path} is open to others (mode {stat.S_IMODE(mode):04o}). Run chmod go-rwx on it.")
