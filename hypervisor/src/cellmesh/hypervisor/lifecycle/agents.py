"""What agents say: Hello, which makes a VM RUNNING, and reports of its containers. All of it claims of a stranger."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cellmesh.hypervisor.domain.container import Claim
from cellmesh.hypervisor.domain.errors import GuestRebooted, TooManyReports, VmNotStarting, WrongEpoch
from cellmesh.hypervisor.domain.event import AgentMisbehaved, Subject
from cellmesh.hypervisor.domain.vm import VmState
from cellmesh.hypervisor.lifecycle.sessions import Session, Sessions
from cellmesh.hypervisor.store import Boot, Store, Transaction
from cellmesh.mesh.errors import InvalidRequest

PROTOCOL_VERSION = 1
_RETRY_REPORTS_AFTER = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The answer to Hello."""

    epoch: int
    discard_layers: bool
    heartbeat_interval: timedelta
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One report: whom it claims to come from, and what it claims."""

    vm_id: str
    epoch: int
    sequence: int
    claims: tuple[Claim, ...]


class Agents:
    """Hears the agents. The `vm_id` of each call is that of the socket it came by, never what the agent says."""

    def __init__(
        self,
        *,
        store: Store,
        sessions: Sessions,
        heartbeat_interval: timedelta,
        failpoint: Callable[[str], None],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._heartbeat_interval = heartbeat_interval
        self._failpoint = failpoint

    async def hello(self, vm_id: str, *, boot_id: str, protocol_versions: Collection[int]) -> Welcome:
        """Make the VM RUNNING; the same boot again gets the same answer. Raises VmNotStarting, GuestRebooted."""
        session = self._session(vm_id)
        if PROTOCOL_VERSION not in protocol_versions:
            raise InvalidRequest(
                f"The hypervisor speaks version {PROTOCOL_VERSION} of the contract; use a guest image that does too."
            )
        # Before RUNNING is committed: from then on the reconciler counts the silence of the guest.
        session.hear()
        async with self._store.transaction() as tx:
            boot = await self._boot(tx, session, boot_id)
            now = tx.now
        if boot.boot_id != boot_id:
            session.rebooted = True
            self._store.changes.notify({vm_id})
            raise GuestRebooted("Another boot of this guest said Hello in this epoch; this one will be stopped.")
        if vm_id in tx.stored_vms:
            self._failpoint("start.running_committed")
        session.hear()
        return Welcome(
            epoch=session.epoch,
            discard_layers=boot.discard_layers,
            heartbeat_interval=self._heartbeat_interval,
            time=now,
        )

    async def _boot(self, tx: Transaction, session: Session, boot_id: str) -> Boot:
        """Return the boot the epoch belongs to: the one that is stored, or this one, now RUNNING."""
        vm = await tx.vm(session.vm_id)
        if vm is None or vm.epoch != session.epoch or vm.state not in {VmState.STARTING, VmState.RUNNING}:
            raise _not_starting(session.vm_id)
        boot = await tx.boot(vm.vm_id, vm.epoch)
        if boot is None:
            boot = Boot(boot_id=boot_id, discard_layers=vm.discards_layers)
            await tx.add_boot(vm.vm_id, vm.epoch, boot)
            running = replace(vm.move(VmState.RUNNING), running_time=tx.now, recycle_done=vm.recycle_started)
            await tx.save_vm(running, vm)
        return boot

    async def report(self, vm_id: str, report: Report) -> int:
        """Store what a report changes and return the sequence up to which reports are dealt with.

        Raises VmNotStarting, WrongEpoch, TooManyReports.
        """
        session = self._session(vm_id)
        if not session.admits_report():
            await self._misbehaved(session, "TOO_MANY_REPORTS", "It reports faster than the host takes.")
            raise TooManyReports("Reports come too fast; wait, then go on.", retry_after=_RETRY_REPORTS_AFTER)
        if report.vm_id != vm_id:
            await self._misbehaved(session, "WRONG_VM_ID", "It claimed to be another VM.")
            raise WrongEpoch("This report is not of the VM whose socket it came by; say Hello again.")
        if report.epoch != session.epoch:
            await self._misbehaved(session, "OLD_EPOCH", "It reported for another epoch.")
            raise WrongEpoch(f"This boot has epoch {session.epoch}; say Hello again.")
        session.hear()
        if session.sequence is not None and report.sequence <= session.sequence:
            return session.sequence
        if session.sequence is not None and report.sequence > session.sequence + 1:
            # A report holds the whole state, so what was left out is not missed; that it was is still worth knowing.
            await self._misbehaved(session, "SEQUENCE_GAP", "It left out numbers of its reports.")
        fresh = [claim for claim in report.claims if session.claims.get(claim.name) != claim]
        if fresh:
            await self._store_claims(session, fresh)
        session.sequence = report.sequence
        return report.sequence

    async def misbehaved(self, vm_id: str, kind: str, message: str) -> None:
        """Note that a message of the guest was ignored; `message` is escaped already."""
        session = self._sessions.get(vm_id)
        if session is not None:
            await self._misbehaved(session, kind, message)

    async def _store_claims(self, session: Session, claims: Sequence[Claim]) -> None:
        strange: list[AgentMisbehaved | None] = []
        async with self._store.transaction() as tx:
            vm = await tx.vm(session.vm_id)
            if vm is None or vm.state is not VmState.RUNNING or vm.epoch != session.epoch:
                return
            known = {container.name: container for container in await tx.containers(session.vm_id)}
            for claim in claims:
                container = known.get(claim.name)
                if container is None or claim.generation > container.generation:
                    strange.append(session.misbehaved("UNKNOWN_CONTAINER", "It reported what nobody started."))
                elif container.epoch == vm.epoch and claim.generation == container.generation:
                    await tx.save_container(replace(container, status=claim.status), container)
                    session.claims[claim.name] = claim
            for event in strange:
                if event is not None:
                    await tx.log(Subject(vm_id=session.vm_id, epoch=session.epoch), event)

    async def _misbehaved(self, session: Session, kind: str, message: str) -> None:
        event = session.misbehaved(kind, message)
        if event is not None:
            async with self._store.transaction() as tx:
                await tx.log(Subject(vm_id=session.vm_id, epoch=session.epoch), event)

    def _session(self, vm_id: str) -> Session:
        session = self._sessions.get(vm_id)
        if session is None:
            raise _not_starting(vm_id)
        return session


def _not_starting(vm_id: str) -> VmNotStarting:
    return VmNotStarting(f"VM {vm_id} is not being started; this guest should not be there.")
