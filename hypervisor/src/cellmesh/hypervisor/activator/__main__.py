"""The activator's process: settings, socket, privileges, signals, exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from importlib.metadata import version
from socket import socket

# isort: split
import cellmesh.hypervisor.lean  # noqa: F401  # first

# isort: split
import structlog

from cellmesh.hypervisor.activator import privileges
from cellmesh.hypervisor.activator.activations import Activations, asking
from cellmesh.hypervisor.activator.server import Responder, listening, serving
from cellmesh.hypervisor.activator.settings import ActivatorSettings
from cellmesh.mesh import logs, telemetry
from cellmesh.mesh.breaker import Breaker
from cellmesh.mesh.channel import unix_channel
from cellmesh.mesh.settings import SettingsFault

_UNUSABLE = 78
"""sysexits.h EX_CONFIG: starting again changes nothing."""
# The hypervisor is on this host, and people wait: it is asked again soon.
_BREAKER_SECONDS = 1.0
_log = structlog.get_logger()


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit 78 if the settings or the socket cannot be used."""
    try:
        settings = ActivatorSettings.load()
        logs.configure(level=settings.log_level)
        flush = telemetry.configure("activator", version=version("cellmesh"), otlp_endpoint=settings.otlp_endpoint)
    except SettingsFault as error:
        sys.exit(_refused(error))
    try:
        with listening(settings.activator_socket, gid=settings.edge_group) as listener:
            privileges.lower(uid=settings.edge_user, gid=settings.edge_group)
            asyncio.run(_serve(settings, listener))
    except OSError as error:
        sys.exit(_refused(error))
    finally:
        flush()


async def _serve(settings: ActivatorSettings, listener: socket) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    breaker = Breaker("hypervisor", reset_timeout=_BREAKER_SECONDS)
    async with (
        unix_channel(settings.edge_socket, downstream="hypervisor", breaker=breaker) as hypervisor,
        Activations(asking(hypervisor)) as activations,
        serving(Responder(activations=activations, wait_budget=settings.wait_budget), listener),
    ):
        _log.info("activator.ready", socket=str(settings.activator_socket), pid=os.getpid(), uid=os.geteuid())
        await stop.wait()
        _log.info("activator.stopping")


def _refused(error: Exception) -> int:
    sys.stderr.write(f"cellmesh-activator: {error}\n")
    return _UNUSABLE


if __name__ == "__main__":
    main()
