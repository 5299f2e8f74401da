"""Writes what Envoy starts with: its configuration and its certificate.

A process of its own: what signing takes of memory is gone with it. It reads the hypervisor's settings from its input
and answers with when it should be run again.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from cellmesh.hypervisor.edge.bootstrap import bootstrap, write
from cellmesh.hypervisor.edge.certificate import Certificate, EdgeAuthority, given, secret
from cellmesh.hypervisor.edge.options import EdgeMisconfigured, EdgeOptions, Listener
from cellmesh.hypervisor.settings import HypervisorSettings

UNUSABLE = 78
_EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared, not bound


def main() -> None:
    """Write the files; exit 78 with the reason if the edge cannot be configured so."""
    settings = HypervisorSettings.model_validate_json(sys.stdin.buffer.read())
    try:
        renew_at = prepare(settings)
    except (EdgeMisconfigured, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(UNUSABLE)
    sys.stdout.write(json.dumps({"renew_at": renew_at.isoformat()}))


def prepare(settings: HypervisorSettings) -> datetime:
    """Write both files and return when the certificate should be renewed. Raises EdgeMisconfigured, OSError."""
    options = options_of(settings)
    certificate = _certificate(settings, options)
    group = settings.edge_group
    write(options.certificate_file, secret(certificate), group=group)
    write(options.bootstrap_file, bootstrap(options), group=group)
    return certificate.renew_at


def options_of(settings: HypervisorSettings) -> EdgeOptions:
    """Return what the edge is given. Raises EdgeMisconfigured."""
    host, _, port = settings.edge_listen.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    return EdgeOptions(
        directory=settings.edge_dir,
        listeners=(Listener(host=bare, port=int(port), tls=settings.edge_tls),),
        domains=_domains(settings.edge_domains, bare),
        limits=settings.edge_limits,
        authorizer=settings.edge_authorizer,
        otlp=_otlp(settings.otlp_endpoint),
    )


def _domains(named: str, host: str) -> tuple[str, ...]:
    if named:
        return tuple(domain.strip() for domain in named.split(","))
    own = () if host in _EVERYWHERE or ":" in host or host == "localhost" else (host,)
    return ("localhost", *own)


def _otlp(endpoint: str | None) -> tuple[str, int] | None:
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    return None if parts.hostname is None or parts.port is None else (parts.hostname, parts.port)


def _certificate(settings: HypervisorSettings, options: EdgeOptions) -> Certificate:
    if settings.edge_certificate is not None and settings.edge_key is not None:
        return given(settings.edge_certificate, settings.edge_key)
    authority = EdgeAuthority(settings.state_dir)
    return _kept(options, authority) or authority.issue(options.domains)


def _kept(options: EdgeOptions, authority: EdgeAuthority) -> Certificate | None:
    """Return the certificate that is there, so that nobody has to look at another one after each start.

    None if it is due, for other names, signed by another authority, or no certificate of ours at all.
    """
    try:
        document = json.loads(options.certificate_file.read_bytes())
        pems = document["resources"][0]["tls_certificate"]
        chain, key = (pems[part]["inline_string"].encode() for part in ("certificate_chain", "private_key"))
        leaf = x509.load_pem_x509_certificate(chain)
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, LookupError, TypeError, AttributeError, InvalidSignature, x509.ExtensionNotFound):
        return None
    renew_at = leaf.not_valid_before_utc + (leaf.not_valid_after_utc - leaf.not_valid_before_utc) * 2 / 3
    if datetime.now(UTC) >= renew_at or {str(name.value) for name in names} != set(options.domains):
        return None
    return Certificate(chain=chain, key=key, renew_at=renew_at)


if __name__ == "__main__":
    main()
