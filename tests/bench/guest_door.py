"""The host's side of the door of a guest under benchmark."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from support.real_node import PATIENCE

PORT = 2000
_CHUNK = bytes(64 << 10)


@dataclass(frozen=True, slots=True)
class Door:
    """Asks the door behind a socket of the VM's bridge; blocks."""

    path: Path

    def ask(self, do: str, *, give: int = 0, take: int = 0, **request: object) -> float:
        """Make one request, send `give` bytes after it, read `take` bytes of answer; return the seconds it took.

        Both sizes are multiples of 64 KiB.
        """
        begun = time.perf_counter()
        with socket.socket(socket.AF_UNIX) as end:
            end.settimeout(PATIENCE)
            end.connect(str(self.path))
            end.sendall(json.dumps({"do": do, **request}).encode() + b"\n")
            for _ in range(give // len(_CHUNK)):
                end.sendall(_CHUNK)
            with end.makefile("rb") as answers:
                left = take
                while left:
                    left -= len(answers.read(min(left, len(_CHUNK))))
                answer = answers.readline()
                assert answer == b"{}\n", f"{do} failed in the guest: {answer!r}"
        return time.perf_counter() - begun
