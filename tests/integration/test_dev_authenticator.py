"""The development authenticator's process answers the edge's question, in the edge's messages."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2

from cellmesh.envoy.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from support.contracts import ROOT
from support.node import short_directory

USER = "00000000-0000-4000-8000-00000000000a"
OTHER = "00000000-0000-4000-8000-00000000000b"
_PATIENCE = 60.0


@asynccontextmanager
async def _running(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run it until it serves or ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dev_authenticator", *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_PATIENCE):
            await process.stdout.readline()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _check(path: Path, target: str = "/", **headers: str) -> external_auth_pb2.CheckResponse:
    request = external_auth_pb2.CheckRequest()
    http = request.attributes.request.http
    http.method, http.path, http.host, http.scheme = "GET", target, "cell.test", "https"
    http.headers.update(headers)
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        answer: external_auth_pb2.CheckResponse = await external_auth_pb2_grpc.AuthorizationStub(channel).Check(
            request, timeout=_PATIENCE
        )
        return answer


def _headers(options: object) -> dict[str, str]:
    """Return headers by name; every one of them replaces what is there."""
    assert {option.append_action for option in options} == {2}  # type: ignore[attr-defined]
    return {option.header.key: option.header.value for option in options}  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_edge_is_told_who_asks() -> None:
    """An OK names the user and takes the proof away; a refusal is a whole answer, a page for people."""
    with short_directory() as directory:
        path = directory / "a.sock"
        async with _running("--socket", str(path)):
            let_in = await _check(path, cookie=f"a=1; cellmesh_dev_user={USER}")
            assert let_in.status.code == code_pb2.OK
            assert _headers(let_in.ok_response.headers) == {"x-cellmesh-user": USER, "cookie": "a=1"}
            let_in = await _check(path, authorization=f"Bearer dev-{USER}")
            assert _headers(let_in.ok_response.headers) == {"x-cellmesh-user": USER}
            assert list(let_in.ok_response.headers_to_remove) == ["authorization"]

            sent_on = await _check(path, f"/.cellmesh/sign-in?user={USER}")
            assert (sent_on.status.code, sent_on.denied_response.status.code) == (code_pb2.UNAUTHENTICATED, 302)
            assert _headers(sent_on.denied_response.headers)["set-cookie"].startswith(f"cellmesh_dev_user={USER}; ")

            refused = await _check(path)
            assert (refused.status.code, refused.denied_response.status.code) == (code_pb2.UNAUTHENTICATED, 401)
            assert json.loads(refused.denied_response.body)["reason"] == "NOT_SIGNED_IN"
            refused = await _check(path, accept="text/html")
            assert refused.denied_response.body.startswith("<!doctype html>")
            assert _headers(refused.denied_response.headers)["content-type"] == "text/html; charset=utf-8"

            doubtful = await _check(path, cookie=f"cellmesh_dev_user={USER},cellmesh_dev_user={OTHER}")
            assert (doubtful.status.code, doubtful.denied_response.status.code) == (code_pb2.INVALID_ARGUMENT, 400)


@pytest.mark.asyncio
async def test_it_says_what_it_is_and_whom_it_lets_in() -> None:
    """It warns before it serves, lets in who is named and nobody else, and ends when asked to."""
    with short_directory() as directory:
        path = directory / "a.sock"
        async with _running("--socket", str(path), "--user", USER.upper()) as process:
            assert (await _check(path, authorization=f"Bearer dev-{USER}")).status.code == code_pb2.OK
            refused = await _check(path, authorization=f"Bearer dev-{OTHER}")
            assert (refused.status.code, refused.denied_response.status.code) == (code_pb2.PERMISSION_DENIED, 403)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(_PATIENCE):
                _, said = await process.communicate()
        assert process.returncode == 0
        assert b"DEVELOPMENT AUTHENTICATOR" in said
        assert USER.encode() in said


@pytest.mark.asyncio
async def test_everybody_is_said_to_be_let_in() -> None:
    """Without a list it says so, loudly."""
    with short_directory() as directory:
        async with _running("--socket", str(directory / "a.sock")) as process:
            process.terminate()
            async with asyncio.timeout(_PATIENCE):
                _, said = await process.communicate()
        assert b"EVERY user id" in said


@pytest.mark.asyncio
async def test_socket_is_the_edges_and_one_authenticators() -> None:
    """Only the edge's group may ask; a second one is refused the path, and what a dead one left is cleared away."""
    with short_directory() as directory:
        path = directory / "a.sock"
        group = ("--gid", "599999") if os.geteuid() == 0 else ()
        async with _running("--socket", str(path), *group) as process:
            found = path.stat()
            assert stat.S_IMODE(found.st_mode) == 0o660
            assert not group or found.st_gid == 599_999
            async with _running("--socket", str(path)) as second, asyncio.timeout(_PATIENCE):
                _, said = await second.communicate()
                assert (second.returncode, b"served already" in said) == (1, True)
            assert (await _check(path)).denied_response.status.code == 401
            process.kill()
            await process.wait()
        assert path.exists()
        async with _running("--socket", str(path)):
            assert (await _check(path)).denied_response.status.code == 401


@pytest.mark.asyncio
@pytest.mark.parametrize("arguments", [(), ("--socket", "/nowhere/a.sock"), ("--socket", "x", "--user", "nobody")])
async def test_what_cannot_be_served_ends_it(arguments: tuple[str, ...]) -> None:
    """A missing or impossible socket, or a user that is no id, ends it with words."""
    async with _running(*arguments) as process, asyncio.timeout(_PATIENCE):
        _, said = await process.communicate()
        assert process.returncode
        assert b"dev_authenticator" in said
