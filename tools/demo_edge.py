"""The demo's edge: who decides, and somebody at a browser who looks at the served pages."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from demo_node import DemoError

SIGN_IN = "/.cellmesh/sign-in"
USUAL_PORT = 8443
PATHS = {"live": "/", "dev": "/dev/"}
ANSWER_SECONDS = 60.0
WAKE_SECONDS = 300.0
_AS_BROWSER = {"Accept": "text/html"}
_AS_PROGRAM = {"Accept": "application/json"}


@contextmanager
def held_address() -> Iterator[str]:
    """Give an address of this machine that is nobody else's inside, another demo's neither: the usual one if it can be.

    It is bound without leave to share it, which is given only then: who names it can listen there.
    """
    for port in (USUAL_PORT, 0):
        with socket.socket() as holder:
            try:
                holder.bind(("127.0.0.1", port))
            except OSError:
                continue
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            yield f"127.0.0.1:{holder.getsockname()[1]}"
            return
    raise DemoError("No port is free.")


@contextmanager
def authenticator(path: Path, log: Path, *, gid: int | None) -> Iterator[None]:
    """Run the development authenticator inside: it believes whoever signs in, so it is for demos and tests only.

    `gid` is the edge's group, which may ask it.
    """
    argv = [sys.executable, "-m", "dev_authenticator", "--socket", str(path)]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*argv, *([] if gid is None else ["--gid", str(gid)])], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        _await_socket(process, path, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_socket(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise DemoError(f"The development authenticator did not start: {log.read_text()}") from None
                time.sleep(0.05)
            else:
                return


def _done(visit: Coroutine[Any, Any, str]) -> str:
    try:
        return asyncio.run(visit)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise DemoError(f"The edge did not answer as it should: {error!r}") from error


class Browser:
    """Somebody who looks at one user's pages; every call is a visit with fresh connections and cookies."""

    def __init__(self, address: str, authority: Path, user: str) -> None:
        self.address = address.rstrip("/")
        self._authority = authority
        self._user = user

    @property
    def sign_in_link(self) -> str:
        """Return the link that signs the user in."""
        return f"{self.address}{SIGN_IN}?user={self._user}"

    def look(self, name: str) -> str:
        """Open a page as a browser does, and talk to its WebSocket; return what was there."""
        return _done(self._look(name))

    def look_without_session(self) -> str:
        """Ask for the live page without having signed in, as a browser and as a program; return what was answered."""
        return _done(self._refused())

    def served_by(self, path: str) -> str:
        """Return the name of the container that answers at a path."""
        return _done(self._served_by(path))

    def wake(self) -> str:
        """Ask for a page of a stopped VM until it is there, as often as the answers say; return how it went."""
        return _done(self._wake())

    async def _look(self, name: str) -> str:
        async with self._session() as session:
            path = PATHS[name]
            async with session.get(path, headers=_AS_BROWSER) as answer:
                page = await answer.text()
                if answer.status != 200 or f"sandbox-{name}" not in page:
                    raise DemoError(f"{path} answered {answer.status}, not the page of sandbox-{name}: {page[:200]!r}")
            async with session.ws_connect(f"{path}ws") as connection:
                await connection.send_str("hello")
                echo = await connection.receive_str(timeout=ANSWER_SECONDS)
            if echo != "hello":
                raise DemoError(f"The WebSocket at {path}ws sent {echo!r} back.")
            async with session.get(f"{path}whoami") as answer:
                me = await answer.json()
        return f"{self.address}{path}: {len(page)} bytes and a WebSocket by {me['container']}, prefix {me['prefix']!r}"

    async def _refused(self) -> str:
        async with self._session(signed_in=False) as session:
            async with session.get("/", headers=_AS_BROWSER) as page, session.get("/", headers=_AS_PROGRAM) as answer:
                statuses = [page.status, answer.status]
            try:
                async with session.ws_connect("/ws"):
                    raise DemoError("A WebSocket was opened without a session.")
            except aiohttp.WSServerHandshakeError as error:
                statuses.append(error.status)
        if set(statuses) != {401}:
            raise DemoError(f"Without a session the answers were {statuses}.")
        return "page, program and WebSocket are answered 401"

    async def _served_by(self, path: str) -> str:
        async with self._session() as session, session.get(f"{path}whoami") as answer:
            return str((await answer.json())["container"])

    async def _wake(self) -> str:
        start = time.monotonic()
        waits = 0
        async with self._session() as session:
            while time.monotonic() - start < WAKE_SECONDS:
                async with session.get("/", headers=_AS_PROGRAM) as answer:
                    if answer.status == 200 and waits == 0:
                        raise DemoError("A stopped VM answered at once.")
                    if answer.status == 200:
                        return f"{waits} answers 503 with Retry-After, the page after {time.monotonic() - start:.1f} s"
                    body = await answer.text()
                    retry_after = answer.headers.get("Retry-After")
                if answer.status != 503 or retry_after is None:
                    raise DemoError(f"A request of a stopped VM was answered {answer.status}: {body[:300]}")
                waits += 1
                await asyncio.sleep(float(retry_after))
        raise DemoError(f"The page is not there after {WAKE_SECONDS:g} s; the last answer was {body[:300]}")

    @asynccontextmanager
    async def _session(self, *, signed_in: bool = True) -> AsyncIterator[aiohttp.ClientSession]:
        context = ssl.create_default_context(cafile=str(self._authority))
        async with aiohttp.ClientSession(
            self.address,
            connector=aiohttp.TCPConnector(ssl=context),
            # An address without a name has cookies too.
            cookie_jar=aiohttp.CookieJar(unsafe=True),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
        ) as session:
            if signed_in:
                async with session.get(SIGN_IN, params={"user": self._user}, allow_redirects=False) as answer:
                    if answer.status != 302:
                        raise DemoError(f"The sign-in answered {answer.status}.")
            yield session
