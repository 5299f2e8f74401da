"""Read an EROFS image back with the tools of erofs-utils, which know nothing of our writer."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def extract(image: Path, target: Path) -> Path:
    """Unpack `image` into `target`; fails if the image is not sound."""
    subprocess.run(["fsck.erofs", f"--extract={target}", image], check=True, capture_output=True)
    return target


def stat(image: Path, path: str) -> dict[str, int]:
    """Return uid, gid, mode (all twelve permission bits) and links of `path` in `image`."""
    shown = subprocess.run(["dump.erofs", f"--path={path}", image], check=True, capture_output=True, text=True).stdout
    nid, links = re.search(r"NID: (\d+)\s+Links: (\d+)", shown).groups()
    uid, gid = re.search(r"Uid: (\d+)\s+Gid: (\d+)", shown).groups()
    # dump.erofs shows nine bits and fsck.erofs loses setuid by a later chown, so the inode itself is asked.
    with image.open("rb") as file:
        file.seek(int(nid) * 32 + 4)
        mode = int.from_bytes(file.read(2), "little") & 0o7777
    return {"uid": int(uid), "gid": int(gid), "mode": mode, "links": int(links)}
