"""What is audited of a node: the actions, and the ids of what they act on."""

from __future__ import annotations

from cellmesh.service.store import Action, Fact

CREATE_VM = Action(
    "vm.create",
    {"owner": Fact.UUID, "guest_image": Fact.DIGEST, "vcpus": Fact.NUMBER, "memory_bytes": Fact.NUMBER},
)
START_VM = Action("vm.start")
START_VM_FOR_REQUEST = Action("vm.start_for_request")
"""The edge has a request for a VM that is stopped."""
STOP_VM = Action("vm.stop")
RECYCLE_VM = Action("vm.recycle")
DELETE_VM = Action("vm.delete", {"force": Fact.FLAG})
START_CONTAINER = Action("container.start", {"image": Fact.DIGEST, "generation": Fact.NUMBER})
RESTART_CONTAINER = Action("container.restart", {"generation": Fact.NUMBER})
STOP_CONTAINER = Action("container.stop", {"generation": Fact.NUMBER})
DELETE_CONTAINER = Action("container.delete", {"generation": Fact.NUMBER, "persistent_paths": Fact.FLAG})
"""It is gone; that it is stopped before is an entry of its own."""
OPEN_EXEC = Action("container.exec", {"exec_id": Fact.UUID})
"""A command is to be run, or come back to; what it is stays between the caller and the guest."""
SWITCH_ROUTE = Action("route.switch", {"container": Fact.NAME, "generation": Fact.NUMBER, "prefix": Fact.PATH})
DRAIN_NODE = Action("node.drain", {"draining": Fact.FLAG})


def vm_resource(vm_id: str) -> str:
    """Return the id of a VM as the log has it."""
    return f"vms/{vm_id}"


def container_resource(vm_id: str, name: str) -> str:
    """Return the id of a container as the log has it."""
    return f"vms/{vm_id}/containers/{name}"
