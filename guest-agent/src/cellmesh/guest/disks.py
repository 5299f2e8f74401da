"""Finding a disk by the serial its host gave it."""

import os
import time
from pathlib import Path

_BLOCK = Path("/sys/block")
_NODES = Path("/dev")
_POLL = 0.02


def find_disk(serial: str, *, block: Path = _BLOCK, nodes: Path = _NODES) -> str | None:
    """Return the device node of the disk with this serial, or None if there is none that can be opened."""
    for disk in sorted(block.glob("vd*")):
        node = nodes / disk.name
        try:
            found = (disk / "serial").read_text(errors="replace").strip("\n\0 ")
            if found == serial:
                # The kernel shows a disk's serial before the disk can be used, and still while the disk leaves.
                os.close(os.open(node, os.O_RDONLY | os.O_CLOEXEC))
                return str(node)
        except OSError:
            continue  # Not every block device has a serial, and one may vanish while we look.
    return None


def wait_for_disk(serial: str, *, timeout: float, block: Path = _BLOCK, nodes: Path = _NODES) -> str | None:
    """Return the device node as `find_disk`, waiting up to `timeout` seconds for a hot-plugged disk; blocks."""
    deadline = time.monotonic() + timeout
    while (node := find_disk(serial, block=block, nodes=nodes)) is None and time.monotonic() < deadline:
        time.sleep(_POLL)
    return node
