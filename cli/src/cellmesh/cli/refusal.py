"""What a node's refusals mean to the person at the terminal."""

from __future__ import annotations

from cellmesh.cli.errors import CliError, ExitCode
from cellmesh.mesh.errors import MeshError

_EXIT_CODES = {
    "INVALID_ARGUMENT": ExitCode.USAGE,
    "OUT_OF_RANGE": ExitCode.USAGE,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "ALREADY_EXISTS": ExitCode.CONFLICT,
    "FAILED_PRECONDITION": ExitCode.CONFLICT,
    "ABORTED": ExitCode.CONFLICT,
    "RESOURCE_EXHAUSTED": ExitCode.EXHAUSTED,
    "PERMISSION_DENIED": ExitCode.DENIED,
    "UNAUTHENTICATED": ExitCode.DENIED,
    "DEADLINE_EXCEEDED": ExitCode.DEADLINE,
}
_FIXES = {
    "VM_NOT_FOUND": "List the VMs with `cellmesh vm ls`.",
    "VM_ALREADY_EXISTS": "Look at it with `cellmesh vm show --user USER`, or start it with `cellmesh vm start`.",
    "VM_DELETING": "Wait until it is gone, then create it anew with `cellmesh vm create`.",
    "VM_QUARANTINED": "See why with `cellmesh vm show VM`; remove it with `cellmesh vm delete --force VM`.",
    "VM_NOT_RUNNING": "Start it with `cellmesh vm start --wait VM`.",
    "IMAGE_NOT_FOUND": "List the images with `cellmesh image ls`; build or import one with `cellmesh image`.",
    "NODE_FULL": "Stop or delete a VM, then try again; `cellmesh node show` has the room left.",
    "NODE_DRAINING": "End the drain with `cellmesh node drain --off`.",
    "NODE_SHUTTING_DOWN": "Try again when the node is back: `cellmesh node show`.",
    "CONTAINER_NOT_FOUND": "List the containers with `cellmesh container ls VM`.",
    "CONTAINER_NOT_RUNNING": "See why with `cellmesh container show VM/CONTAINER`.",
    "CONTAINER_START_FAILED": "Read its output with `cellmesh logs VM/CONTAINER`.",
    "PROVIDER_KEY_PRESENT": "Take the key out of the image or of --env: providers are reached through the gateway.",
    "TOO_MANY_CONTAINERS": "A VM has at most 16 containers.",
    "GENERATION_NOT_FOUND": "Leave --generation out to take the newest.",
    "EXEC_NOT_FOUND": "The command ended long ago, or its VM was restarted; run it again.",
    "EXEC_START_FAILED": "Check that the program exists in the container's image.",
    "TOO_MANY_EXECS": "End one of the VM's running commands first.",
    "EXEC_ATTACHED_ELSEWHERE": "Another stream took this command over.",
    "GUEST_UNREACHABLE": "Look at the layers with `cellmesh vm health VM`; `cellmesh vm recycle VM` starts it anew.",
    "GUEST_MISBEHAVED": "The VM's agent can't be believed; `cellmesh vm recycle VM` starts it anew.",
    "ROUTE_NOT_FOUND": "List the routes with `cellmesh route ls VM`; a container's own is there once it was started.",
    "ROUTE_CHANGED": "Look at it with `cellmesh route ls VM`, then name the revision you mean.",
    "ROUTE_REFUSED": "The route leads where it led before; `cellmesh events VM` has what the edge said.",
    "EDGE_UNREACHABLE": "Start it with `cellmesh up`; what was switched takes effect when the edge is back.",
    "RESUME_TOKEN_EXPIRED": "Start again without --resume-token; `cellmesh vm ls` has the state as it is.",
    "INVALID_RESUME_TOKEN": "Give back a token exactly as `events --json` printed it.",
    "CALLER_NOT_ALLOWED": "Use the operator socket, as the user who owns it.",
}
_FIXES_BY_CODE = {
    "UNAVAILABLE": "Check the node with `cellmesh node show`; start one with `cellmesh up`.",
    "DEADLINE_EXCEEDED": "Try again; `cellmesh vm health VM` says which layer is slow.",
    "INVALID_ARGUMENT": "Correct the value; `--help` says what is allowed.",
    "INTERNAL": "This is a fault of the node; its log has the rest.",
}
_PROGRAM_EXIT_CODES = {"126": ExitCode.EXEC_NOT_EXECUTABLE, "127": ExitCode.EXEC_NOT_THERE}
# After these the same stream may be opened again from where it was.
_BROKEN_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})
_BROKEN_REASONS = frozenset({"WATCHER_TOO_SLOW"})


def explain(error: Exception) -> CliError | None:
    """Return what the node's refusal means, or None if `error` is no refusal."""
    refusal = _refusal(error)
    if refusal is None:
        return None
    code, reason, message = refusal
    fix = _FIXES.get(reason) or _FIXES_BY_CODE.get(code) or "Run `cellmesh doctor`, and look at the node's log."
    exit_code = _EXIT_CODES.get(code, ExitCode.INTERNAL)
    if isinstance(error, MeshError) and reason == "EXEC_START_FAILED":
        exit_code = _PROGRAM_EXIT_CODES.get(error.metadata.get("exit_code", ""), exit_code)
    return CliError(message or f"The node answered {code}.", fix, exit_code=exit_code, reason=reason or code)


def is_broken_stream(error: Exception) -> bool:
    """Tell whether a stream that ended with `error` may be opened again."""
    refusal = _refusal(error)
    if refusal is None:
        return False
    code, reason, _ = refusal
    return code in _BROKEN_CODES or reason in _BROKEN_REASONS


def _refusal(error: Exception) -> tuple[str, str, str] | None:
    """Return code, reason and message of a refusal."""
    if not isinstance(error, MeshError):
        return None
    violations = "; ".join(f"{violation.field}: {violation.description}" for violation in error.field_violations)
    message = f"{error.message} ({violations})" if violations else error.message
    return error.code.name, error.reason, message
