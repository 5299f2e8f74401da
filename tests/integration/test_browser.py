"""A real browser at the pages of a real guest: Debian's Chromium, through Envoy, bridge and relay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, Page, async_playwright, expect

from cellmesh.image import ContainerImage, GuestImage
from support.edge import DEV, LIVE, Cell, Edge, edge_of, listening
from support.ports import held_port
from support.real_node import PATIENCE, real_node

_CHROMIUM = Path("/usr/bin/chromium-headless-shell")
_MILLISECONDS = 1000 * PATIENCE
_DOWNLOAD_BYTES = 50 << 20
_SIGN_IN = "/.cellmesh/sign-in"

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A browser in which the owner of a cell has signed in."""

    edge: Edge
    cell: Cell
    context: BrowserContext

    @asynccontextmanager
    async def page(self, path: str) -> AsyncIterator[Page]:
        """Open a page in a tab of its own."""
        page = await self.context.new_page()
        try:
            await page.goto(path)
            yield page
        finally:
            await page.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(guest_image: GuestImage, example_images: dict[str, ContainerImage]) -> AsyncIterator[Desk]:
    """Give one guest with both examples and one browser to all tests here."""
    with held_port() as port:
        async with (
            real_node(guest_image, example_images.values(), **listening(port)) as it,
            edge_of(it, port) as edge,
            _browser(edge) as context,
        ):
            vm = await it.running()
            cell = Cell(vm_id=vm.vm_id, user_id=vm.user_id)
            for name, path in ((LIVE, "/"), (DEV, "/dev/")):
                await it.start_container(cell.vm_id, example_images[name.removeprefix("sandbox-")].digest, name)
                await edge.until_served(cell, path)
            page = await context.new_page()
            await page.goto(f"{_SIGN_IN}?user={cell.user_id}")
            await page.close()
            yield Desk(edge=edge, cell=cell, context=context)


@asynccontextmanager
async def _browser(edge: Edge) -> AsyncIterator[BrowserContext]:
    """Yield what a person's browser keeps between pages; that the certificate is trusted, other tests check."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        try:
            context = await browser.new_context(base_url=edge.url, ignore_https_errors=True)
            context.set_default_timeout(_MILLISECONDS)
            yield context
        finally:
            await browser.close()


@pytest.mark.parametrize(("path", "name", "prefix"), [("/", LIVE, "/"), ("/dev/", DEV, "/dev"), ("/dev", DEV, "/dev")])
async def test_a_page_and_its_websocket(desk: Desk, path: str, name: str, prefix: str) -> None:
    """Prove that each page is its container's, knows where it is served, and hears what is said to it."""
    async with desk.page(path) as page:
        await expect(page.locator("h1")).to_have_text(name, timeout=_MILLISECONDS)
        await expect(page.locator("#prefix")).to_have_text(prefix, timeout=_MILLISECONDS)
        await expect(page.locator("#socket")).to_have_text("open", timeout=_MILLISECONDS)
        await page.fill("#prompt", "Is anybody there?")
        await page.click("#bar button")
        await expect(page.locator("#said li").last).to_have_text(f"{name}: Is anybody there?", timeout=_MILLISECONDS)


async def test_a_download(desk: Desk) -> None:
    """Prove that fifty megabytes come through a browser's hands as they were sent."""
    async with desk.page("/") as page:
        async with page.expect_download(timeout=_MILLISECONDS) as starting:
            await page.click("#download")
        path = await (await starting.value).path()
    content = path.read_bytes()
    assert len(content) == _DOWNLOAD_BYTES
    assert content == bytes(range(256)) * (_DOWNLOAD_BYTES // 256)


async def test_a_stranger_sees_no_page(desk: Desk) -> None:
    """Prove that a browser nobody has signed in with is refused, with something to read."""
    assert desk.context.browser is not None
    context = await desk.context.browser.new_context(base_url=desk.edge.url, ignore_https_errors=True)
    context.set_default_timeout(_MILLISECONDS)
    try:
        page = await context.new_page()
        answer = await page.goto("/")
        assert answer is not None
        assert answer.status == 401
        assert LIVE not in await page.inner_text("body")
    finally:
        await context.close()


async def test_a_cold_start_turns_into_the_app(desk: Desk) -> None:
    """Prove that who asks for a stopped cell sees that it starts, and then the app, without doing anything."""
    await desk.edge.it.stop_vm(desk.cell.vm_id)
    page = await desk.context.new_page()
    answer = await page.goto("/")
    assert answer is not None
    assert answer.status == 503
    await expect(page.locator("#message")).not_to_be_empty(timeout=_MILLISECONDS)
    assert await page.locator("#socket").count() == 0
    await expect(page.locator("h1")).to_have_text(LIVE, timeout=_MILLISECONDS)
    await expect(page.locator("#said li").last).to_have_text(f"{LIVE}: hello", timeout=_MILLISECONDS)
    await page.close()
