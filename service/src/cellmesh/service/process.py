"""The process of a service: settings, logs, telemetry, signals, readiness, exit code."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import TypeVar

import cellmesh.service.lean  # noqa: F401  # before structlog

# isort: split
import structlog

from cellmesh.mesh import failpoint, logs, telemetry
from cellmesh.mesh.settings import Settings, SettingsFault
from cellmesh.service.errors import Unusable

UNUSABLE = 78
"""sysexits.h EX_CONFIG: starting again changes nothing."""
_FILES = 65_536
S = TypeVar("S", bound=Settings)
Serving = Callable[[S], AbstractAsyncContextManager[None]]
"""Is the service inside: ready once entered, at its end once left."""
_log = structlog.get_logger()


def run(name: str, settings_type: type[S], serving: Serving[S]) -> None:
    """Serve until SIGTERM or SIGINT, and tell systemd when the service is ready.

    Exits with 78 if the settings or the state cannot be used: on SettingsFault, Unusable and OSError.
    """
    # Files and sockets are the service's own unless it says otherwise; SQLite makes some beside the database.
    os.umask(0o077)
    _raise_file_limit()
    try:
        settings = settings_type.load()
        logs.configure(level=settings.log_level)
        failpoint.arm(settings.failpoint)
        flush = telemetry.configure(name, version=version("cellmesh"), otlp_endpoint=settings.otlp_endpoint)
    except (SettingsFault, failpoint.UnknownFailpoint) as error:
        sys.exit(_refused(name, error))
    try:
        asyncio.run(_serve(name, settings, serving))
    except (Unusable, OSError) as error:
        sys.exit(_refused(name, error))
    finally:
        flush()


async def _serve(name: str, settings: S, serving: Serving[S]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings):
        _log.info(f"{name}.ready", pid=os.getpid(), uid=os.geteuid())
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        _log.info(f"{name}.stopping")


def _raise_file_limit() -> None:
    """Allow as many descriptors as the kernel lets us have: a shell's 1,024 are fewer than what clients may take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > _FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _FILES), hard))
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _refused(name: str, error: Exception) -> int:
    sys.stderr.write(f"cellmesh-{name}: {error}\n")
    return UNUSABLE


def notify(state: str) -> None:
    """Notify systemd, if it started this process (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as supervisor:
        supervisor.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        supervisor.sendall(state.encode())
