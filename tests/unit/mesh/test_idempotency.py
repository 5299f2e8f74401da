"""A request_id runs once, whatever the order of its copies."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.mesh.errors import RequestIdReused
from cellmesh.mesh.idempotency import Idempotency, Intent, Recorded

METHOD = "/cellmesh.api.hypervisor.v1.VmService/StopVm"
FIRST = vm_service_pb2.StopVmRequest(request_id="r1", vm_id="a")


@dataclass(slots=True)
class MemoryStore:
    """Keeps answers in a dictionary."""

    kept: dict[tuple[str, str], Recorded] = field(default_factory=dict)

    async def get(self, method: str, request_id: str) -> Recorded | None:
        """Return an answer."""
        return self.kept.get((method, request_id))

    async def put(self, intent: Intent, answer: bytes) -> None:
        """Keep the first answer."""
        recorded = Recorded(request_hash=intent.request_hash, answer=answer)
        self.kept.setdefault((intent.method, intent.request_id), recorded)


class Runs:
    """Counts runs, each with another answer."""

    def __init__(self) -> None:
        self.count = 0
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, _: Intent) -> vm_service_pb2.StopVmResponse:
        """Run once more."""
        self.started.set()
        self.count += 1
        number = self.count
        await self.gate.wait()
        return vm_service_pb2.StopVmResponse(vm=vm_pb2.Vm(revision=number))


def _once(idempotency: Idempotency, runs: Runs, request: vm_service_pb2.StopVmRequest = FIRST) -> asyncio.Task[int]:
    async def once() -> int:
        answer = await idempotency.once(METHOD, request, vm_service_pb2.StopVmResponse, runs)
        return answer.vm.revision

    return asyncio.ensure_future(once())


@pytest.mark.asyncio
async def test_copies_get_the_first_answer() -> None:
    """Copies one after the other, and after a restart of the process, run nothing."""
    store, runs = MemoryStore(), Runs()
    assert [await _once(Idempotency(store), runs) for _ in range(3)] == [1, 1, 1]
    assert runs.count == 1


@pytest.mark.asyncio
async def test_copies_at_once_run_once() -> None:
    """Copies that arrive while the first runs wait for its answer."""
    idempotency, runs = Idempotency(MemoryStore()), Runs()
    runs.gate.clear()
    copies = [_once(idempotency, runs) for _ in range(5)]
    await asyncio.sleep(0)
    runs.gate.set()
    assert await asyncio.gather(*copies) == [1] * 5
    assert runs.count == 1


@pytest.mark.asyncio
async def test_cancelled_first_does_not_take_the_others_along() -> None:
    """A caller that goes away leaves its copy to run for those who still wait."""
    idempotency, runs = Idempotency(MemoryStore()), Runs()
    runs.gate.clear()
    first, second = _once(idempotency, runs), _once(idempotency, runs)
    await runs.started.wait()
    first.cancel()
    runs.gate.set()
    assert await second == 2
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.asyncio
async def test_other_request_under_the_same_id_is_refused() -> None:
    """An id is for one intent: another request with it gets an error, not the answer of the first."""
    idempotency, runs = Idempotency(MemoryStore()), Runs()
    await _once(idempotency, runs)
    with pytest.raises(RequestIdReused):
        await _once(idempotency, runs, vm_service_pb2.StopVmRequest(request_id="r1", vm_id="b"))
    assert runs.count == 1


@pytest.mark.asyncio
async def test_an_error_is_not_an_answer() -> None:
    """After a failed run the same id runs again."""
    idempotency, runs = Idempotency(MemoryStore()), Runs()

    async def fail(_: Intent) -> vm_service_pb2.StopVmResponse:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        await idempotency.once(METHOD, FIRST, vm_service_pb2.StopVmResponse, fail)
    assert await _once(idempotency, runs) == 1
    assert not idempotency._running


@pytest.mark.asyncio
async def test_request_without_an_id_is_a_fault_of_ours() -> None:
    """Running without an id would do it twice; validation should have refused it."""
    with pytest.raises(ValueError, match="has no request_id"):
        await _once(Idempotency(MemoryStore()), Runs(), vm_service_pb2.StopVmRequest(vm_id="a"))
