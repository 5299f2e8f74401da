"""Makes the world what the store says is wanted: one task per VM, woken by whatever changed, always looking anew."""

from cellmesh.hypervisor.reconciler.reconciler import Reconciler
from cellmesh.hypervisor.reconciler.world import Guests, Sockets, Timing, World

__all__ = ["Guests", "Reconciler", "Sockets", "Timing", "World"]
