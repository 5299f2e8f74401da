"""Requests that are not meant well, what the edge must do with each, and edges without the hardening that does it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cellmesh.hypervisor.edge.options import Json
from support.envoy import ALICE, BOB, EdgeUnderTest
from support.http_client import say

_PATH = "PATH"
_SILENCE_SECONDS = 10.0
"""How long the first byte of an answer may take; only without the hardening does one of these get none."""
_BEARER = f"Authorization: Bearer {ALICE}\r\n"
_UPGRADE = "Connection: upgrade\r\nUpgrade: websocket\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Bytes to send, `PATH` in the place of a path of their own, and what may come of them."""

    name: str
    data: str
    statuses: frozenset[int]
    upstream: int = 0
    """How many requests the container may see of it."""

    def request(self, path: str) -> bytes:
        """Return the bytes, with a path by which the container's requests are told apart."""
        return self.data.replace(_PATH, path).encode("latin-1")


def _attack(name: str, data: str, *statuses: int, upstream: int = 0) -> Attack:
    return Attack(name=name, data=data, statuses=frozenset(statuses), upstream=upstream)


def _of_alice(
    name: str, fields: str, *statuses: int, line: str = "GET PATH HTTP/1.1", body: str = "", upstream: int = 0
) -> Attack:
    data = f"{line}\r\nHost: cell.test\r\n{_BEARER}{fields}\r\n{body}"
    return _attack(name, data, *statuses, upstream=upstream)


_POST = "POST PATH HTTP/1.1"
_CHUNKED = "Transfer-Encoding: chunked\r\n"
SMUGGLING = (
    _of_alice("length and chunks", f"Content-Length: 4\r\n{_CHUNKED}", 400, line=_POST, body="0\r\n\r\n"),
    _of_alice("two lengths", "Content-Length: 4\r\nContent-Length: 5\r\n", 400, line=_POST, body="abcde"),
    _of_alice("length with a sign", "Content-Length: +4\r\n", 400, line=_POST, body="abcd"),
    _of_alice("two encodings", f"{_CHUNKED}Transfer-Encoding: identity\r\n", 501, line=_POST, body="0\r\n\r\n"),
    _of_alice("encoding by a like name", "Transfer-Encoding: xchunked\r\n", 501, line=_POST, body="0\r\n\r\n"),
    _of_alice("space before the colon", "Foo : bar\r\n", 400),
    _of_alice("NUL in a value", "Foo: b\0ar\r\n", 400),
    # Read as HTTP reads them, and passed on as one request in its strict form.
    _attack("bare line feeds", f"GET PATH HTTP/1.1\nHost: cell.test\n{_BEARER.strip()}\n\n", 200, upstream=1),
    _of_alice("folded line", "Foo: a\r\n b\r\n", 200, upstream=1),
    _of_alice(
        "a request after an upgrade", _UPGRADE, 200, body="GET PATH HTTP/1.1\r\nHost: cell.test\r\n\r\n", upstream=1
    ),
    _of_alice("upgrade with a length", f"{_UPGRADE}Content-Length: 5\r\n", 400, body="hello"),
    _of_alice("upgrade with a length of nothing", f"{_UPGRADE}Content-Length: 0\r\n", 200, upstream=1),
    _of_alice("upgrade with an encoding", f"{_UPGRADE}Transfer-Encoding: gzip\r\n", 501),
)
NAMES = (
    _attack("no host", f"GET PATH HTTP/1.1\r\n{_BEARER}\r\n", 400),
    _attack("two hosts", f"GET PATH HTTP/1.1\r\nHost: cell.test\r\nHost: evil.test\r\n{_BEARER}\r\n", 400, 404),
    _attack(
        "absolute form of another host", f"GET http://evil.testPATH HTTP/1.1\r\nHost: cell.test\r\n{_BEARER}\r\n", 404
    ),
    _attack("host with a dot", f"GET PATH HTTP/1.1\r\nHost: cell.test.\r\n{_BEARER}\r\n", 404),
    _attack("host with a user", f"GET PATH HTTP/1.1\r\nHost: a@cell.test\r\n{_BEARER}\r\n", 404),
    _attack("host with a port", f"GET PATH HTTP/1.1\r\nHost: cell.test:99\r\n{_BEARER}\r\n", 404),
)
TUNNELS = (
    _attack("CONNECT", f"CONNECT cell.test:443 HTTP/1.1\r\nHost: cell.test:443\r\n{_BEARER}\r\n", 404),
    _of_alice("CONNECT with a path", "", 400, line="CONNECT PATH HTTP/1.1"),
    _of_alice("upgrade to another protocol", "Connection: upgrade\r\nUpgrade: foo\r\n", 403),
    _attack("upgrade of nobody's", f"GET PATH HTTP/1.1\r\nHost: cell.test\r\n{_UPGRADE}\r\n", 401),
    _of_alice("TRACE", "", 405, line="TRACE PATH HTTP/1.1"),
    _of_alice("method of no standard", "", 400, line="FOO PATH HTTP/1.1"),
    _of_alice("HTTP/1.0", "", 426, line="GET PATH HTTP/1.0"),
)
HEADERS = (
    _of_alice("underscore for a dash", f"x_cellmesh_user: {BOB}\r\n", 400),
    _of_alice("100 KB header", f"Foo: {'a' * 100_000}\r\n", 431),
    _of_alice("80 headers", "".join(f"h{number}: a\r\n" for number in range(80)), 431),
    _of_alice("cookie that is no text", "Cookie: a=\xff\xfe\r\n", 400),
    _of_alice("token dropped on the way", "Connection: authorization\r\n", 401),
    _attack(
        "token that is no text", f"GET PATH HTTP/1.1\r\nHost: cell.test\r\n{_BEARER.strip()}\xff\r\n\r\n", 400, 401
    ),
)
PATHS = (
    _of_alice("encoded slash", "", 200, line="GET PATH%2fb HTTP/1.1", upstream=1),
    _of_alice("encoded slash behind a prefix", "", 400, line="GET /dev%2f.PATH HTTP/1.1"),
    _of_alice("encoded slash that goes up", "", 400, line="GET PATH%5c..%2fb HTTP/1.1"),
    _of_alice("control character", "", 400, line="GET PATH\x0bb HTTP/1.1"),
    _of_alice("byte that is no text", "", 400, line="GET PATH\xff HTTP/1.1"),
    _of_alice("fragment", "", 400, line="GET PATH#b HTTP/1.1"),
    _of_alice("parameters of a prefix", "", 400, line="GET /dev;PATH HTTP/1.1"),
)
ALL = (*SMUGGLING, *NAMES, *TUNNELS, *HEADERS, *PATHS)


async def unmet(edge: EdgeUnderTest, attacks: Sequence[Attack]) -> dict[str, str]:
    """Try each attack; return what came of those that did not go as they must."""
    outcomes = await asyncio.gather(*(_try(edge, number, attack) for number, attack in enumerate(attacks)))
    return {attack.name: outcome for attack, outcome in zip(attacks, outcomes, strict=True) if outcome}


async def _try(edge: EdgeUnderTest, number: int, attack: Attack) -> str:
    mark = f"/attack-{number}-"
    reply = await say(edge.socket, attack.request(mark), seconds=_SILENCE_SECONDS)
    status = int(reply.split(b" ", 2)[1]) if reply.startswith(b"HTTP/1.1 ") else 0
    upstream = sum(mark in seen.line for toy in edge.toys.values() for seen in toy.seen)
    if status in attack.statuses and upstream == attack.upstream:
        return ""
    return f"{status}, seen {upstream} times"


def unhardened(config: Json) -> Json:
    """Take away what most attacks of these tables meet."""
    for listener in config["static_resources"]["listeners"]:  # type: ignore[index]
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        if manager["stat_prefix"] != "edge":
            continue
        manager["path_with_escaped_slashes_action"] = "KEEP_UNCHANGED"
        manager["normalize_path"] = manager["merge_slashes"] = False
        manager["max_request_headers_kb"] = 8192
        manager["early_header_mutation_extensions"] = []
        manager["upgrade_configs"] += [{"upgrade_type": "foo"}]
        manager["http_protocol_options"] = {"accept_http_10": True, "allow_chunked_length": True}
        manager["common_http_protocol_options"] = {"max_headers_count": 1000}
        host = manager["route_config"]["virtual_hosts"][0]
        host["domains"] = ["*"]
        host["routes"] = [route for route in host["routes"] if route["name"] != "refused"]
    return config


UNMET_WHEN_UNHARDENED = frozenset(
    {
        "length and chunks",
        "upgrade with a length",
        "two hosts",
        "absolute form of another host",
        "host with a dot",
        "host with a user",
        "host with a port",
        "upgrade to another protocol",
        "TRACE",
        "HTTP/1.0",
        "underscore for a dash",
        "100 KB header",
        "80 headers",
        "cookie that is no text",
        "encoded slash behind a prefix",
        "encoded slash that goes up",
        "parameters of a prefix",
    }
)
