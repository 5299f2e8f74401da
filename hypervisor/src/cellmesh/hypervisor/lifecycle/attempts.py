"""Why the newest try to start or stop a container did not come to an end: for those who wait, kept in memory only."""

from __future__ import annotations

from dataclasses import dataclass

from cellmesh.mesh.errors import MeshError
from cellmesh.service.store.changes import Changes


@dataclass(frozen=True, slots=True)
class _Failure:
    generation: int
    count: int
    error: MeshError


class Attempts:
    """The failures of tries that the reconciler will repeat by itself."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._failures: dict[tuple[str, str], _Failure] = {}

    def failed(self, vm_id: str, name: str, generation: int, error: MeshError) -> None:
        """Keep why a try failed, and wake who waits."""
        count = self.count(vm_id, name, generation) + 1
        self._failures[vm_id, name] = _Failure(generation, count, error)
        self._changes.notify({vm_id})

    def count(self, vm_id: str, name: str, generation: int) -> int:
        """Return how many tries of this generation failed in a row."""
        failure = self._failures.get((vm_id, name))
        return failure.count if failure is not None and failure.generation == generation else 0

    def error(self, vm_id: str, name: str, generation: int) -> MeshError | None:
        """Return why the last try of this generation failed, or None."""
        failure = self._failures.get((vm_id, name))
        return failure.error if failure is not None and failure.generation == generation else None

    def forget(self, vm_id: str, name: str) -> None:
        """Forget the failures of a container."""
        self._failures.pop((vm_id, name), None)
