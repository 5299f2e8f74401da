"""Who this guest is: its boot, and the VM and epoch the host named in its answer to Hello."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from cellmesh.guest.errors import WrongEpoch

_HELLO_WAIT = 10.0  # The answer is on its way; a busy machine may be slow to read it.


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What the host answered to Hello; the interval in seconds."""

    vm_id: str
    epoch: int
    discard_layers: bool
    heartbeat_interval: float


class Identity:
    """The boot's id, and the assignment once there is one."""

    def __init__(self, boot_id: str) -> None:
        self.boot_id = boot_id
        self._assignment: asyncio.Future[Assignment] = asyncio.get_running_loop().create_future()

    @property
    def assigned(self) -> bool:
        """Whether the host has answered in this boot."""
        return self._assignment.done()

    def assign(self, assignment: Assignment) -> None:
        """Take the host's first answer; the same boot gets the same answer, so later ones change nothing."""
        if not self._assignment.done():
            self._assignment.set_result(assignment)

    async def assignment(self) -> Assignment:
        """Wait for the host's answer."""
        return await asyncio.shield(self._assignment)

    async def check_epoch(self, epoch: int) -> None:
        """Refuse what is meant for another boot; raises WrongEpoch."""
        try:
            # The host may call before the answer that made it call has been read here.
            async with asyncio.timeout(_HELLO_WAIT):
                assignment = await self.assignment()
        except TimeoutError:
            raise WrongEpoch("this guest has had no answer to its Hello: try again once it has") from None
        if epoch != assignment.epoch:
            raise WrongEpoch(f"the call is meant for epoch {epoch}, this guest is of epoch {assignment.epoch}")


def read_boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Return the id of this boot of the kernel; raises OSError."""
    return path.read_text().strip()
