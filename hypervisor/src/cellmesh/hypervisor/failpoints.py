"""The places where a test may let the hypervisor die: after each step whose effect outlives the process."""

from __future__ import annotations

from cellmesh.mesh import failpoint

NAMES = tuple(
    failpoint.declare(name)
    for name in (
        "create.committed",
        "start.wish_committed",
        "start.epoch_committed",
        "start.server_listening",
        "launch.handle_written",
        "launch.bridge_started",
        "launch.vmm_forked",
        "launch.vmm_started",
        "launch.vm_created",
        "launch.vm_booted",
        "start.pid_committed",
        "start.running_committed",
        "container.starting_committed",
        "remove.wish_committed",
        "remove.files_removed",
        "remove.committed",
        "image.released",
        "image.detached",
        "switch.committed",
        "stop.wish_committed",
        "stop.stopping_committed",
        "stop.agent_asked",
        "stop.power_button",
        "stop.vmm_exited",
        "stop.vmm_gone",
        "clean.done",
        "stop.cleaned",
        "stop.committed",
        "recycle.wish_committed",
        "delete.wish_committed",
        "delete.deleting_committed",
        "delete.destroyed",
    )
)

reach = failpoint.reach
