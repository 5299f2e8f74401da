"""Every refusal of the agent: one class, one reason of the contract, one status code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class GuestError(Exception):
    """What a caller is told: a code, a reason of the contract, and a sentence that says what to do."""

    code: ClassVar[str]
    reason: ClassVar[str]
    domain: ClassVar[str] = "guest.cellmesh"

    @property
    def metadata(self) -> dict[str, str]:
        """What a program that reads the error needs besides the sentence."""
        return {}


class InvalidRequest(GuestError):
    """A field breaks a rule the agent's own safety depends on."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"
    domain = "cellmesh"


class Internal(GuestError):
    """A fault of ours."""

    code = "INTERNAL"
    reason = "INTERNAL"
    domain = "cellmesh"


class WrongEpoch(GuestError):
    """The call was meant for another boot of this VM."""

    code = "FAILED_PRECONDITION"
    reason = "WRONG_EPOCH"


class OldGeneration(GuestError):
    """A later generation was started."""

    code = "FAILED_PRECONDITION"
    reason = "OLD_GENERATION"


class ImageNotAttached(GuestError):
    """No disk carries this image."""

    code = "NOT_FOUND"
    reason = "IMAGE_NOT_ATTACHED"


class ContainerStartFailed(GuestError):
    """The container could not be started."""

    code = "FAILED_PRECONDITION"
    reason = "CONTAINER_START_FAILED"


class ProviderKeyPresent(GuestError):
    """The container's environment or image carries a provider key."""

    code = "FAILED_PRECONDITION"
    reason = "PROVIDER_KEY_PRESENT"


class TooManyContainers(GuestError):
    """There is no room for another container."""

    code = "RESOURCE_EXHAUSTED"
    reason = "TOO_MANY_CONTAINERS"


class DataDiskFull(GuestError):
    """The data disk has no room for what a container needs to start."""

    code = "RESOURCE_EXHAUSTED"
    reason = "DATA_DISK_FULL"


class DataDiskFailed(GuestError):
    """The data disk cannot be written for another reason than missing room."""

    code = "INTERNAL"
    reason = "DATA_DISK_FAILED"


class ImageInUse(GuestError):
    """A container still uses the image."""

    code = "FAILED_PRECONDITION"
    reason = "IMAGE_IN_USE"


class ContainerRunning(GuestError):
    """The container's process runs."""

    code = "FAILED_PRECONDITION"
    reason = "CONTAINER_RUNNING"


class ContainerNotFound(GuestError):
    """No container of this name."""

    code = "NOT_FOUND"
    reason = "CONTAINER_NOT_FOUND"


class ContainerNotRunning(GuestError):
    """The container's process does not run."""

    code = "FAILED_PRECONDITION"
    reason = "CONTAINER_NOT_RUNNING"


class GenerationNotFound(GuestError):
    """No output of this generation is kept."""

    code = "NOT_FOUND"
    reason = "GENERATION_NOT_FOUND"


class ExecNotFound(GuestError):
    """No command of this id."""

    code = "NOT_FOUND"
    reason = "EXEC_NOT_FOUND"


class ExecStartFailed(GuestError):
    """The command could not be started; `exit_code` is what a shell would end with, if it is the program's fault."""

    code = "FAILED_PRECONDITION"
    reason = "EXEC_START_FAILED"

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    @property
    def metadata(self) -> dict[str, str]:
        """Return `exit_code`, in digits, if there is one."""
        return {} if self.exit_code is None else {"exit_code": str(self.exit_code)}


class ExecOffsetGone(GuestError):
    """The output wanted was dropped, or the input has a gap."""

    code = "OUT_OF_RANGE"
    reason = "EXEC_OFFSET_GONE"


class TooManyExecs(GuestError):
    """There is no room for another command."""

    code = "RESOURCE_EXHAUSTED"
    reason = "TOO_MANY_EXECS"


class ExecAttachedElsewhere(GuestError):
    """A later stream took the command over."""

    code = "ABORTED"
    reason = "EXEC_ATTACHED_ELSEWHERE"


@contextmanager
def ungrouped(kind: type[Exception]) -> Iterator[None]:
    """Raise the first error of a kind in the place of a task group's errors, unless there are others beside.

    To raise inside `except*` would do on newer Pythons; before 3.11.4 the error comes out in a group again.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        wanted, rest = group.split(kind)
        if wanted is None or rest is not None:
            raise
        first: BaseException = wanted
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
