"""The bridge's control socket: one JSON object a line in, one out. Only the hypervisor's uid is answered.

{"add": {"name": "agent.3", "port": 1024}}  listen on in/agent.3 for guest port 1024
{"add": {"name": "app.3.1", "port": 65537, "limit": 128}}
                                            take the listening socket that comes with the line; at most 128 connections
{"remove": {"name": "agent.3"}}             stop listening; open connections go on
{"cut": {"name": "app.3.1"}}                end its open connections; it goes on listening
{"stats": {}}                               what was carried and dropped
{"stop": {}}                                end the bridge
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Callable, Mapping

MAX_LINE = 4096
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}", re.ASCII)
_MAX_PORT = 2**32 - 2  # the last port is VMADDR_PORT_ANY

Answer = Mapping[str, object]


class Refused(Exception):
    """A request that will not be done, with the reason for its sender."""


def is_from(connection: socket.socket, uid: int) -> bool:
    """Say whether the process at the other end has that uid."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    peer: int = struct.unpack("3i", raw)[1]
    return peer == uid


def read(connection: socket.socket) -> tuple[bytes, socket.socket | None]:
    """Read one line, and the listening socket that came with it. Raises OSError if that is not what came."""
    line, given = b"", None
    try:
        while not line.endswith(b"\n") and len(line) < MAX_LINE:
            part, descriptors, _, _ = socket.recv_fds(connection, MAX_LINE, 1, socket.MSG_CMSG_CLOEXEC)
            for descriptor in descriptors:
                given, surplus = socket.socket(fileno=descriptor), given
                if surplus is not None:
                    surplus.close()
            if not part:
                raise ConnectionAbortedError("the caller left")
            line += part
        if given is not None and not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("what came with the line does not listen")
    except OSError:
        if given is not None:
            given.close()
        raise
    return line, given


def answer(line: bytes, verbs: Mapping[str, Callable[[Mapping[str, object]], Answer]]) -> bytes:
    """Do what one line asks and return the line that answers it."""
    try:
        verb, arguments = _decode(line)
        if verb not in verbs:
            raise Refused(f"unknown request, expected one of {', '.join(verbs)}")
        reply: Answer = {"ok": verbs[verb](arguments)}
    except Refused as refusal:
        reply = {"error": str(refusal)}
    except OSError as error:
        reply = {"error": f"{error.strerror or error}"}
    return json.dumps(reply).encode() + b"\n"


def name_of(arguments: Mapping[str, object]) -> str:
    """Return the listener's name; one that could leave its directory is refused."""
    name = arguments.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refused("a name is 1-63 lower-case letters, digits, dots or dashes and begins with a letter or digit")
    return name


def port_of(arguments: Mapping[str, object]) -> int:
    """Return the guest port."""
    port = arguments.get("port")
    if type(port) is not int or not 0 < port <= _MAX_PORT:
        raise Refused(f"a port is a number from 1 to {_MAX_PORT}")
    return port


def limit_of(arguments: Mapping[str, object]) -> int | None:
    """Return the most connections a listener may have open, None if it has no limit of its own."""
    limit = arguments.get("limit")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise Refused("a limit is a number from 1 on")
    return limit


def _decode(line: bytes) -> tuple[str, Mapping[str, object]]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise Refused("a request is one JSON object on one line") from None
    if not isinstance(request, dict) or len(request) != 1:
        raise Refused("a request is an object with one key")
    ((verb, arguments),) = request.items()
    if not isinstance(arguments, dict):
        raise Refused(f"{verb} takes an object")
    return verb, arguments
