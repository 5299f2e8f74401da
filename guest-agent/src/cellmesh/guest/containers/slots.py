"""Which range of ids a container has: a number that stays with its name as long as its files do."""

import json
import os
from pathlib import Path

MAX_CONTAINERS = 16
_SLOTS = 256


class NoSlot(Exception):
    """Every slot belongs to another container."""


class Slots:
    """The numbers given so far, kept on the data disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slots = self._load()

    def slot(self, name: str) -> int:
        """Return the slot of a container, a new one at its first start; raises NoSlot and OSError."""
        if name not in self._slots:
            free = set(range(_SLOTS)) - set(self._slots.values())
            if not free:
                raise NoSlot(f"this VM has had {_SLOTS} containers of different names: make a new VM")
            self._slots[name] = min(free)
            self._save()
        return self._slots[name]

    def _load(self) -> dict[str, int]:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return {}
        slots = json.loads(text)
        return {str(name): int(slot) for name, slot in slots.items()}

    def _save(self) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(self._slots, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
