"""What a guest's error means to a caller of the hypervisor."""

from __future__ import annotations

from cellmesh.hypervisor.domain import errors
from cellmesh.mesh.errors import Code, DeadlineExceeded, MeshError, RemoteError

_GUEST = "guest.cellmesh"
# Reasons of the guest that mean the same one floor up.
_PASSED: dict[str, type[MeshError]] = {
    kind.reason: kind
    for kind in (
        errors.ContainerNotRunning,
        errors.ContainerStartFailed,
        errors.DataDiskFull,
        errors.ProviderKeyPresent,
        errors.GenerationNotFound,
        errors.ExecNotFound,
        errors.ExecStartFailed,
        errors.ExecOffsetGone,
        errors.TooManyExecs,
        errors.ExecAttachedElsewhere,
    )
}
# Reasons for which a container cannot be started, that only the host can have caused.
_UNSTARTABLE = frozenset({"IMAGE_NOT_ATTACHED", "OLD_GENERATION", "TOO_MANY_CONTAINERS", "DATA_DISK_FAILED"})


class ImageInUse(MeshError):
    """The guest still uses an image's disk."""

    code = Code.FAILED_PRECONDITION
    reason = "IMAGE_IN_USE"
    domain = _GUEST


# What a shell ends with for a program that is not executable, and for one that is not there.
_SHELL_CODES = frozenset({"126", "127"})


def translated(error: MeshError, *, vm_id: str, name: str = "") -> MeshError:
    """Return the error that says for a caller of the hypervisor what the guest's error says."""
    if isinstance(error, RemoteError) and error.domain == _GUEST:
        return _of_guest(error, vm_id, name)
    if error.code is Code.UNAVAILABLE or isinstance(error, DeadlineExceeded):
        return errors.GuestUnreachable(
            f"The agent of VM {vm_id} does not answer ({error.message}); try again, or recycle the VM.",
            retry_after=error.retry_after,
        )
    return errors.GuestMisbehaved(f"The agent of VM {vm_id} broke the contract ({error.message}); recycle the VM.")


def _of_guest(error: RemoteError, vm_id: str, name: str) -> MeshError:
    if (kind := _PASSED.get(error.reason)) is not None and kind.code is error.code:
        return kind(error.message, retry_after=error.retry_after, metadata=_passed_metadata(error))
    if error.reason == errors.ContainerNotFound.reason and error.code is Code.NOT_FOUND:
        return errors.ContainerNotFound(vm_id, name)
    if error.reason == errors.ContainerRunning.reason:
        return errors.ContainerRunning(name, "running in its guest")
    if error.reason == "IMAGE_IN_USE":
        return errors.GuestUnreachable(f"VM {vm_id} still uses the disk ({error.message}); it is tried again.")
    if error.reason in _UNSTARTABLE:
        return errors.ContainerStartFailed(error.message, metadata={"guest_reason": error.reason})
    if error.reason == errors.WrongEpoch.reason:
        return errors.GuestUnreachable(f"VM {vm_id} is between two boots; try again in a moment.")
    return errors.GuestMisbehaved(
        f"The agent of VM {vm_id} answered {error.reason}, which says nothing here ({error.message}); recycle the VM."
    )


def _passed_metadata(error: RemoteError) -> dict[str, str]:
    """Return what a caller may believe of an error's metadata: a guest can write anything there."""
    code = error.metadata.get("exit_code")
    is_known = error.reason == errors.ExecStartFailed.reason and code in _SHELL_CODES
    return {"exit_code": code} if code is not None and is_known else {}
