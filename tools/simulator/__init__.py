"""Thousands of VMs without a guest: the binary is a script that waits, a hub plays VMM and agent."""

from simulator.containers import SimulatedContainer
from simulator.faults import Fault, FaultKind, Faults
from simulator.guest import SimulatedGuest
from simulator.hub import Hub
from simulator.process import SimulatedProcess

__all__ = [
    "Fault",
    "FaultKind",
    "Faults",
    "Hub",
    "SimulatedContainer",
    "SimulatedGuest",
    "SimulatedProcess",
]
