"""What the runbook says of the edge is what the edge does."""

from __future__ import annotations

import re
from dataclasses import Field, fields
from datetime import timedelta

import pytest

from cellmesh.hypervisor.domain.route import WaitReason
from cellmesh.hypervisor.edge import access_log
from cellmesh.hypervisor.limits import Limits, RouteLimits
from support.contracts import ROOT

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
LIMITS, CELL = Limits(), RouteLimits()


def _in(unit: str, time: timedelta) -> str:
    length = {"s": timedelta(seconds=1), "min": timedelta(minutes=1), "h": timedelta(hours=1)}[unit]
    return f"{time / length:g} {unit}"


@pytest.mark.parametrize(
    "row",
    [
        f"connections of all clients | {LIMITS.connections:,}",
        f"requests of one user | {LIMITS.requests_per_second:,}/s, bursts of {LIMITS.requests_burst:,}",
        f"streams of one HTTP/2 connection | {LIMITS.streams_per_connection}",
        f"one of them | {CELL.connections}, with {CELL.pending_requests} requests waiting",
        f"headers | {LIMITS.headers}, {LIMITS.header_kib} KiB",
        f"body | {LIMITS.body_bytes >> 30} GiB",
        f"handshake | {_in('s', LIMITS.header_timeout)}, {_in('h', LIMITS.request_timeout)}, ",
        f"h, {_in('s', LIMITS.handshake_timeout)} |",
        f"without one | {_in('min', LIMITS.stream_idle_timeout)}, {_in('min', LIMITS.connection_idle_timeout)} |",
        f"life of a stream | {_in('h', LIMITS.stream_lifetime)} |",
        f"memory of Envoy | {LIMITS.heap_bytes >> 30} GiB",
    ],
)
def test_the_runbook_has_the_limits_that_hold(row: str) -> None:
    """Whoever looks up a limit at night finds the one the edge is configured with."""
    assert row in RUNBOOK


@pytest.mark.parametrize("limit", [*fields(LIMITS), *fields(CELL)], ids=lambda limit: limit.name)
def test_the_runbook_names_every_limit(limit: Field[object]) -> None:
    """Whoever wants another one finds what to write."""
    assert f"`{limit.name}`" in RUNBOOK


def test_the_runbook_names_every_reason_a_request_can_wait_for() -> None:
    """Each is there with what to do, whatever the row it stands in."""
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", RUNBOOK))
    assert {reason.value for reason in WaitReason} <= named


def test_the_runbook_names_every_field_of_the_access_log() -> None:
    """A field nobody explains is a field nobody finds."""
    assert [field for field in access_log._fields() if f"`{field}`" not in RUNBOOK] == []
