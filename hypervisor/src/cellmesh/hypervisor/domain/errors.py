"""What can go wrong, one class per reason of the contract; each message says what happened and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar


class DomainError(Exception):
    """Something the caller asked for cannot be."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self, message: str, *, retry_after: timedelta | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})


class ImpossibleTransition(DomainError):
    """A VM cannot go from one state to another; a fault of ours."""

    def __init__(self, *, vm_id: str, origin: str, target: str) -> None:
        super().__init__(f"VM {vm_id} cannot go from {origin} to {target}.")


class InvalidRequest(DomainError):
    """A request breaks a rule that the contract cannot express."""

    reason = "INVALID_REQUEST"


class RequestIdReused(DomainError):
    """The request_id was used for another request."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request_id {request_id} was used for another request; choose a new one for a new intent.")


class VmNotFound(DomainError):
    """No VM of this id or user."""

    reason = "VM_NOT_FOUND"

    def __init__(self, key: str) -> None:
        super().__init__(f"There is no VM {key}; it was deleted or never created.")


class VmAlreadyExists(DomainError):
    """The user has a VM already."""

    reason = "VM_ALREADY_EXISTS"

    def __init__(self, user_id: str, vm_id: str) -> None:
        super().__init__(
            f"User {user_id} has VM {vm_id} already; use that one, or delete it first.", metadata={"vm_id": vm_id}
        )


class VmDeleting(DomainError):
    """The VM is being removed."""

    reason = "VM_DELETING"

    def __init__(self, vm_id: str) -> None:
        super().__init__(f"VM {vm_id} is being deleted; wait until it is gone, then create another.")


class VmQuarantined(DomainError):
    """What runs for the VM could not be told for sure."""

    reason = "VM_QUARANTINED"

    def __init__(self, vm_id: str) -> None:
        super().__init__(f"VM {vm_id} is QUARANTINED; read its message, then delete it with force.")


class VmNotRunning(DomainError):
    """The VM does not run."""

    reason = "VM_NOT_RUNNING"

    def __init__(self, vm_id: str, state: str) -> None:
        super().__init__(f"VM {vm_id} is {state}; start it and wait until it is RUNNING.")


class ImageNotFound(DomainError):
    """No image of this digest on the node."""

    reason = "IMAGE_NOT_FOUND"


class NodeFull(DomainError):
    """The node has no room for another VM."""

    reason = "NODE_FULL"


class NodeDraining(DomainError):
    """The node takes no new VMs."""

    reason = "NODE_DRAINING"

    def __init__(self) -> None:
        super().__init__("The node is draining and takes no new VMs or starts; use another node.")


class ContainerNotFound(DomainError):
    """No container of this name in the VM."""

    reason = "CONTAINER_NOT_FOUND"

    def __init__(self, vm_id: str, name: str) -> None:
        super().__init__(f"VM {vm_id} has no container {name}; start it first.")


class ContainerNotRunning(DomainError):
    """The container's process does not run."""

    reason = "CONTAINER_NOT_RUNNING"


class ContainerStartFailed(DomainError):
    """The container could not be started."""

    reason = "CONTAINER_START_FAILED"


class ProviderKeyPresent(DomainError):
    """The container's environment or image carries a provider key."""

    reason = "PROVIDER_KEY_PRESENT"


class TooManyContainers(DomainError):
    """The VM has as many containers as it may."""

    reason = "TOO_MANY_CONTAINERS"

    def __init__(self, vm_id: str, most: int) -> None:
        super().__init__(f"VM {vm_id} has {most} containers already, the most there can be; reuse one of their names.")


class GenerationNotFound(DomainError):
    """The agent keeps no output of this generation."""

    reason = "GENERATION_NOT_FOUND"


class ExecNotFound(DomainError):
    """No command of this exec_id."""

    reason = "EXEC_NOT_FOUND"


class ExecStartFailed(DomainError):
    """The command could not be started."""

    reason = "EXEC_START_FAILED"


class ExecOffsetGone(DomainError):
    """The output wanted was acknowledged and dropped, or the input has a gap."""

    reason = "EXEC_OFFSET_GONE"


class TooManyExecs(DomainError):
    """The VM runs as many commands as it may."""

    reason = "TOO_MANY_EXECS"


class ExecAttachedElsewhere(DomainError):
    """A later stream took the command over."""

    reason = "EXEC_ATTACHED_ELSEWHERE"


class GuestUnreachable(DomainError):
    """The VM's agent does not answer."""

    reason = "GUEST_UNREACHABLE"


class GuestMisbehaved(DomainError):
    """The VM's agent broke the contract."""

    reason = "GUEST_MISBEHAVED"


class GuestRebooted(DomainError):
    """Another boot of the guest already said Hello in this epoch."""

    reason = "GUEST_REBOOTED"


class VmNotStarting(DomainError):
    """A guest said Hello for a VM that is not being started."""

    reason = "VM_NOT_STARTING"


class WrongEpoch(DomainError):
    """A guest speaks for another boot of its VM."""

    reason = "WRONG_EPOCH"


class TooManyReports(DomainError):
    """The reports of a guest come faster than the host takes them."""

    reason = "TOO_MANY_REPORTS"


class ResumeTokenExpired(DomainError):
    """What came after the token is no longer kept."""

    reason = "RESUME_TOKEN_EXPIRED"
