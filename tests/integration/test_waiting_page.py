"""The page of the activator in a real browser: it turns into the app by itself, and harms nothing on the way."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from playwright.async_api import Page, async_playwright

from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2
from support.activator import activator, client, hypervisor, run_directory
from support.route_service import USER, Routes

_PATIENCE = 60.0
_APP = "<!doctype html><title>app</title><h1>The app itself</h1>"
_EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


def _waiting(reason: str, *, retry_after: int | None = 1, message: str = "Wait.") -> Routes:
    answer = route_service_pb2.ActivateRouteResponse(
        route=route_pb2.Route(
            state=route_pb2.ROUTE_STATE_WAITING,
            target=route_pb2.RouteTarget(container_name="sandbox-live"),
            reason=reason,
            message=message,
        ),
        retry_after=None if retry_after is None else Duration(seconds=retry_after),
    )
    return Routes(answer=answer)


@dataclass(slots=True)
class Edge:
    """Stands where Envoy does: passes requests to the activator until `serving`, then to an app."""

    activator: Path
    serving: bool = False
    app_status: int = 200
    asked: list[str] = field(default_factory=list)
    """Methods the app was asked with."""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Pass a request on."""
        if self.serving:
            if request.path == "/page":
                self.asked.append(request.method)
            status = 405 if request.method == "OPTIONS" else self.app_status
            return web.Response(status=status, text=_APP, content_type="text/html")
        headers = {**request.headers, "x-cellmesh-user": USER}
        async with (
            client(self.activator) as session,
            session.request(request.method, f"http://cell{request.path}", headers=headers) as got,
        ):
            kept = {name: value for name, value in got.headers.items() if name.lower() != "content-length"}
            return web.Response(status=got.status, headers=kept, body=await got.read())


@dataclass(slots=True, kw_only=True)
class Scene:
    """A browser before a cell that is cold."""

    page: Page
    edge: Edge
    routes: Routes
    url: str
    said: list[str] = field(default_factory=list)
    """What the browser complained about."""

    async def open(self) -> str:
        """Go to the app; return the page that was served."""
        answer = await self.page.goto(self.url)
        assert answer is not None
        return await answer.text()

    async def shows(self, text: str) -> None:
        """Wait until the page's heading is this."""
        await self.page.locator("h1", has_text=text).wait_for(timeout=1000 * _PATIENCE)


@asynccontextmanager
async def _scene(routes: Routes, *, scripts: bool = True, **environment: str) -> AsyncIterator[Scene]:
    shell = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    assert shell, "There is no Chromium: apt-get install chromium-headless-shell"
    with run_directory() as run_dir:
        async with (
            activator(run_dir, **environment) as made,
            hypervisor(run_dir, routes),
            async_playwright() as playwright,
        ):
            edge = Edge(made.socket)
            runner = web.ServerRunner(web.Server(edge.answer), shutdown_timeout=1.0)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/page?token=once"
            browser = await playwright.chromium.launch(executable_path=shell, args=["--no-sandbox"])
            try:
                page = await browser.new_page(java_script_enabled=scripts)
                scene = Scene(page=page, edge=edge, routes=routes, url=url)
                page.on("pageerror", lambda error: scene.said.append(str(error)))
                page.on("console", lambda message: scene.said.append(message.text))
                yield scene
            finally:
                await browser.close()
                await runner.cleanup()


@pytest.mark.asyncio
async def test_page_turns_into_the_app() -> None:
    """The app is shown as soon as it serves, and was asked for once: a link that works once still works."""
    async with _scene(_waiting("VM_STARTING")) as scene, asyncio.timeout(_PATIENCE):
        await scene.open()
        await scene.shows("Your cell is starting")
        scene.edge.serving = True
        await scene.shows("The app itself")
        assert scene.page.url == scene.url
        assert scene.edge.asked.count("GET") == 1
        assert set(scene.edge.asked) == {"OPTIONS", "GET"}


@pytest.mark.asyncio
async def test_page_turns_into_the_app_without_scripts() -> None:
    """Where scripts are off the page loads itself again until it is the app."""
    async with _scene(_waiting("VM_STARTING"), scripts=False) as scene, asyncio.timeout(_PATIENCE):
        await scene.open()
        await scene.shows("Your cell is starting")
        scene.edge.serving = True
        await scene.shows("The app itself")
        assert set(scene.edge.asked) == {"GET"}


@pytest.mark.asyncio
async def test_page_follows_what_it_waits_for() -> None:
    """A cell that started and an app that failed are told in turn, and a failed one that was mended is shown."""
    async with _scene(_waiting("VM_STARTING")) as scene, asyncio.timeout(_PATIENCE):
        await scene.open()
        await scene.shows("Your cell is starting")
        scene.routes.answer = _waiting("CONTAINER_STARTING").answer
        await scene.shows("The app is starting")
        scene.routes.answer = _waiting("CONTAINER_FAILED", retry_after=None, message="It died. Mend it.").answer
        await scene.shows("The app failed")
        assert await scene.page.locator("#message").inner_text() == "It died. Mend it."
        assert await scene.page.locator("#waited").count() == 0
        scene.edge.serving = True
        await scene.shows("The app itself")


@pytest.mark.asyncio
async def test_long_wait_is_told_while_it_goes_on() -> None:
    """The seconds are counted on the page, and beyond the budget it says what to do, without being loaded again."""
    async with _scene(_waiting("VM_STARTING"), CELLMESH_WAIT_BUDGET="5") as scene, asyncio.timeout(_PATIENCE):
        # What was served says so; what is shown of it after a pause of this test may have turned late by then.
        assert '<p id="late" role="status" hidden>' in await scene.open()
        await scene.page.locator("#late").wait_for(state="visible")
        assert int(await scene.page.locator("#waited").inner_text()) >= 5


@pytest.mark.asyncio
async def test_nothing_on_the_page_runs_but_its_own() -> None:
    """Markup in a message is text, the page's own script and style are let in by their hashes, nothing is fetched."""
    fetched: list[str] = []
    async with _scene(_waiting("VM_STARTING", message=_EVIL)) as scene, asyncio.timeout(_PATIENCE):
        scene.page.on("request", lambda request: fetched.append(f"{request.method} {request.url}"))
        async with scene.page.expect_request(lambda request: request.method == "OPTIONS"):
            await scene.open()
        assert await scene.page.locator("#message").inner_text() == _EVIL
        await scene.page.locator("#waited", has_text=re.compile("[2-9]")).wait_for()
        assert await scene.page.title() == "Your cell is starting"
        assert await scene.page.locator("body").evaluate("body => getComputedStyle(body).maxWidth") != "none"
        refusals = [line for line in scene.said if "503" not in line]
        assert refusals == []
        plain = scene.url.partition("?")[0]
        assert set(fetched) == {f"GET {scene.url}", f"OPTIONS {plain}"}
