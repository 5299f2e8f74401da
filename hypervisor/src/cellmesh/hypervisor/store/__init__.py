"""The state of the node: every change and its event in one transaction."""

from cellmesh.hypervisor.store.store import Store
from cellmesh.hypervisor.store.transaction import Boot, Node, Reading, Transaction

__all__ = ["Boot", "Node", "Reading", "Store", "Transaction"]
