"""What a contract's comments promise is what its options and enums say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

import protos
from cellmesh.mesh.errors import Code
from cellmesh.mesh.policy import policy_of

_ERROR = re.compile(r"\b([A-Z][A-Z_]+)/([A-Z][A-Z0-9_]+)\b")
_SERVICE, _METHOD, _ENUM, _VALUE, _MESSAGE, _FIELD = 6, 2, 5, 2, 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """An RPC with its comment and that of its service."""

    path: str
    comment: str
    service_comment: str


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """Give our contracts with their comments."""
    every = protos._image(tmp_path_factory.mktemp("image"))
    return [file for file in every.file if file.name.startswith("cellmesh/")]


@pytest.fixture(scope="module")
def rpcs(image: list[descriptor_pb2.FileDescriptorProto]) -> list[Rpc]:
    """Give every RPC with its comments."""
    return [rpc for file in image for rpc in _rpcs(file)]


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {tuple(where.path): " ".join(where.leading_comments.split()) for where in file.source_code_info.location}


def _rpcs(file: descriptor_pb2.FileDescriptorProto) -> Iterator[Rpc]:
    comments = _comments(file)
    for s, service in enumerate(file.service):
        for m, method in enumerate(service.method):
            yield Rpc(
                path=f"/{file.package}.{service.name}/{method.name}",
                comment=comments.get((_SERVICE, s, _METHOD, m), ""),
                service_comment=comments.get((_SERVICE, s), ""),
            )


def _reasons(image: list[descriptor_pb2.FileDescriptorProto]) -> dict[str, set[str]]:
    """Return the reasons of each package, without their prefix."""
    return {
        file.package: {
            value.name.removeprefix("ERROR_REASON_") for value in enum.value if not value.name.endswith("_UNSPECIFIED")
        }
        for file in image
        for enum in file.enum_type
        if enum.name == "ErrorReason"
    }


def test_every_rpc_says_callers_idempotence_and_errors(rpcs: list[Rpc]) -> None:
    """A reader of the contract finds who may call, what a retry does, and how it fails, in this order."""
    assert rpcs
    shape = re.compile(r"\S.*\. Callers: .+\. Idempotent: .+\. Errors: .+\.$")
    assert [rpc.path for rpc in rpcs if not shape.fullmatch(rpc.comment)] == []


def test_callers_in_comments_are_those_of_the_policy(rpcs: list[Rpc]) -> None:
    """Nobody is let in who is not named, nor named who is not let in."""
    for rpc in rpcs:
        match = re.search(r"Callers: (.+?)\. Idempotent:", rpc.comment)
        assert match is not None
        named = {name.strip().upper().replace(" ", "_") for name in match[1].split(",")}
        assert named == {role.name for role in policy_of(rpc.path).callers}, rpc.path


def test_errors_in_comments_exist(rpcs: list[Rpc], image: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Every CODE/REASON has a code of gRPC and a reason of the package or of all."""
    reasons = _reasons(image)
    common = reasons["cellmesh.api.common.v1"]
    for rpc in rpcs:
        known = reasons.get(rpc.path[1:].rpartition("/")[0].rpartition(".")[0], set()) | common
        for code, reason in _ERROR.findall(rpc.comment + rpc.service_comment):
            assert code in Code.__members__, f"{rpc.path}: {code} is no code"
            assert reason in known, f"{rpc.path}: {reason} is in no error_reason.proto"


def test_every_reason_is_promised_somewhere(image: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """No reason is declared that no RPC's or service's comment names."""
    words = " ".join(comment for file in image for comment in _comments(file).values())
    promised = {reason for _, reason in _ERROR.findall(words)}
    # These are what goes wrong below any contract.
    below = {"INTERNAL", "DOWNSTREAM_UNAVAILABLE", "STORE_UNAVAILABLE"}
    for package, reasons in _reasons(image).items():
        assert reasons - promised - below == set(), package


def test_every_message_field_and_value_is_described(image: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Nothing in a contract stands without a sentence about it."""
    bare = []
    for file in image:
        comments = _comments(file)
        for m, message in enumerate(file.message_type):
            bare += [(file.name, message.name)] if not comments.get((_MESSAGE, m)) else []
            bare += [
                (message.name, each.name)
                for f, each in enumerate(message.field)
                if not comments.get((_MESSAGE, m, _FIELD, f))
            ]
        for e, enum in enumerate(file.enum_type):
            bare += [
                (enum.name, value.name) for v, value in enumerate(enum.value) if not comments.get((_ENUM, e, _VALUE, v))
            ]
    assert bare == []


def test_generated_code_is_fresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gen/ is what the generator writes today, and buf finds nothing."""
    assert protos.check(tmp_path) == 0, capsys.readouterr().err
