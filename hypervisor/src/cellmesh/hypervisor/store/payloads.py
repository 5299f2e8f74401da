"""Between the payloads of events and their JSON in the log."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from typing import Any

from cellmesh.hypervisor.domain import event
from cellmesh.hypervisor.domain.container import ContainerState, Health
from cellmesh.hypervisor.domain.route import RouteTarget
from cellmesh.hypervisor.domain.vm import VmState


def to_json(payload: event.Payload) -> tuple[str, str]:
    """Return a payload's kind and its fields."""
    fields = {name: value.value if isinstance(value, Enum) else value for name, value in asdict(payload).items()}
    return type(payload).__name__, json.dumps(fields, separators=(",", ":"))


def from_json(kind: str, document: str) -> event.Payload:
    """Return the payload of `to_json`; ValueError if the kind is unknown."""
    fields: dict[str, Any] = json.loads(document)
    match kind:
        case "VmStateChanged":
            return event.VmStateChanged(**_typed(fields, VmState))
        case "ContainerStateChanged":
            return event.ContainerStateChanged(**_typed(fields, ContainerState))
        case "ContainerHealthChanged":
            return event.ContainerHealthChanged(**_typed(fields, Health))
        case "ContainerOomKilled":
            return event.ContainerOomKilled(**fields)
        case "ContainerDeleted":
            return event.ContainerDeleted(**fields)
        case "AgentMisbehaved":
            return event.AgentMisbehaved(**fields)
        case "Anomaly":
            return event.Anomaly(**fields)
        case "RouteSwitched":
            ends = {name: RouteTarget(**fields[name]) for name in ("origin", "target")}
            return event.RouteSwitched(**fields | ends)
        case "RouteRefused":
            return event.RouteRefused(**fields | {"target": RouteTarget(**fields["target"])})
        case "NodeDrainChanged":
            return event.NodeDrainChanged(**fields)
        case _:
            raise ValueError(f"unknown kind of event in the log: {kind!r}")


def _typed(fields: dict[str, Any], states: type[Enum]) -> dict[str, Any]:
    origin = fields["origin"]
    return fields | {"origin": None if origin is None else states(origin), "target": states(fields["target"])}
