"""What one Envoy was told of one kind of resource, and what it said to that: no I/O, no waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cellmesh.envoy.discovery.v3 import discovery_pb2

PUSH_RESOURCES = 2_000
"""The most resources in one response: half a megabyte of clusters."""
MAX_NAMES = 1_000_000
"""The most names one Envoy may ask for."""
_WILDCARD = "*"
_MESSAGE_CHARACTERS = 1_000


class TooManyNames(ValueError):
    """An Envoy asks for more than there can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """A resource as it shall be."""

    resource: discovery_pb2.Resource
    version: int  # of the whole, when it last changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What an Envoy would not take."""

    version: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Push:
    nonce: str
    sent: dict[str, Desired | None]


class Subscription:
    """The incremental state of one kind of resource on one stream.

    One response is under way at a time. A response of several resources that is refused is sent again in halves, so
    that one bad resource keeps no other back; the bad one alone is not sent again until it changes.
    """

    def __init__(self, type_url: str, *, everything: bool, desired: Callable[[str], Desired | None]) -> None:
        self._type_url = type_url
        self._everything = everything
        self._desired = desired
        self._started = False
        # An Envoy that starts waits for the first answer, even if there is nothing to tell.
        self._unanswered = everything
        self._wanted: set[str] = set()
        self._held: dict[str, str] = {}
        self._dirty: dict[str, None] = {}  # in the order they changed
        self._halves: deque[Sequence[str]] = deque()
        self._under_way: _Push | None = None
        self._count = 0
        self.taken: dict[str, int] = {}
        """The version of the whole each resource was taken at."""
        self.refused: dict[str, Refusal] = {}

    def hear(self, request: discovery_pb2.DeltaDiscoveryRequest, names: Iterable[str]) -> None:
        """Take in a request; `names` are all there are now. Raise TooManyNames."""
        if not self._started:
            self._started = True
            self._held.update(request.initial_resource_versions)
            if self._everything:
                self._mark(names)
                self._mark(self._held)
        else:
            # Asked for again is to be sent again, even if it was sent before.
            for name in request.resource_names_subscribe:
                self._held.pop(name, None)
        self._wanted.difference_update(request.resource_names_unsubscribe)
        for name in request.resource_names_unsubscribe:
            self._forget(name)
        if not self._everything:
            self._wanted.update(request.resource_names_subscribe)
            self._mark(request.resource_names_subscribe)
        if len(self._wanted) > MAX_NAMES or len(self._held) > MAX_NAMES:
            raise TooManyNames(f"An Envoy asks for more than {MAX_NAMES} resources.")
        if request.response_nonce:
            self._judge(request)

    def changed(self, names: Iterable[str]) -> None:
        """Note that these are to be told, as far as they were asked for."""
        self._mark(names if self._everything else (name for name in names if name in self._wanted))

    def pending(self, name: str) -> bool:
        """Return whether something is still to be told of a resource, or no word on it has come."""
        waits = name in self._dirty or any(name in half for half in self._halves)
        return waits or (self._under_way is not None and name in self._under_way.sent)

    def response(self) -> discovery_pb2.DeltaDiscoveryResponse | None:
        """Return what to send now, or None while there is nothing or the last word is still out."""
        if not self._started or self._under_way is not None:
            return None
        sent: dict[str, Desired | None] = {}
        while not sent and (self._halves or self._dirty):
            sent = {name: desired for name in self._next() if (desired := self._due(name)) is not _NOT_DUE}
        if not sent and not self._unanswered:
            return None
        self._unanswered = False
        self._count += 1
        self._under_way = _Push(nonce=str(self._count), sent=sent)
        return discovery_pb2.DeltaDiscoveryResponse(
            type_url=self._type_url,
            nonce=self._under_way.nonce,
            system_version_info=str(max((desired.version for desired in sent.values() if desired), default=0)),
            resources=[desired.resource for desired in sent.values() if desired],
            removed_resources=[name for name, desired in sent.items() if desired is None],
        )

    def _mark(self, names: Iterable[str]) -> None:
        for name in names:
            if name != _WILDCARD:
                self._dirty[name] = None

    def _next(self) -> Sequence[str]:
        if self._halves:
            return self._halves.popleft()
        names = list(self._dirty)[:PUSH_RESOURCES] if len(self._dirty) > PUSH_RESOURCES else list(self._dirty)
        for name in names:
            del self._dirty[name]
        return names

    def _due(self, name: str) -> Desired | None:
        """Return what to tell of a resource, _NOT_DUE if the Envoy has it so already."""
        desired = self._desired(name)
        if desired is None:
            self.refused.pop(name, None)
            return None if name in self._held or name in self._wanted else _NOT_DUE
        if self._held.get(name) == desired.resource.version:
            self._take(name, desired)
            return _NOT_DUE
        return desired

    def _judge(self, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        """Note the word on the response that is under way; one on any other is old."""
        push = self._under_way
        if push is None or request.response_nonce != push.nonce:
            return
        self._under_way = None
        if not request.HasField("error_detail") or not push.sent:
            for name, desired in push.sent.items():
                self._take(name, desired)
        elif len(push.sent) > 1:
            names = list(push.sent)
            middle = len(names) // 2
            self._halves.extendleft((names[middle:], names[:middle]))
        else:
            ((name, desired),) = push.sent.items()
            version = desired.version if desired else 0
            self.refused[name] = Refusal(version=version, message=readable(request.error_detail.message))

    def _take(self, name: str, desired: Desired | None) -> None:
        self._forget(name)
        if desired is not None:
            self._held[name] = desired.resource.version
            self.taken[name] = desired.version

    def _forget(self, name: str) -> None:
        self._held.pop(name, None)
        self.taken.pop(name, None)
        self.refused.pop(name, None)


_NOT_DUE = Desired(resource=discovery_pb2.Resource(), version=-1)


def readable(message: str) -> str:
    """Return a foreign message as one bounded line."""
    return "".join(c if c.isprintable() else " " for c in message[:_MESSAGE_CHARACTERS]) or "no reason given"
