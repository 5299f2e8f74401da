"""The hypervisor's process: settings, logs, signals, exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from importlib.metadata import version

# isort: split
import cellmesh.hypervisor.lean  # noqa: F401  # first

# isort: split
import structlog

from cellmesh.hypervisor.edge.options import EdgeMisconfigured
from cellmesh.hypervisor.node import SERVICE, serving
from cellmesh.hypervisor.settings import HypervisorSettings
from cellmesh.hypervisor.store.lock import StateInUse
from cellmesh.hypervisor.store.schema import SchemaTooNew
from cellmesh.mesh import failpoint, logs, telemetry
from cellmesh.mesh.settings import SettingsFault

_UNUSABLE = 78
"""sysexits.h EX_CONFIG: starting again changes nothing."""
_log = structlog.get_logger()


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit 78 if the settings or the state cannot be used."""
    # As in its systemd unit: SQLite makes files beside the database, and VMs' uids pass through the directory.
    os.umask(0o077)
    try:
        settings = HypervisorSettings.load()
        logs.configure(level=settings.log_level)
        failpoint.arm(settings.failpoint)
        flush = telemetry.configure(SERVICE, version=version("cellmesh"), otlp_endpoint=settings.otlp_endpoint)
    except (SettingsFault, failpoint.UnknownFailpoint) as error:
        sys.exit(_refused(error))
    try:
        asyncio.run(_serve(settings))
    except (StateInUse, SchemaTooNew, EdgeMisconfigured, OSError) as error:
        sys.exit(_refused(error))
    finally:
        flush()


async def _serve(settings: HypervisorSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings):
        _log.info("hypervisor.ready", socket=str(settings.operator_socket), pid=os.getpid())
        _notify("READY=1")
        await stop.wait()
        _notify("STOPPING=1")
        _log.info("hypervisor.stopping")


def _refused(error: Exception) -> int:
    sys.stderr.write(f"cellmesh-hypervisor: {error}\n")
    return _UNUSABLE


def _notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        notify.sendall(state.encode())


if __name__ == "__main__":
    main()
