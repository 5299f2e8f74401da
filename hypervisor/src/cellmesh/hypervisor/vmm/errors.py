"""Everything that can go wrong with a VM's process.

VmmError
├── VmmUnreachable     no connection, or it ended before an answer
├── VmmTimeout         connected, no answer in time
├── VmmRefused         an answer that is not success
├── VmmInvalid         an answer that is not what cloud-hypervisor sends, or not from the process it should be
├── LaunchFailed       the VMM, its bridge or a tool could not be started
├── DiskRefused        a disk that is not safe to attach
├── EjectUnfinished    the guest keeps a disk that it was asked to eject
├── BridgeFailed       the bridge refused a request or answered nonsense
├── StillRunning       the wish needs a dead VMM and there is a live one
├── StopUnfinished     the VMM outlived the rungs it was given
├── UidsExhausted      no free uid for another VM
└── InvalidVm          an id, size or name that may not become a path or an argument
"""

from __future__ import annotations

from pathlib import Path

_SHOWN = 300


def shown(text: str | bytes) -> str:
    """Return untrusted text as one short printable line."""
    if isinstance(text, bytes):
        text = text[: _SHOWN * 4].decode("utf-8", "backslashreplace")
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:_SHOWN])
    return line if len(text) <= _SHOWN else f"{line}…"


class VmmError(Exception):
    """A VM's process could not do what was asked."""


class VmmUnreachable(VmmError):
    """The VMM could not be reached, or hung up before it answered: what was asked may or may not have happened."""


class VmmTimeout(VmmError):
    """The VMM did not answer in time: what was asked may or may not have happened."""


class VmmRefused(VmmError):
    """The VMM answered that it will not."""

    def __init__(self, endpoint: str, status: int, message: str) -> None:
        super().__init__(f"cloud-hypervisor refused {endpoint} with status {status}: {message}")
        self.endpoint = endpoint
        self.status = status
        self.message = message


class VmmInvalid(VmmError):
    """The answer is not one of cloud-hypervisor's, or not from the process that should give it."""


class LaunchFailed(VmmError):
    """The VM's processes could not be started; nothing of the attempt is left."""


class DiskRefused(VmmError):
    """The disk is not safe to attach; nothing was opened for the guest."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"The disk {shown(str(path))} {reason}; it was not attached.")
        self.path = path
        self.reason = reason


class EjectUnfinished(VmmError):
    """The guest has not ejected a disk in time; its slot is taken until it does, or until the VM restarts."""


class BridgeFailed(VmmError):
    """The vsock bridge of the VM refused, or answered nonsense."""


class StillRunning(VmmError):
    """A process of the VM is alive; stop or kill it first."""

    def __init__(self, vm_id: str, pid: int) -> None:
        super().__init__(f"Process {pid} still runs VM {vm_id}; stop it first.")
        self.vm_id = vm_id
        self.pid = pid


class StopUnfinished(VmmError):
    """The VMM outlived every rung that was allowed; allow a harder one."""


class UidsExhausted(VmmError):
    """Every uid of the range belongs to a VM; destroy one or widen the range."""


class InvalidVm(VmmError):
    """A VM id, name or size that may not become a path or an argument."""
