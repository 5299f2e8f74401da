"""What the hypervisor leaves for Envoy to start with: from its settings, in a process of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from pydantic import ValidationError

from cellmesh.hypervisor.edge import upkeep
from cellmesh.hypervisor.edge.admin import EnvoyAdmin
from cellmesh.hypervisor.edge.certificate import AUTHORITY_FILE
from cellmesh.hypervisor.edge.options import EdgeMisconfigured
from cellmesh.hypervisor.edge.prepare import options_of, prepare
from cellmesh.hypervisor.edge.upkeep import EdgeUpkeep
from cellmesh.hypervisor.limits import Limits, RouteLimits
from cellmesh.hypervisor.settings import HypervisorSettings
from cellmesh.hypervisor.vmm.liveness import Watch
from cellmesh.hypervisor.vmm.processor import ProcessorTime


@pytest.fixture
def settings(tmp_path: Path) -> HypervisorSettings:
    """Give the settings of a node with an edge."""
    made = _settings(tmp_path)
    made.edge_dir.mkdir(parents=True)
    return made


def _settings(directory: Path, **fields: object) -> HypervisorSettings:
    usual = {"run_dir": directory / "run", "state_dir": directory / "state", "vmm": "/bin/true"}
    return HypervisorSettings.model_validate({**usual, "edge_listen": "127.0.0.1:8443", **fields})


def _leaf(settings: HypervisorSettings) -> x509.Certificate:
    document = json.loads((settings.edge_dir / "certificate.json").read_text())
    chain = document["resources"][0]["tls_certificate"]["certificate_chain"]["inline_string"]
    return x509.load_pem_x509_certificate(chain.encode())


def _names(settings: HypervisorSettings) -> set[str]:
    names = _leaf(settings).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


@pytest.mark.asyncio
async def test_both_files_are_there_before_an_envoy_starts(settings: HypervisorSettings) -> None:
    """Configuration and certificate, readable by the edge's group and by nobody else, without a word of it here."""
    await EdgeUpkeep(settings, EnvoyAdmin(settings.edge_dir / "admin.sock")).prepare()
    config = json.loads((settings.edge_dir / "envoy.json").read_text())
    address = config["static_resources"]["listeners"][0]["address"]["socket_address"]
    assert (address["address"], address["port_value"]) == ("127.0.0.1", 8443)
    assert _names(settings) == {"localhost", "127.0.0.1"}
    for name in ("envoy.json", "certificate.json"):
        found = (settings.edge_dir / name).stat()
        assert found.st_mode & 0o777 == 0o640
        assert found.st_gid == (settings.edge_group if os.geteuid() == 0 else os.getegid())


def test_a_certificate_is_kept_from_start_to_start(settings: HypervisorSettings) -> None:
    """Who has looked at it once need not look again; for other names, or by another authority, there is another."""
    renew_at = prepare(settings)
    first = _leaf(settings)
    assert abs(prepare(settings) - renew_at) < timedelta(hours=1)
    assert _leaf(settings) == first
    assert renew_at - datetime.now(UTC) > timedelta(days=30)
    prepare(settings.model_copy(update={"edge_domains": "cell.example"}))
    assert _leaf(settings) != first
    assert _names(settings) == {"cell.example"}
    second = _leaf(settings)
    (settings.state_dir / AUTHORITY_FILE).unlink()
    prepare(settings.model_copy(update={"edge_domains": "cell.example"}))
    assert _leaf(settings) != second


def test_a_certificate_that_is_none_is_replaced(settings: HypervisorSettings) -> None:
    """Whatever lies there keeps no node from starting."""
    for rubbish in ("", "{}", '{"resources": [null]}', '{"resources": [{"tls_certificate": 7}]}'):
        (settings.edge_dir / "certificate.json").write_text(rubbish)
        prepare(settings)
        assert _names(settings) == {"localhost", "127.0.0.1"}


@pytest.mark.parametrize(
    ("listen", "domains"),
    [
        ("127.0.0.1:8443", ("localhost", "127.0.0.1")),
        ("0.0.0.0:443", ("localhost",)),
        ("[::1]:8443", ("localhost",)),
        ("edge.example:443", ("localhost", "edge.example")),
    ],
)
def test_the_edge_answers_to_its_own_name(tmp_path: Path, listen: str, domains: tuple[str, ...]) -> None:
    """Unless names are given, localhost and the host it listens on are enough."""
    options = options_of(_settings(tmp_path, edge_listen=listen))
    assert options.domains == domains
    assert (options.listeners[0].port, options.listeners[0].tls) == (int(listen.rpartition(":")[2]), True)
    named = options_of(_settings(tmp_path, edge_listen=listen, edge_domains="a.example, b.example".replace(" ", "")))
    assert named.domains == ("a.example", "b.example")


@pytest.mark.asyncio
async def test_an_edge_that_cannot_be_is_told_in_a_sentence(tmp_path: Path) -> None:
    """Without TLS where others may reach it: refused by the hypervisor's start, and nothing is written."""
    settings = _settings(tmp_path, edge_listen="192.0.2.1:80", edge_tls=False)
    settings.edge_dir.mkdir(parents=True)
    with pytest.raises(EdgeMisconfigured, match="TLS only"):
        await EdgeUpkeep(settings, EnvoyAdmin(settings.edge_dir / "admin.sock")).prepare()
    assert list(settings.edge_dir.iterdir()) == []


def test_a_certificate_has_its_key(tmp_path: Path) -> None:
    """One without the other is a fault of the settings."""
    with pytest.raises(ValueError, match="given together"):
        _settings(tmp_path, edge_key=tmp_path / "key.pem")


@pytest.mark.asyncio
async def test_upkeep_renews_what_is_due(settings: HypervisorSettings) -> None:
    """A certificate past its time is written anew while the node runs; one that is not is left alone."""
    now = datetime.now(UTC)
    keeper = EdgeUpkeep(settings, EnvoyAdmin(settings.edge_dir / "admin.sock"), clock=lambda: now)
    await keeper.prepare()
    file = settings.edge_dir / "certificate.json"
    before = file.stat().st_mtime_ns
    await keeper.look()
    assert file.stat().st_mtime_ns == before
    now += timedelta(days=80)
    await keeper.look()
    assert file.stat().st_mtime_ns > before


@pytest.mark.parametrize("is_starved", [True, False])
@pytest.mark.asyncio
async def test_only_time_that_could_be_used_counts(
    settings: HypervisorSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_starved: bool
) -> None:
    """What writes the files may take longer than its limit by the clock while it gets no processor, and not else."""
    slow = tmp_path / "slow"
    slow.write_text(f'#!/bin/sh\nsleep 3\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(upkeep, "_PATIENCE", timedelta(seconds=2))
    if is_starved:
        always = lambda: ProcessorTime(used=0.0, waited=time.monotonic())  # noqa: E731
        monkeypatch.setattr(Watch, "of", lambda _: Watch(always))
    preparing = EdgeUpkeep(settings, EnvoyAdmin(settings.edge_dir / "admin.sock")).prepare()
    if is_starved:
        await preparing
        assert _names(settings) == {"localhost", "127.0.0.1"}
    else:
        with pytest.raises(EdgeMisconfigured, match="in time"):
            await preparing


def test_limits_are_settings(tmp_path: Path) -> None:
    """What a setting names is so, the rest as usual, and it survives the way to the process that writes the files."""
    settings = _settings(tmp_path, edge_limits={"stream_lifetime": 60}, edge_route_limits={"connections": 7})
    read = HypervisorSettings.model_validate_json(settings.model_dump_json())
    assert options_of(read).limits == Limits(stream_lifetime=timedelta(minutes=1))
    assert read.edge_route_limits == RouteLimits(connections=7)


@pytest.mark.parametrize(
    "fields",
    [
        {"edge_limits": {"body_bytes": 0}},
        {"edge_limits": {"header_timeout": -1}},
        {"edge_limits": {"bodybytes": 1}},
        {"edge_route_limits": {"connections": 129}},
    ],
)
def test_limits_that_cannot_be_are_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    """No limit is nothing or unknown, and no route promises more than its guest takes."""
    with pytest.raises(ValidationError):
        _settings(tmp_path, **fields)
