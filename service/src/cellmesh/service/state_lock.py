"""One process of a service per state directory: a lock the kernel frees when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from cellmesh.service.errors import Unusable

# A child that was just forked has a copy of the lock until its exec, even if its parent has been killed meanwhile.
_PATIENCE = 1.0
_PAUSE = 0.02


class StateInUse(Unusable):
    """Another process of the service works on the same state directory."""

    def __init__(self, path: Path, service: str, holder: str) -> None:
        super().__init__(
            f"Another {service} (pid {holder or 'unknown'}) holds {path}; "
            "stop it first, or give this one another CELLMESH_STATE_DIR."
        )


class StateLock:
    """Holds `<state>/<service>.lock` for as long as it is entered; StateInUse if another does for a second."""

    def __init__(self, state_dir: Path, service: str) -> None:
        self._service = service
        self._path = state_dir / f"{service}.lock"
        self._descriptor = -1

    def __enter__(self) -> StateLock:
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if not _locked(descriptor):
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise StateInUse(self._path, self._service, holder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


def _locked(descriptor: int) -> bool:
    ends = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= ends:
                return False
            time.sleep(_PAUSE)
        else:
            return True
