"""Makes the world what the store says is wanted: one task per VM, woken by whatever changed, always looking anew."""

from cellmesh.hypervisor.reconciler.reconciler import Reconciler
from cellmesh.hypervisor.reconciler.world import Edge, Guests, Sockets, Timing, World

__all__ = ["Edge", "Guests", "Reconciler", "Sockets", "Timing", "World"]
