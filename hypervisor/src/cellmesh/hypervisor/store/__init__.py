"""The node's memory: SQLite with one writer, every change and its event in one transaction."""

from cellmesh.hypervisor.store.store import Store
from cellmesh.hypervisor.store.transaction import Boot, Intent, Node, Reading, Transaction

__all__ = ["Boot", "Intent", "Node", "Reading", "Store", "Transaction"]
