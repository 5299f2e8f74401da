"""The repository's shape is what its imports rely on."""

from __future__ import annotations

import ast
import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.contracts import ROOT

_MEMBERS = {
    "gen": ROOT / "gen" / "cellmesh",
    "mesh": ROOT / "mesh" / "src",
    "service": ROOT / "service" / "src",
    "hypervisor": ROOT / "hypervisor" / "src",
    "guest-agent": ROOT / "guest-agent" / "src",
    "image": ROOT / "image" / "src",
    "cli": ROOT / "cli" / "src",
}
# What each distribution may take of cellmesh.
_OURS = {
    "gen": {"cellmesh.api", "cellmesh.envoy"},
    "mesh": {"cellmesh.api", "cellmesh.mesh"},
    "service": {"cellmesh.api", "cellmesh.mesh", "cellmesh.service"},
    "hypervisor": {
        "cellmesh.api",
        "cellmesh.envoy",
        "cellmesh.mesh",
        "cellmesh.service",
        "cellmesh.hypervisor",
        "cellmesh.image",
    },
    "guest-agent": {"cellmesh.api", "cellmesh.guest"},
    "image": {"cellmesh.image"},
    "cli": {"cellmesh.api", "cellmesh.mesh", "cellmesh.hypervisor", "cellmesh.image", "cellmesh.cli"},
}
_MEMBER_OF = {
    "cellmesh-gen": "gen",
    "cellmesh-mesh": "mesh",
    "cellmesh-service": "service",
    "cellmesh-hypervisor": "hypervisor",
    "cellmesh-image": "image",
}
# Import names that differ from the distribution's.
_NAMES = {
    "googleapis-common-protos": {"google"},
    "grpcio": {"grpc"},
    "grpcio-channelz": {"grpc_channelz"},
    "grpcio-health-checking": {"grpc_health"},
    "grpcio-reflection": {"grpc_reflection"},
    "grpcio-status": {"grpc_status"},
    "opentelemetry-api": {"opentelemetry"},
    "opentelemetry-exporter-otlp-proto-grpc": {"opentelemetry"},
    "opentelemetry-instrumentation-grpc": {"opentelemetry"},
    "opentelemetry-sdk": {"opentelemetry"},
    "protobuf": {"google"},
    "pyjwt": {"jwt"},
    "pydantic-settings": {"pydantic_settings", "pydantic"},
    "sqlalchemy": {"sqlalchemy"},
}


def _imports(source: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                if node.module == "cellmesh":
                    yield from ((path, f"cellmesh.{alias.name}") for alias in node.names)
                else:
                    yield path, node.module


def _dependencies(member: str) -> set[str]:
    """Return the import names a distribution's pyproject asks for."""
    project = tomllib.loads((ROOT / member / "pyproject.toml").read_text())["project"]
    names: set[str] = set()
    for requirement in project["dependencies"]:
        name = requirement.split(";")[0].split("[")[0].split(">")[0].split("<")[0].split("=")[0].split("~")[0].strip()
        names |= _NAMES.get(name.lower(), {name.lower().replace("-", "_")})
        if name in _MEMBER_OF:
            # What it stands on comes with it.
            names |= _dependencies(_MEMBER_OF[name])
    return names


def test_no_top_level_folder_is_a_package() -> None:
    """`import secrets` is the standard library's, whatever folders there are beside it."""
    assert [path.parent.name for path in ROOT.glob("*/__init__.py")] == []
    assert importlib.import_module("secrets").__file__ in {f"{path}/secrets.py" for path in sys.path}
    assert not (Path(str(importlib.import_module("secrets").__file__))).is_relative_to(ROOT)


def test_cellmesh_is_a_namespace() -> None:
    """No distribution owns `cellmesh` itself, so that they install side by side."""
    assert [str(path) for source in _MEMBERS.values() for path in source.glob("cellmesh/__init__.py")] == []
    assert importlib.import_module("cellmesh").__file__ is None


@pytest.mark.parametrize("member", _MEMBERS)
def test_distribution_takes_only_what_it_may_of_ours(member: str) -> None:
    """The guest agent knows the contracts only, images know nobody, and mesh no service."""
    strays = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, name in _imports(_MEMBERS[member])
        if name.startswith("cellmesh.") and ".".join(name.split(".")[:2]) not in _OURS[member]
    ]
    assert strays == []


@pytest.mark.parametrize("member", _MEMBERS)
def test_distribution_names_what_it_imports(member: str) -> None:
    """What a distribution imports from others stands in its own pyproject, or comes with another of ours."""
    known = _dependencies(member) | sys.stdlib_module_names | {"cellmesh", "buf", "_typeshed"}
    strays = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, name in _imports(_MEMBERS[member])
        if name.split(".")[0] not in known
    ]
    assert strays == []
