"""The frames a caller sends into a command, on their way to the guest."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cellmesh.api.common.v1 import exec_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2
from cellmesh.mesh.errors import FieldViolation, InvalidRequest, MeshError


class Frames:
    """The frames of one stream. What is wrong with one is told to the caller, not to the guest."""

    def __init__(self, opening: exec_pb2.ExecInput, rest: AsyncIterator[container_service_pb2.ExecRequest]) -> None:
        self._opening = opening
        self._rest = rest
        self._fault: MeshError | None = None

    async def each(self) -> AsyncIterator[exec_pb2.ExecInput]:
        """Yield the frames for the guest; ends at the caller's end, and before a frame that breaks the contract."""
        yield self._opening
        try:
            async for request in self._rest:
                if request.input.WhichOneof("frame") == "open":
                    raise opening_expected("ExecOpen may only come first; open another stream for another command.")
                yield request.input
        except MeshError as error:
            self._fault = error

    def check(self) -> None:
        """Raise what was wrong with a frame, if one was."""
        if self._fault is not None:
            raise self._fault


def opening_expected(message: str = "The first frame must be ExecOpen.") -> InvalidRequest:
    """Return the error of a stream whose frames are out of order."""
    return InvalidRequest(message, field_violations=[FieldViolation(field="input", description=message)])
