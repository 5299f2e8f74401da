"""The node's memory: SQLite with one writer, every change and its event in one transaction."""

from cellmesh.hypervisor.store.store import Store
from cellmesh.hypervisor.store.transaction import Intent, Node, Reading, Transaction

__all__ = ["Intent", "Node", "Reading", "Store", "Transaction"]
