"""The RPCs of the hypervisor: decode, ask the lifecycle, encode."""
