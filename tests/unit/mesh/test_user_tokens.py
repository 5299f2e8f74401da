"""What a user token has to be, and how the keys it is verified with change."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellmesh.mesh import user_tokens
from cellmesh.mesh.errors import UserTokenExpired, UserTokenInvalid, UserTokenKeysUnavailable
from cellmesh.mesh.identity import Cell, User
from support.issuer import AUDIENCE, SESSION, USER, Issuer, encoded, forged, public, unsigned

CELL = {"vm_id": SESSION, "container": "sandbox-live", "generation": 3, "epoch": 2}
NOW = int(time.time())


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    """Give an issuer whose keys are published."""
    made = Issuer(tmp_path / "keys.json")
    made.publish()
    return made


def test_token_of_a_session_says_whose_it_is(issuer: Issuer) -> None:
    """Each claim that domain code may read is there."""
    token = issuer.token(jti="0123456789abcdef", scope="vm:read")
    assert issuer.verifier()(token) == User(
        user_id=USER, session_id=SESSION, scopes=frozenset({"vm:read"}), token_id="0123456789abcdef"
    )


def test_token_of_a_cell_says_which_life_of_it(issuer: Issuer) -> None:
    """A token that a container got names its VM, container, generation and epoch, and no session."""
    user = issuer.verifier()(issuer.token(sid=None, cell=CELL, scope=""))
    assert (user.cell, user.session_id, user.scopes) == (
        Cell(vm_id=SESSION, container="sandbox-live", generation=3, epoch=2),
        "",
        frozenset(),
    )


@pytest.mark.parametrize(
    "claims",
    [
        *({name: None} for name in ("iss", "aud", "sub", "sid", "scope", "iat", "exp", "jti")),
        {"admin": True},
        {"nbf": NOW},
        {"cell": CELL},
        {"iss": "spiffe://cellmesh.internal/service/memory"},
        {"aud": [AUDIENCE]},
        {"aud": [AUDIENCE, "spiffe://cellmesh.internal/service/memory"]},
        {"aud": AUDIENCE + "/"},
        {"sub": USER.upper()},
        {"sub": "root"},
        {"sub": USER + "\n"},
        {"sub": 7},
        {"sid": ""},
        {"sid": "x"},
        {"scope": ["vm:read"]},
        {"scope": "vm:read  vm:write"},
        {"scope": "vm:read vm:read"},
        {"scope": "VM"},
        {"scope": " ".join(f"s{number}" for number in range(33))},
        {"iat": NOW + 86_400, "exp": NOW + 86_460},
        {"exp": NOW + 302, "iat": NOW},
        {"exp": NOW, "iat": NOW},
        {"exp": str(NOW + 60)},
        {"exp": NOW + 60.5},
        {"exp": True},
        {"iat": -1, "exp": 10},
        {"iat": 10**30, "exp": 10**30 + 10},
        {"jti": ""},
        {"jti": "short"},
        {"jti": "a" * 65},
        *({"sid": None, "cell": {**CELL, **wrong}} for wrong in ({"epoch": 0}, {"generation": "3"}, {"vm_id": "x"})),
        {"sid": None, "cell": {**CELL, "container": "../etc"}},
        {"sid": None, "cell": {**CELL, "root": True}},
        {"sid": None, "cell": {"vm_id": SESSION}},
        {"sid": None, "cell": "vm"},
    ],
)
def test_claims_that_are_not_whole_are_refused(issuer: Issuer, claims: dict[str, Any]) -> None:
    """A claim that is missing, unknown or malformed makes a token worthless, whoever signed it."""
    with pytest.raises(UserTokenInvalid):
        issuer.verifier()(issuer.token(**claims))


@pytest.mark.parametrize("claims", [[], "text", None, 1])
def test_payload_that_is_no_object_is_refused(issuer: Issuer, claims: object) -> None:
    """What is signed and no object is refused."""
    with pytest.raises(UserTokenInvalid):
        issuer.verifier()(issuer.signed(claims))


@pytest.mark.parametrize(
    "header",
    [
        {"kid": None},
        {"kid": "other"},
        {"typ": None},
        {"typ": "JWT"},
        *({"alg": alg} for alg in ("none", "None", "NONE", "", "HS256", "ES256", "RS256", "Ed448", None)),
        {"crit": ["exp"]},
        {"b64": False},
        {"zip": "DEF"},
        {"jku": "https://evil.example/keys.json"},
        {"x5u": "https://evil.example/certificate.pem"},
        {"jwk": public("evil", Ed25519PrivateKey.generate())},
    ],
)
def test_header_with_anything_else_is_refused(issuer: Issuer, header: dict[str, Any]) -> None:
    """Only alg, kid and typ stand in a header, each with the value there is."""
    with pytest.raises(UserTokenInvalid):
        issuer.verifier()(issuer.token(header=header))


def test_signature_is_looked_at(issuer: Issuer, tmp_path: Path) -> None:
    """A changed signature, none, another's, a changed claim, and HMAC with the public key are refused."""
    good = issuer.token()
    head, claims, signature = good.split(".")
    stranger = Issuer(tmp_path / "other.json")
    changed = issuer.claims() | {"sub": SESSION}
    hs256 = f"{encoded(json.dumps({'alg': 'HS256', 'kid': 'first', 'typ': user_tokens.TYPE}).encode())}.{claims}"
    key = issuer.keys["first"].public_key().public_bytes_raw()
    bad = [
        forged(good),
        unsigned(good),
        f"{head}.{claims}.",
        stranger.token(),
        f"{head}.{encoded(json.dumps(changed).encode())}.{signature}",
        f"{hs256}.{encoded(hmac.new(key, hs256.encode(), hashlib.sha256).digest())}",
    ]
    verifier = issuer.verifier()
    for token in bad:
        with pytest.raises(UserTokenInvalid):
            verifier(token)
    assert verifier(good).user_id == USER


def test_token_expires_where_it_was_verified_before_too(issuer: Issuer) -> None:
    """What was verified once is refused from the second of its expiry on."""
    now = [float(NOW)]
    verifier = issuer.verifier(clock=lambda: now[0])
    token = issuer.token(iat=NOW, exp=NOW + 300)
    assert verifier(token).user_id == USER
    now[0] = NOW + 299.9
    assert verifier(token).user_id == USER
    now[0] = NOW + 300
    for _ in range(2):
        with pytest.raises(UserTokenExpired):
            verifier(token)


def test_keys_rotate(issuer: Issuer) -> None:
    """A key that is added counts at once, and what a key signed that was taken away counts no more."""
    verifier = issuer.verifier()
    old = issuer.token()
    assert verifier(old).user_id == USER
    issuer.keys["second"] = Ed25519PrivateKey.generate()
    issuer.kid = "second"
    new = issuer.token()
    with pytest.raises(UserTokenInvalid):
        verifier(new)
    issuer.publish()
    assert verifier(new).user_id == verifier(old).user_id == USER
    del issuer.keys["first"]
    issuer.publish()
    with pytest.raises(UserTokenInvalid):
        verifier(old)
    assert verifier(new).user_id == USER


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_at": NOW - 1},
        {"expires_at": None},
        {"expires_at": str(NOW + 60)},
        {"keys": []},
        {"keys": {}},
        {"keys": [public("a", Ed25519PrivateKey.generate())] * 2},
        {"keys": [public(f"k{number}", Ed25519PrivateKey.generate()) for number in range(17)]},
        {"keys": [{**public("a", Ed25519PrivateKey.generate()), "d": "AAAA"}]},
        {"keys": [{**public("a", Ed25519PrivateKey.generate()), "alg": "HS256"}]},
        {"keys": [{**public("a", Ed25519PrivateKey.generate()), "x": "AAAA"}]},
        {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a", "alg": "HS256"}]},
        {"more": 1},
    ],
)
def test_document_that_is_not_whole_verifies_nothing(issuer: Issuer, changes: dict[str, Any]) -> None:
    """A document that is stale or malformed fails closed, for tokens that were verified too, until it is replaced."""
    verifier, token = issuer.verifier(), issuer.token()
    assert verifier(token).user_id == USER
    issuer.publish(**changes)
    with pytest.raises(UserTokenKeysUnavailable, match=r"Let auth write it again"):
        verifier(token)
    issuer.publish()
    assert verifier(token).user_id == USER


def test_document_that_is_absent_or_anybodys_verifies_nothing(issuer: Issuer) -> None:
    """No document, no JSON, too long a one, and one that others may write fail closed."""
    verifier, token = issuer.verifier(), issuer.token()
    issuer.document.chmod(0o666)
    issuer.document.write_text(issuer.document.read_text() + " ")
    with pytest.raises(UserTokenKeysUnavailable, match="written by others"):
        verifier(token)
    issuer.document.chmod(0o600)
    for content in ("", "{", "[" * 60_000, '{"keys": [], "keys": []}', " " * 70_000):
        issuer.document.write_text(content)
        with pytest.raises(UserTokenKeysUnavailable):
            verifier(token)
    issuer.document.unlink()
    with pytest.raises(UserTokenKeysUnavailable):
        verifier(token)


def test_what_is_remembered_is_bounded(issuer: Issuer) -> None:
    """A verifier remembers a bounded number of tokens, and forgets the oldest first."""
    verifier = issuer.verifier()
    tokens = [issuer.token() for _ in range(user_tokens._CACHED + 10)]
    for token in tokens:
        verifier(token)
    assert len(verifier._verified) == user_tokens._CACHED
    assert hashlib.sha256(tokens[0].encode()).digest() not in verifier._verified
    assert hashlib.sha256(tokens[-1].encode()).digest() in verifier._verified


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(data=st.data())
def test_no_change_of_a_token_is_accepted_or_gets_an_answer_of_its_own(issuer: Issuer, data: st.DataObject) -> None:
    """A token with anything changed is refused with a sentence that holds nothing of it, or is the same to the byte."""
    good = issuer.token(jti="0123456789abcdef")
    at = data.draw(st.integers(0, len(good) - 1))
    piece = data.draw(st.text("AZaz09-_.", max_size=3))
    changed = good[:at] + piece + good[at + 1 :]
    try:
        issuer.verifier()(changed)
    except UserTokenInvalid as error:
        told = error.message
    else:
        assert [_raw(part) for part in changed.split(".")] == [_raw(part) for part in good.split(".")]
        return
    assert [part for part in changed.split(".") if len(part) > 8 and part in told] == []


def _raw(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


@pytest.mark.parametrize("header", ["[" * 3000, "{" * 3000, '{"a":' * 500], ids=["lists", "objects", "nested"])
def test_deep_header_is_no_fault_of_ours(issuer: Issuer, header: str) -> None:
    """A header that is too deep to read is the token's fault."""
    with pytest.raises(UserTokenInvalid):
        issuer.verifier()(f"{encoded(header.encode())}.e30.AAAA")
