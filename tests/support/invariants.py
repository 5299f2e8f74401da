"""What must hold of every life of a VM, each by its name, so that a planted defect can say which of them it breaks."""

from __future__ import annotations

import enum


class Invariant(enum.Enum):
    """One thing that must hold whatever happens."""

    ONE_VMM = "a VM has one VMM at any instant"
    EPOCHS = "an epoch follows the one before, and only at a start"
    EVENTS = "the events of a VM tell its states, each once and in their order"
    ENTRIES = "what is stored is what the log leads to, revision by revision"
    ROUTES = "a route leads where the events of its switches lead, and every container has one"
    ANSWERS = "a repeated request_id gets its first answer"
    WISHES = "a wish that may be wished is taken"
    REST = "a VM comes to rest as it was wished"
    NOTHING_LEFT = "nothing is left of a VM that was deleted"


class Broken(AssertionError):
    """What must always hold did not."""

    def __init__(self, invariant: Invariant, what: str) -> None:
        super().__init__(f"{invariant.value}: {what}")
        self.invariant = invariant
