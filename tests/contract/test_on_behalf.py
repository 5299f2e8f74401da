"""For whom each RPC acts, by what its call brings: a table made from the contracts, tried on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from cellmesh.mesh import identity, policy
from cellmesh.mesh.errors import MeshError
from cellmesh.mesh.identity import Caller, Role, User
from cellmesh.mesh.on_behalf import TOKEN_KEY, USER_KEY, Verify
from cellmesh.mesh.policy import ActsFor, policy_of
from cellmesh.mesh.server import MeshServer
from support.contracts import METHODS, AnyService, path_of, refusal
from support.issuer import AUDIENCE, OTHER_USER, USER, Believer, Issuer, forged, unsigned
from support.samples import sample

Metadata = list[tuple[str, str]]
Outcome = str
"""`served as USER`, `served as nobody`, or the reason of the error."""
_NOBODY, _AS_USER, _AS_OTHER = "served as nobody", f"served as {USER}", f"served as {OTHER_USER}"


@dataclass(frozen=True, slots=True)
class Case:
    """What a call brings, and what comes of it; `named` is the outcome where the request names USER."""

    brings: Callable[[Issuer], Metadata]
    none: Outcome
    optional: Outcome
    required: Outcome
    named: Outcome | None = None

    def outcome(self, method: MethodDescriptor) -> Outcome:
        """Return what comes of it for a method."""
        found = policy_of(path_of(method))
        if found.user_fields and self.named is not None:
            return self.named
        return {ActsFor.NONE: self.none, ActsFor.OPTIONAL: self.optional, ActsFor.REQUIRED: self.required}[
            found.acts_for
        ]


def _token(make: Callable[[Issuer], str]) -> Callable[[Issuer], Metadata]:
    return lambda issuer: [(TOKEN_KEY, make(issuer))]


def _refused(make: Callable[[Issuer], str], reason: str = "USER_TOKEN_INVALID") -> Case:
    return Case(_token(make), "USER_NOT_ACCEPTED", reason, reason)


_PAST = {"iat": 1_700_000_000, "exp": 1_700_000_300}
SERVICE = {
    "no token": Case(lambda _: [], _NOBODY, _NOBODY, "USER_MISSING"),
    "token": Case(_token(Issuer.token), "USER_NOT_ACCEPTED", _AS_USER, _AS_USER),
    "expired": _refused(lambda issuer: issuer.token(**_PAST), "USER_TOKEN_EXPIRED"),
    "other audience": _refused(lambda issuer: issuer.token(aud=AUDIENCE.replace("hypervisor", "memory"))),
    "other user": Case(
        _token(lambda issuer: issuer.token(sub=OTHER_USER)), "USER_NOT_ACCEPTED", _AS_OTHER, _AS_OTHER, "USER_MISMATCH"
    ),
    "wrong signature": _refused(lambda issuer: forged(issuer.token())),
    "alg none": _refused(lambda issuer: unsigned(issuer.token())),
    "rubbish": _refused(lambda _: "rubbish"),
    "too long": _refused(lambda issuer: issuer.token(scope="a" * 4096)),
    "twice": Case(
        lambda issuer: [(TOKEN_KEY, issuer.token())] * 2,
        "USER_NOT_ACCEPTED",
        "USER_TOKEN_INVALID",
        "USER_TOKEN_INVALID",
    ),
    "names a user": Case(lambda _: [(USER_KEY, USER)], "USER_NOT_ACCEPTED", "USER_NOT_ACCEPTED", "USER_NOT_ACCEPTED"),
}
OPERATOR = {
    "no user": Case(lambda _: [], _NOBODY, _NOBODY, "USER_MISSING", _AS_USER),
    "user": Case(lambda _: [(USER_KEY, USER)], "USER_NOT_ACCEPTED", _AS_USER, _AS_USER),
    "other user": Case(lambda _: [(USER_KEY, OTHER_USER)], "USER_NOT_ACCEPTED", _AS_OTHER, _AS_OTHER, "USER_MISMATCH"),
    "no UUID": Case(lambda _: [(USER_KEY, "root")], "USER_NOT_ACCEPTED", "INVALID_REQUEST", "INVALID_REQUEST"),
    "user and token": Case(
        lambda issuer: [(USER_KEY, USER), (TOKEN_KEY, issuer.token())],
        "USER_NOT_ACCEPTED",
        "INVALID_REQUEST",
        "INVALID_REQUEST",
    ),
    "token": SERVICE["token"],
    "wrong signature": SERVICE["wrong signature"],
}


@asynccontextmanager
async def _served(directory: Path, verify: Verify | None) -> AsyncIterator[tuple[AnyService, list[User | None]]]:
    """Serve every RPC on an operator socket and on a socket of each other role; give whom calls acted for."""
    users: list[User | None] = []

    async def note(_: grpc.aio.ServicerContext[Any, Any]) -> None:
        users.append(identity.acting_user())

    service = AnyService(behave=note)
    server = MeshServer([service.register], verify=verify)
    server.add_operator_socket(directory / Role.OPERATOR.name)
    for role in set(Role) - {Role.OPERATOR}:
        caller = Caller(role=role, name=role.name)
        server.add_unix_socket(directory / role.name, services=[service.register], caller=caller)
    async with server:
        yield service, users


def _request(method: MethodDescriptor) -> Message:
    """Return a valid request that names USER where it can name one."""
    along = tuple(method.input_type.fields_by_name[name] for name in policy_of(path_of(method)).user_fields)
    return sample(method.input_type, {"user_id": lambda: USER}, along=along)


async def _outcomes(
    directory: Path, method: MethodDescriptor, role: Role, cases: dict[str, Case], issuer: Issuer, users: list[Any]
) -> dict[str, Outcome]:
    outcomes = {}
    async with grpc.aio.insecure_channel(f"unix:{directory / role.name}") as channel:
        for name, case in cases.items():
            users.clear()
            error = await refusal(channel, method, _request(method), metadata=case.brings(issuer))
            outcomes[name] = _outcome(error, users)
    return outcomes


def _outcome(error: MeshError | None, users: list[User | None]) -> Outcome:
    if error is not None:
        assert users == []
        return error.reason
    (user,) = users
    return _NOBODY if user is None else f"served as {user.user_id}"


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    """Give an issuer whose keys are published."""
    made = Issuer(tmp_path / "keys.json")
    made.publish()
    return made


@pytest.mark.asyncio
async def test_each_rpc_acts_for_whom_the_table_says(method: MethodDescriptor, issuer: Issuer, tmp_path: Path) -> None:
    """Every role that may call, with every kind of token and of named user, gets what the table says."""
    async with _served(tmp_path, issuer.verifier()) as (_, users):
        for role in policy_of(path_of(method)).callers:
            cases = OPERATOR if role is Role.OPERATOR else SERVICE
            outcomes = await _outcomes(tmp_path, method, role, cases, issuer, users)
            assert outcomes == {name: case.outcome(method) for name, case in cases.items()}, role.name


def test_table_has_rpcs_of_each_kind() -> None:
    """The table is about something: RPCs that never, may and must act for a user, and some that name one."""
    found = [policy_of(path_of(method)) for method in METHODS]
    assert {each.acts_for for each in found} == set(ActsFor)
    assert any(each.user_fields for each in found)


@pytest.mark.asyncio
async def test_control_a_verifier_that_believes_is_found_out(issuer: Issuer, tmp_path: Path) -> None:
    """Control: where no signature and no audience is looked at, the table does not hold."""
    method = next(each for each in METHODS if policy_of(path_of(each)).acts_for is ActsFor.OPTIONAL)
    role = next(role for role in policy_of(path_of(method)).callers if role is not Role.OPERATOR)
    async with _served(tmp_path, Believer()) as (_, users):
        outcomes = await _outcomes(tmp_path, method, role, SERVICE, issuer, users)
    wrong = {name for name, case in SERVICE.items() if outcomes[name] != case.outcome(method)}
    assert {"expired", "other audience", "wrong signature", "alg none"} <= wrong


@pytest.mark.asyncio
async def test_guest_brings_no_user_to_an_rpc_that_would_take_one(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest with a good token is refused even if a contract should let guests call and act for users."""
    method = next(each for each in METHODS if Role.GUEST_AGENT in policy_of(path_of(each)).callers)
    careless = policy.MethodPolicy(
        default_deadline=5,
        max_deadline=5,
        retry=policy.Retry.NONE,
        callers=frozenset({Role.GUEST_AGENT}),
        acts_for=ActsFor.OPTIONAL,
    )
    monkeypatch.setattr("cellmesh.mesh.interceptor.policy_of", lambda _: careless)
    async with _served(tmp_path, issuer.verifier()) as (_, users):
        outcomes = await _outcomes(tmp_path, method, Role.GUEST_AGENT, SERVICE, issuer, users)
    assert outcomes["token"] == "USER_NOT_ACCEPTED"
    assert outcomes["no token"] == _NOBODY


@pytest.mark.asyncio
async def test_service_without_keys_accepts_no_token(issuer: Issuer, tmp_path: Path) -> None:
    """Without a key document, or with one that is gone, a token is refused, and a call without one is served."""
    method = next(each for each in METHODS if policy_of(path_of(each)).acts_for is ActsFor.OPTIONAL)
    for verify in (None, issuer.verifier()):
        issuer.document.unlink(missing_ok=True)
        async with _served(tmp_path, verify) as (_, users):
            outcomes = await _outcomes(tmp_path, method, Role.SERVICE, SERVICE, issuer, users)
        assert outcomes["token"] == "USER_TOKEN_KEYS_UNAVAILABLE"
        assert outcomes["no token"] == _NOBODY
