"""All checks, in the order they are read."""

from __future__ import annotations

from cellmesh.cli.checks import edge, host, kernel, programs
from cellmesh.cli.checks.finding import Finding, Machine, Verdict


def examine(machine: Machine) -> list[Finding]:
    """Run every check."""
    vmm = programs.check_vmm(machine)
    # Without an image no VM can run, so what builds one is then as needed as the VMM.
    for_images = Verdict.WARN if host.default_image(machine.state_dir) else Verdict.FAIL
    return [
        kernel.check_root(machine),
        kernel.check_kvm(machine, is_needed=not vmm.is_emulated),
        vmm.finding,
        programs.check_program(machine, programs.MKE2FS, without_it=Verdict.FAIL),
        host.check_guest_image(machine),
        programs.check_program(machine, programs.MMDEBSTRAP, without_it=for_images),
        programs.check_program(machine, programs.MKFS_EROFS, without_it=for_images),
        programs.check_program(machine, programs.QEMU, without_it=Verdict.WARN),
        edge.check_envoy(machine),
        edge.check_edge_address(machine),
        kernel.check_cgroups(machine),
        kernel.check_user_namespaces(machine),
        host.check_space(machine),
        host.check_path_length(machine),
        host.check_passage(machine),
        host.check_python(),
        host.check_protobuf(),
        host.check_sqlite(),
        kernel.check_clock(),
    ]
