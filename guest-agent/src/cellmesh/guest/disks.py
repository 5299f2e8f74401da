"""Finding a disk by the serial its host gave it."""

import time
from pathlib import Path

_BLOCK = Path("/sys/block")
_POLL = 0.02


def find_disk(serial: str, *, block: Path = _BLOCK) -> str | None:
    """Return the device node of the disk with this serial, or None."""
    for disk in sorted(block.glob("vd*")):
        try:
            found = (disk / "serial").read_text(errors="replace").strip("\n\0 ")
        except OSError:
            continue  # Not every block device has a serial, and one may vanish while we look.
        if found == serial:
            return f"/dev/{disk.name}"
    return None


def wait_for_disk(serial: str, *, timeout: float, block: Path = _BLOCK) -> str | None:
    """Return the device node as `find_disk`, waiting up to `timeout` seconds for a hot-plugged disk; blocks."""
    deadline = time.monotonic() + timeout
    while (device := find_disk(serial, block=block)) is None and time.monotonic() < deadline:
        time.sleep(_POLL)
    return device
