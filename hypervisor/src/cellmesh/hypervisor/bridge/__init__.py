"""The vsock bridge: a process per VM that joins host unix sockets to ports of one guest, bytes only.

It outlives the hypervisor. It runs with the standard library alone and must not parse what it carries.
"""
