"""A real browser: no service worker of one app gets the pages of another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, async_playwright

from cellmesh.hypervisor.edge.answers import HOST_ONLY
from cellmesh.hypervisor.edge.options import EdgeOptions, Json, Listener
from support.envoy import ALICE, Spoil, furnish, running_edge
from support.ports import held_port
from support.toys import Toy, allowed

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CHROMIUM = Path("/usr/bin/chromium-headless-shell")
_PATIENCE_MILLISECONDS = 120_000
_WORKER = b"self.addEventListener('fetch', (e) => e.respondWith(new Response('taken over')));"
_REGISTER = """async ([script, scope]) => {
  try { return (await navigator.serviceWorker.register(script, {scope})).scope; } catch (error) { return error.name; }
}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Alice's apps on a port of this host, and a browser in which she is signed in."""

    url: str
    context: BrowserContext

    async def register(self, page: str, script: str, scope: str) -> str:
        """Return the scope a page's script got for its worker, or the name of the browser's error."""
        tab = await self.context.new_page()
        try:
            await tab.goto(f"{self.url}{page}")
            return str(await tab.evaluate(_REGISTER, [script, scope])).removeprefix(self.url)
        finally:
            await tab.close()


def _page(kind: str, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def _furnish(toy: Toy, name: str) -> None:
    script = _page("text/javascript", _WORKER, "service-worker-allowed: /\r\n")
    toy.raw["/page"] = _page("text/html", f"<h1>{name}</h1>".encode())
    for path in ("/", "/sw.js", "/a/sw.js"):
        toy.raw[path] = script


@asynccontextmanager
async def _site(spoil: Spoil = lambda config: config) -> AsyncIterator[Site]:
    with held_port() as port:

        def on_port(options: EdgeOptions) -> EdgeOptions:
            """Serve this host without TLS: browsers take its names for secure ones."""
            listener = Listener(host="127.0.0.1", port=port, tls=False)
            return replace(options, listeners=(*options.listeners, listener), domains=("cell.test", "localhost"))

        async with running_edge(on_port, spoil) as edge, async_playwright() as playwright:
            await furnish(edge)
            edge.authorizer.answer = lambda _: allowed(ALICE)
            for name in ("alice-live", "alice-dev", "alice-notes"):
                _furnish(edge.toys[name], name)
            browser = await playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
            try:
                context = await browser.new_context()
                context.set_default_timeout(_PATIENCE_MILLISECONDS)
                yield Site(url=f"http://localhost:{port}", context=context)
            finally:
                await browser.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[Site]:
    """Give one site to all tests here."""
    async with _site() as it:
        yield it


@pytest.mark.parametrize(
    "script", ["/dev/sw.js", "/dev/a/sw.js", "/dev", "/%64ev", "/dev?x", "/_/notes", "/_/notes/sw.js"]
)
@pytest.mark.parametrize("scope", ["/", "/page", "/_/"])
async def test_no_worker_of_another_app_gets_the_live_apps_pages(site: Site, script: str, scope: str) -> None:
    """Prove for each script below a prefix that the browser gives it nothing outside of that prefix."""
    got = await site.register("/dev/page", script, scope)
    assert got in {"SecurityError", "TypeError"}, got


async def test_a_worker_gets_its_own_apps_pages(site: Site) -> None:
    """Prove that service workers work, each below its app's prefix."""
    assert await site.register("/dev/page", "/dev/sw.js", "/dev/") == "/dev/"
    assert await site.register("/_/notes/page", "/_/notes/sw.js", "/_/notes/") == "/_/notes/"


async def test_without_the_filter_a_worker_of_dev_gets_the_live_apps_pages() -> None:
    """Prove that the test before can fail: with the header of the app let through, dev takes the live app over."""

    def spoil(config: Json) -> Json:
        for listener in config["static_resources"]["listeners"][:2]:  # type: ignore[index]
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            router = manager["http_filters"][-1]["typed_config"]
            left = [each for each in router["upstream_http_filters"] if each["name"] != HOST_ONLY]
            router["upstream_http_filters"] = left
        return config

    async with _site(spoil) as site:
        assert await site.register("/dev/page", "/dev/sw.js", "/") == "/"


async def test_without_the_refusal_a_script_at_the_prefix_gets_the_live_apps_pages() -> None:
    """Prove that the removed header alone is not enough: a script at `/dev` may serve `/` without it."""

    def spoil(config: Json) -> Json:
        for listener in config["static_resources"]["listeners"][:2]:  # type: ignore[index]
            host = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]
            host["routes"] = [route for route in host["routes"] if "service-worker" not in str(route["match"])]
        return config

    async with _site(spoil) as site:
        assert await site.register("/dev/page", "/dev", "/") == "/"
