"""`cellmesh up` with its edge, and `cellmesh route` on it: real Envoy and activator, simulated VMs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

import aiohttp
import pytest

from support.cli_stage import SECONDS, Stage, interrupt, ready, runs, stage
from support.node import Node


@asynccontextmanager
async def up(it: Stage) -> AsyncIterator[tuple[asyncio.subprocess.Process, Mapping[str, Any]]]:
    """Run `cellmesh up` inside, and give what it says of its edge."""
    process = await it.spawn("up", "--json", "--stop-vms")
    try:
        said = await ready(process)
        yield process, {**said["edge"], "hypervisor": said["pid"]}
        if process.returncode is None:
            assert await interrupt(process) == 0
    finally:
        if process.returncode is None:
            # After a failure too, it is to end what it started; killed, it would leave that behind.
            with suppress(TimeoutError):
                await interrupt(process)
        if process.returncode is None:
            process.kill()
            await process.wait()
        # Whatever a failure left running belongs to this test alone.
        await Node(it.directory, it.hub.binary).end_everything()


@asynccontextmanager
async def authenticator(edge: Mapping[str, Any]) -> AsyncIterator[None]:
    """Run the development authenticator inside."""
    group = [] if edge["gid"] is None else ["--gid", str(edge["gid"])]
    argv = [sys.executable, "-m", "dev_authenticator", "--socket", edge["authorizer"], *group]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            assert await process.stdout.readline()
        yield
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def client(
    it: Stage, edge: Mapping[str, Any], user: str = "", *, keep_alive: bool = False
) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a client that trusts this host's own authority, as `user` if one is named."""
    trust = ssl.create_default_context(cafile=str(it.directory / "state" / "edge-authority.pem"))
    headers = {"Authorization": f"Bearer dev-{user}"} if user else {}
    connector = aiohttp.TCPConnector(ssl=trust, force_close=not keep_alive)
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(edge["url"], connector=connector, headers=headers, timeout=timeout) as session:
        yield session


async def answered(session: aiohttp.ClientSession, path: str = "/") -> tuple[int, Mapping[str, Any]]:
    """Ask until there is an answer at all, and return its status and JSON."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                async with session.get(path) as answer:
                    return answer.status, await answer.json()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def served(session: aiohttp.ClientSession) -> Mapping[str, Any]:
    """Ask until a container answers, and return its words: of one that is well by now, the edge hears after us."""
    async with asyncio.timeout(SECONDS):
        while True:
            status, said = await answered(session)
            if status == HTTPStatus.OK:
                return said
            await asyncio.sleep(0.05)


@pytest.mark.asyncio
async def test_up_runs_an_edge_that_refuses_all_until_somebody_decides() -> None:
    """Without an authorizer nobody passes; Envoy and activator come back when killed, and end with the node."""
    async with stage() as it, up(it) as (process, edge):
        assert not edge["authorizer_answers"]
        async with client(it, edge, str(uuid.uuid4())) as session:
            assert (await answered(session))[0] == 503
            for pid in edge["pids"].values():
                os.kill(pid, signal.SIGKILL)
            async with authenticator(edge):
                status, body = await answered(session)
                # An Envoy that has just come back may not have been told yet that nobody has a cell.
                assert (status, bool(body["reason"])) in {(404, True), (503, True)}
        assert await interrupt(process) == 0
        assert not any([await runs(pid) for pid in edge["pids"].values()])


@pytest.mark.asyncio
async def test_an_edge_does_not_outlive_who_keeps_it() -> None:
    """When `up` itself is killed, Envoy and activator end too: nobody would start them again or end them."""
    async with stage() as it, up(it) as (process, edge):
        process.kill()
        await process.wait()
        try:
            async with asyncio.timeout(SECONDS):
                while any([await runs(pid) for pid in edge["pids"].values()]):  # noqa: ASYNC110  # others' processes
                    await asyncio.sleep(0.05)
        finally:
            os.kill(edge["hypervisor"], signal.SIGKILL)
            # Nobody here is its parent; while it dies it may still write where everything is removed next.
            async with asyncio.timeout(SECONDS):
                while await runs(edge["hypervisor"]):  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.05)


@pytest.mark.asyncio
async def test_routes_are_switched_and_counted() -> None:
    """A switch ends when the edge serves it: the next request is the other container's, and `top` has counted both."""
    user = str(uuid.uuid4())
    async with stage() as it, up(it) as (_, edge), authenticator(edge), client(it, edge, user) as session:
        created = (await it.run("vm", "create", "--user", user, "--wait", "--json")).splitlines()
        vm = json.loads(created[-1])["vm"]["vm_id"]
        for name in ("sandbox-live", "sandbox-dev"):
            await it.run("container", "start", f"{vm}/{name}", "--image", it.image, "--wait")
        routes = json.loads(await it.run("route", "ls", vm, "--json"))["routes"]
        assert [(route["prefix"], route["state"]) for route in routes] == [
            ("/", "ROUTE_STATE_SERVING"),
            ("/dev/", "ROUTE_STATE_SERVING"),
        ]
        assert (await served(session))["container"] == "sandbox-live"
        for container in ("sandbox-dev", "sandbox-live"):
            switched = json.loads(await it.run("route", "switch", vm, "/", container, "--json"))
            assert switched["route"]["target"]["container_name"] == container
            assert (await answered(session))[1]["container"] == container
        await it.run("route", "switch", vm, "/", "sandbox-dev", "--expect-revision", "1", code=5)
        await it.run("route", "switch", vm, "/", "nobody", code=3)
        assert (await it.run("events", vm)).decode().count("SWITCHED / ") == 2
        assert await _counted(it, vm) >= 3


@pytest.mark.asyncio
async def test_what_is_open_ends_before_the_edge_does() -> None:
    """At Ctrl-C clients are asked to leave, and a download that has begun still comes whole."""
    # More than lies in all buffers on its way, and little enough for the seconds an edge drains.
    user, size = str(uuid.uuid4()), 32 << 20
    async with stage() as it, up(it) as (process, edge), authenticator(edge), client(it, edge, user) as session:
        created = (await it.run("vm", "create", "--user", user, "--wait", "--json")).splitlines()
        vm = json.loads(created[-1])["vm"]["vm_id"]
        await it.run("container", "start", f"{vm}/sandbox-live", "--image", it.image, "--wait")
        await served(session)
        async with client(it, edge, user, keep_alive=True) as other, session.get(f"/bytes/{size}") as download:
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(SECONDS):
                while not await _is_asked_to_leave(other):  # noqa: ASYNC110  # another process; it tells nobody
                    await asyncio.sleep(0.01)
            received = 0
            async for piece in download.content.iter_any():
                received += len(piece)
        assert received == size
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0


@pytest.mark.asyncio
async def test_an_edge_that_can_not_be_is_said_before_anything_starts() -> None:
    """A taken port ends `up` with what to do; `--no-edge` runs the node without it."""
    async with stage() as it:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", it.port)
        async with server:
            process = await it.spawn("up", "--json")
            _, errors = await process.communicate()
            assert (process.returncode, json.loads(errors)["error"]["reason"]) == (5, "EDGE_ADDRESS_TAKEN")
            assert not (it.directory / "run" / "operator.sock").exists()
            node = await it.spawn("up", "--json", "--no-edge")
            assert "edge" not in await ready(node)
            assert not (it.directory / "run" / "edge" / "envoy.json").exists()
            assert await interrupt(node) == 0


async def _is_asked_to_leave(session: aiohttp.ClientSession) -> bool:
    async with session.get("/") as answer:
        return answer.headers.get("Connection") == "close"


async def _counted(it: Stage, vm: str) -> int:
    """Return how often a VM's live page was asked for, by the first line of `route top`."""
    process = await it.spawn("route", "top", vm, "--json")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            traffic = json.loads(await process.stdout.readline())["traffic"]
    finally:
        process.terminate()
        await process.wait()
    return int(next(line["requests"] for line in traffic if line["prefix"] == "/"))
