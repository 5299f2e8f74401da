"""The edge's certificate: made at the first start, kept, or given."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from cellmesh.hypervisor.edge.certificate import AUTHORITY_FILE, EdgeAuthority, given
from cellmesh.hypervisor.edge.options import EdgeMisconfigured

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


def names(pem: bytes) -> list[str]:
    """Return whose a certificate is."""
    extensions = x509.load_pem_x509_certificate(pem).extensions
    found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def test_an_authority_is_made_once_and_kept(tmp_path: Path) -> None:
    """Prove that a second start has the same authority, and that its key is the owner's alone."""
    first, second = (EdgeAuthority(tmp_path / "state").certificate_pem for _ in range(2))
    assert first == second
    assert (tmp_path / "state" / AUTHORITY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_browser_that_trusts_the_authority_trusts_the_edge(tmp_path: Path) -> None:
    """Prove by a verifier of the web's rules: for its names, within its time, and for nobody else."""
    authority = EdgeAuthority(tmp_path, clock=lambda: NOW)
    leaf = x509.load_pem_x509_certificate(authority.issue(("cell.test", "127.0.0.1")).chain)
    trusted = Store([x509.load_pem_x509_certificate(authority.certificate_pem)])
    policy = PolicyBuilder().store(trusted)
    policy.time(NOW).build_server_verifier(x509.DNSName("cell.test")).verify(leaf, [])
    with pytest.raises(VerificationError):
        policy.time(NOW).build_server_verifier(x509.DNSName("evil.test")).verify(leaf, [])
    with pytest.raises(VerificationError):
        policy.time(NOW + dt.timedelta(days=91)).build_server_verifier(x509.DNSName("cell.test")).verify(leaf, [])
    assert names(authority.issue(("cell.test", "127.0.0.1")).chain) == ["cell.test", "127.0.0.1"]


def test_it_is_renewed_before_it_ends(tmp_path: Path) -> None:
    """Prove that there is a month between the time to renew and the end."""
    issued = EdgeAuthority(tmp_path, clock=lambda: NOW).issue(("cell.test",))
    leaf = x509.load_pem_x509_certificate(issued.chain)
    assert leaf.not_valid_after_utc - issued.renew_at >= dt.timedelta(days=29)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc < dt.timedelta(days=398)


def test_the_key_is_never_printed(tmp_path: Path) -> None:
    """Prove that a certificate shown in a log has no key in it."""
    assert "PRIVATE" not in repr(EdgeAuthority(tmp_path).issue(("cell.test",)))


def test_a_certificate_that_is_given_is_used(tmp_path: Path) -> None:
    """Prove that chain and key are taken as they are, and that two that do not belong together are refused."""
    issued, other = (EdgeAuthority(tmp_path / name).issue(("cell.test",)) for name in ("a", "b"))
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(issued.chain)
    key.write_bytes(issued.key)
    taken = given(chain, key, clock=lambda: NOW)
    assert (taken.chain, taken.key) == (issued.chain, issued.key)
    assert taken.renew_at == NOW + dt.timedelta(hours=1), "who keeps it may replace it"
    key.write_bytes(other.key)
    with pytest.raises(EdgeMisconfigured, match="is not that of"):
        given(chain, key)
    for broken in (b"", b"no certificate", b"\xff"):
        chain.write_bytes(broken)
        with pytest.raises(EdgeMisconfigured, match="cannot be read"):
            given(chain, key)


def test_a_broken_authority_says_what_to_do(tmp_path: Path) -> None:
    """Prove that a file that cannot be read is not replaced in silence."""
    (tmp_path / AUTHORITY_FILE).write_bytes(b"broken")
    with pytest.raises(EdgeMisconfigured, match="Remove it"):
        EdgeAuthority(tmp_path)
