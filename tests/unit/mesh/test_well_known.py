"""Times and durations that are none."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from cellmesh.api.guest.v1 import container_service_pb2
from cellmesh.mesh import validation
from cellmesh.mesh.errors import InvalidAnswer


def answer(time: Timestamp) -> container_service_pb2.StreamLogsResponse:
    """Return an answer whose second item carries a time."""
    return container_service_pb2.StreamLogsResponse(chunks=[{"stream": 1}, {"stream": 1, "time": time}])


@pytest.mark.parametrize("time", [Timestamp(seconds=2**62), Timestamp(seconds=1, nanos=-1), Timestamp(nanos=2**30)])
def test_a_time_no_clock_shows_breaks_the_contract(time: Timestamp) -> None:
    """What protovalidate lets pass and JSON cannot hold is refused, by its place in the message."""
    with pytest.raises(InvalidAnswer) as refused:
        validation.check_answer(answer(time), "guest")
    assert [found.field for found in refused.value.field_violations] == ["chunks[1].time"]


def test_a_duration_of_two_signs_breaks_the_contract() -> None:
    """A duration whose seconds and nanos disagree is refused."""
    stats = {"container_name": "a", "cpu_time": Duration(seconds=1, nanos=-1)}
    with pytest.raises(InvalidAnswer, match="duration"):
        validation.check_answer(container_service_pb2.GetStatsResponse(stats=stats), "guest")


def test_an_ordinary_time_passes() -> None:
    """A time within its definition is nobody's fault."""
    validation.check_answer(answer(Timestamp(seconds=1_800_000_000, nanos=999_999_999)), "guest")
