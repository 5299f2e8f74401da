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
            # Memory follows the disk: after a failed save the ids must not seem to be taken.
            self._save({**self._slots, name: min(free)})
        return self._slots[name]

    def free(self, name: str) -> None:
        """Give up the slot of a container whose files are all gone; raises OSError and keeps the slot then."""
        if name in self._slots:
            self._save({other: slot for other, slot in self._slots.items() if other != name})

    def _load(self) -> dict[str, int]:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return {}
        slots = json.loads(text)
        return {str(name): int(slot) for name, slot in slots.items()}

    def _save(self, slots: dict[str, int]) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(slots, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._slots = slots
