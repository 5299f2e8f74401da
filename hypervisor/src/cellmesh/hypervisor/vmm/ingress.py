"""The sockets by which the edge reaches containers: the host binds them where no VM may write, bridges serve them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellmesh.hypervisor.bridge.client import BridgeClient, BridgeRefused, BridgeUnreachable
from cellmesh.hypervisor.vmm.errors import BridgeFailed
from cellmesh.hypervisor.vmm.layout import Layout
from cellmesh.hypervisor.vmm.model import Handle

CONNECTIONS = 256
"""How many connections one container may have open: the edge adds one for each request of HTTP/1.1 at once."""
_BACKLOG = 1024


def ingress_name(container: str, *, epoch: int, generation: int) -> str:
    """Return the name of the socket of one generation of a container in one boot: no other ever has it."""
    return f"{container}.{epoch}.{generation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """The ingress sockets of one host."""

    layout: Layout

    def path(self, vm_id: str, name: str) -> Path:
        """Return where a listener's socket lies."""
        return self.layout.ingress(vm_id) / name

    async def ensure(self, handle: Handle, wanted: Mapping[str, int]) -> None:
        """Make the VM's bridge listen for these names and guest ports, and for no others but the agent's.

        Raises BridgeFailed, OSError.
        """
        bridge = BridgeClient(directory=handle.directory)
        try:
            there = _ingress_of(await bridge.stats())
            for name in there - wanted.keys():
                # Its name goes first: nobody connects to what is no longer served.
                self.path(handle.vm_id, name).unlink(missing_ok=True)
                await bridge.remove(name)
            for name in wanted.keys() - there:
                with self._bound(self.path(handle.vm_id, name)) as listener:
                    await bridge.give(listener, name, wanted[name], limit=CONNECTIONS)
        except (BridgeUnreachable, BridgeRefused) as error:
            raise BridgeFailed(str(error)) from error

    async def cut(self, handle: Handle, name: str) -> None:
        """End the open connections of a listener. Raises BridgeFailed."""
        try:
            await BridgeClient(directory=handle.directory).cut(name)
        except (BridgeUnreachable, BridgeRefused) as error:
            raise BridgeFailed(str(error)) from error

    def _bound(self, path: Path) -> socket.socket:
        """Return a listening socket that the edge may connect to, in place of what another bridge left."""
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Its file gets this mode, so that nobody else is let in for a moment.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(path))
            # First, as whoever may connect must not be refused.
            listener.listen(_BACKLOG)
            if self.layout.edge_gid is not None:
                os.chown(path, -1, self.layout.edge_gid)
            path.chmod(0o660)
        except BaseException:
            listener.close()
            path.unlink(missing_ok=True)
            raise
        return listener


def _ingress_of(stats: Mapping[str, object]) -> set[str]:
    listeners = stats.get("listeners")
    # The agent's own is `agent.<epoch>`; a container may be called agent too.
    return {name for name in listeners if name.count(".") == 2} if isinstance(listeners, dict) else set()
