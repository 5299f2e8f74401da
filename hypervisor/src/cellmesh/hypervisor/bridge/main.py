"""The bridge's process: `main([directory, uid, gid])`.

It is started with the hypervisor's own interpreter, which a VM's uid may not be able to read: everything is imported
first, then the privileges go, and only then is anything of the VM's directory touched.
"""

from __future__ import annotations

import ctypes
import os
import resource
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

from cellmesh.hypervisor.bridge import control
from cellmesh.hypervisor.bridge.call import Route
from cellmesh.hypervisor.bridge.console import Console
from cellmesh.hypervisor.bridge.relay import Relays

CONNECTIONS = 512
"""How many connections a bridge carries at once."""
RESERVE = 32
"""How many of these are kept for listeners without a limit of their own: the agent's."""
_STACK = 128 << 10
_BACKLOG = 1024  # a full one gives EAGAIN to callers that do not block, as Envoy and gRPC do not
_ALIVE_SECONDS = 2.0  # how soon a vanished directory ends the bridge
_CONTROL_SECONDS = 2.0
_PR_SET_NO_NEW_PRIVS = 38


class Bridge:
    """Listens in one VM's directory until it is stopped or the directory vanishes."""

    def __init__(self, directory: str, *, controller: int) -> None:
        self._directory = directory
        self._controller = controller
        self._identity = _identity(directory)
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[str, tuple[socket.socket, Route]] = {}
        self._given: socket.socket | None = None
        self._relays = Relays(f"{directory}/vsock.sock", limit=CONNECTIONS, reserve=RESERVE)
        self._relays.start()
        self._stopped = False
        self._console = Console(directory)
        self._throttled = False
        self._flushed = 0.0
        self._watch(self._console.fd, self._drain)
        self._verbs = {
            "add": self._add,
            "remove": self._remove,
            "cut": self._cut,
            "stats": self._stats,
            "stop": self._stop,
        }
        # Last, because its being there says that the bridge is ready.
        self._control = _listen(f"{directory}/bridge.sock")
        self._watch(self._control, self._serve_control)

    def run(self) -> None:
        """Serve until the end."""
        while not self._stopped and self._relays.running and _identity(self._directory) == self._identity:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._tick()

    def _patience(self) -> float:
        if self._console.dirty or self._throttled:
            return max(0.0, self._flushed + 1.0 - time.monotonic())
        return _ALIVE_SECONDS

    def _tick(self) -> None:
        if (self._console.dirty or self._throttled) and time.monotonic() >= self._flushed + 1.0:
            self._flushed = time.monotonic()
            self._console.flush()
            if self._throttled:
                self._throttled = False
                self._watch(self._console.fd, self._drain)

    def _drain(self) -> None:
        if not self._console.drain():
            self._throttled = True
            self._selector.unregister(self._console.fd)

    def _watch(self, source: int | socket.socket, act: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _serve_control(self) -> None:
        connection, _ = self._control.accept()
        with connection:
            connection.settimeout(_CONTROL_SECONDS)
            try:
                if control.is_from(connection, self._controller):
                    line, self._given = control.read(connection)
                    connection.sendall(control.answer(line, self._verbs))
            except OSError:
                return  # the caller went away; it will ask again
            finally:
                if self._given is not None:
                    self._given.close()
                    self._given = None

    def _add(self, arguments: Mapping[str, object]) -> control.Answer:
        name = control.name_of(arguments)
        route = Route(control.port_of(arguments), control.limit_of(arguments))
        if name in self._listeners:
            raise control.Refused(f"{name} is taken")
        # A socket that is given lies where we may not write, and whoever gave it takes it away.
        listener, self._given = self._given or _listen(f"{self._directory}/in/{name}"), None
        self._listeners[name] = listener, route
        self._relays.listen(listener, route)
        return {}

    def _remove(self, arguments: Mapping[str, object]) -> control.Answer:
        listener, _ = self._found(arguments)
        name = control.name_of(arguments)
        del self._listeners[name]
        self._relays.leave(listener)
        _unlink(f"{self._directory}/in/{name}")
        return {}

    def _cut(self, arguments: Mapping[str, object]) -> control.Answer:
        _, route = self._found(arguments)
        return {"cut": self._relays.cut(route)}

    def _found(self, arguments: Mapping[str, object]) -> tuple[socket.socket, Route]:
        name = control.name_of(arguments)
        if name not in self._listeners:
            raise control.Refused(f"{name} is not there")
        return self._listeners[name]

    def _stats(self, _: Mapping[str, object]) -> control.Answer:
        return {
            "listeners": {
                name: {"port": route.port, **self._relays.counts(route)}
                for name, (_, route) in sorted(self._listeners.items())
            },
            **self._relays.counts(),
            "console_bytes": self._console.received,
            "console_dropped": self._console.dropped,
        }

    def _stop(self, _: Mapping[str, object]) -> control.Answer:
        self._stopped = True
        self._console.drain()
        self._console.flush()
        return {}


def main(arguments: list[str]) -> None:
    """Lower the privileges, then bridge: arguments are the VM's directory, uid and gid."""
    directory, uid, gid = arguments[0], int(arguments[1]), int(arguments[2])
    controller = os.getuid()
    _lower(uid, gid)
    Bridge(directory, controller=controller).run()
    os._exit(0)  # threads may sleep in recv; nothing they hold is worth a wait


def _lower(uid: int, gid: int) -> None:
    soft = 4 * CONNECTIONS + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    threading.stack_size(_STACK)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if uid != os.getuid():
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        sys.exit("the kernel does not know no_new_privs")


def _listen(path: str) -> socket.socket:
    _unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    return listener


def _unlink(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 - pathlib would double the start-up time
    except FileNotFoundError:
        return


def _identity(directory: str) -> tuple[int, int] | None:
    try:
        found = os.stat(directory)  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino
