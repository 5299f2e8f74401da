"""Traffic over an edge, and judges of it: who answered, and whether that one was to answer then.

Every answer of a simulated container names the container: a canary. What is not an answer of a container has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import aiohttp

from support.edge import Edge
from support.node import SECONDS

_SIGNATURE = "x-answered-by"
_NEVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """The container that gave an answer."""

    vm_id: str
    epoch: int
    container: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and what came of it; times are monotonic seconds."""

    user_id: str
    begun: float
    ended: float
    status: int
    canary: Canary | None
    fault: str = ""

    @property
    def failed(self) -> bool:
        """Tell whether no container answered."""
        return self.status != 200 or self.canary is None


def canary_of(answer: aiohttp.ClientResponse) -> Canary | None:
    """Return who gave an answer, or None if no container did."""
    if _SIGNATURE not in answer.headers:
        return None
    vm_id, epoch, container, generation = answer.headers[_SIGNATURE].split(" ")
    return Canary(vm_id=vm_id, epoch=int(epoch), container=container, generation=int(generation))


async def visit(visitor: aiohttp.ClientSession, user_id: str, path: str = "/") -> Exchange:
    """Ask once."""
    begun = time.monotonic()
    status, canary, fault = 0, None, ""
    try:
        async with visitor.get(path) as answer:
            said = await answer.read()
            status, canary = answer.status, canary_of(answer)
            fault = "" if status == 200 else said.decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError) as error:
        fault = repr(error)
    return Exchange(user_id=user_id, begun=begun, ended=time.monotonic(), status=status, canary=canary, fault=fault)


@dataclass(eq=False)
class _Wait:
    """Somebody who waits for requests that begin from now on."""

    since: float
    missing: int
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, exchange: Exchange) -> None:
        """Count a request that is over."""
        self.missing -= exchange.begun >= self.since
        if self.missing <= 0:
            self.over.set()


@dataclass(eq=False)
class Crowd:
    """Clients that ask again and again, each on a connection it keeps."""

    exchanges: list[Exchange] = field(default_factory=list)
    answering: set[str] = field(default_factory=set)
    """The VMs that have answered."""
    _waits: list[_Wait] = field(default_factory=list)

    def note(self, exchange: Exchange) -> None:
        """Take in what came of a request."""
        self.exchanges.append(exchange)
        if exchange.canary is not None:
            self.answering.add(exchange.canary.vm_id)
        for wait in self._waits:
            wait.note(exchange)

    async def answered(self, count: int) -> None:
        """Wait until so many requests are over that began after this call."""
        wait = _Wait(since=time.monotonic(), missing=count)
        self._waits.append(wait)
        async with asyncio.timeout(SECONDS):
            await wait.over.wait()
        self._waits.remove(wait)

    async def answered_by(self, vm_id: str) -> None:
        """Wait until a VM has answered."""
        async with asyncio.timeout(SECONDS):
            while vm_id not in self.answering:  # noqa: ASYNC110  # of so many that one of them waits for each
                await asyncio.sleep(0.01)

    async def ask(self, edge: Edge, user_id: str, path: str, pause: float) -> None:
        """Be one client, until cancelled."""
        async with edge.visitor(user_id, connections=1) as visitor:
            while True:
                self.note(await visit(visitor, user_id, path))
                await asyncio.sleep(pause)


@asynccontextmanager
async def crowd(edge: Edge, users: Iterable[str], *, path: str = "/", pause: float = 0.0) -> AsyncIterator[Crowd]:
    """Let a client of each of these users ask inside, `pause` seconds after each answer."""
    it = Crowd()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(it.ask(edge, user_id, path, pause)) for user_id in users]
        try:
            yield it
        finally:
            for task in asking:
                task.cancel()


class Routing:
    """Where one route led, and when: while it is switched it may lead to either."""

    def __init__(self, container: str) -> None:
        # Each target with the moment from which on it may answer, and the one after which it may not.
        self._spans: list[tuple[str, float, float]] = [(container, -_NEVER, _NEVER)]

    @contextmanager
    def switching(self, container: str) -> Iterator[None]:
        """Switch the route inside."""
        before, begun, _ = self._spans[-1]
        self._spans.append((container, time.monotonic(), _NEVER))
        yield
        self._spans[-2] = (before, begun, time.monotonic())

    def led_to(self, container: str, begun: float, ended: float) -> bool:
        """Tell whether the route led to a container at any instant between two."""
        for name, first, last in reversed(self._spans):
            if last < begun:
                return False
            if name == container and first <= ended:
                return True
        return False

    def misrouted(self, exchanges: Iterable[Exchange]) -> list[Exchange]:
        """Return the answers of a container that was not routed at any instant of the request."""
        return [
            each
            for each in exchanges
            if each.canary is not None and not self.led_to(each.canary.container, each.begun, each.ended)
        ]


@dataclass(eq=False)
class Line:
    """One WebSocket, over which what is said comes back."""

    socket: aiohttp.ClientWebSocketResponse
    canary: Canary
    echoes: int = 0
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    async def talk(self, pause: float) -> None:
        """Say something and hear it, again and again, until the other side hangs up."""
        with contextlib.suppress(ConnectionError, TypeError):
            while True:
                text = f"{self.canary.container} {self.echoes}"
                await self.socket.send_str(text)
                # Another kind of message than text ends the line: TypeError.
                if await self.socket.receive_str(timeout=SECONDS) != text:
                    break
                self.echoes += 1
                await asyncio.sleep(pause)
        self.lost.set()


@dataclass(eq=False)
class Lines:
    """WebSockets that are open, and talked over."""

    edge: Edge
    stack: AsyncExitStack
    tasks: asyncio.TaskGroup
    pause: float
    open: list[Line] = field(default_factory=list)

    async def add(self, user_id: str, path: str = "/") -> Line:
        """Open one more."""
        visitor = await self.stack.enter_async_context(self.edge.visitor(user_id))
        socket = await self.stack.enter_async_context(visitor.ws_connect(path))
        canary = canary_of(socket._response)
        assert canary is not None
        line = Line(socket=socket, canary=canary)
        self.open.append(line)
        task = self.tasks.create_task(line.talk(self.pause))
        self.stack.callback(task.cancel)
        return line

    def lost(self) -> list[Line]:
        """Return those the other side hung up on."""
        return [line for line in self.open if line.lost.is_set()]


@asynccontextmanager
async def lines(edge: Edge, *, pause: float = 0.1) -> AsyncIterator[Lines]:
    """Give what opens WebSockets inside, over each of which something is said every `pause` seconds."""
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        yield Lines(edge=edge, stack=stack, tasks=tasks, pause=pause)


@dataclass(eq=False)
class Tenancy:
    """Whose VM each was, and since when it is gone."""

    owners: dict[str, str] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)

    def came(self, vm_id: str, user_id: str) -> None:
        """Note a VM of a user."""
        self.owners[vm_id] = user_id

    def went(self, vm_id: str) -> None:
        """Note that a VM is gone."""
        self.gone[vm_id] = time.monotonic()

    def strangers(self, exchanges: Iterable[Exchange]) -> list[Exchange]:
        """Return the answers of a VM that is known to be another user's, or was gone before the request began."""
        return [each for each in exchanges if each.canary is not None and self._is_strange(each, each.canary)]

    def _is_strange(self, exchange: Exchange, canary: Canary) -> bool:
        if canary.vm_id not in self.owners:
            return False
        is_theirs = self.owners[canary.vm_id] == exchange.user_id
        return not is_theirs or self.gone.get(canary.vm_id, _NEVER) < exchange.begun
