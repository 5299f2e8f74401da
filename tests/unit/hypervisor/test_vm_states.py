"""The table of transitions: the one in the documentation is the one in the code."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmesh.hypervisor.domain.errors import ImpossibleTransition
from cellmesh.hypervisor.domain.vm import TRANSITIONS, Reason, RestartMode, RestartPolicy, VmState
from support.vms import make_vm

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "vm-states.md"


def rows() -> list[tuple[str, str, str]]:
    """Return the rows of the document's first table."""
    table = DOCUMENT.read_text().split("| From | To | When |")[1].split("\n\n")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]  # type: ignore[misc]


def test_the_document_has_the_table_of_the_code() -> None:
    """Every transition stands in docs/vm-states.md, and no other."""
    assert rows() == [(row.origin.name, row.target.name, row.why) for row in TRANSITIONS]


def test_the_document_explains_every_reason() -> None:
    """Every reason a VM can have stands in docs/vm-states.md."""
    text = DOCUMENT.read_text()
    assert [reason.name for reason in Reason if reason.value and f"| {reason.value} |" not in text] == []


@pytest.mark.parametrize(("origin", "target"), list(itertools.product(VmState, VmState)))
def test_a_vm_moves_only_by_the_table(origin: VmState, target: VmState) -> None:
    """A step that is no row is refused with a typed error, every row is taken."""
    vm = make_vm(state=origin)
    if (origin, target) in {(row.origin, row.target) for row in TRANSITIONS}:
        assert vm.move(target).state is target
    else:
        with pytest.raises(ImpossibleTransition):
            vm.move(target)


def test_every_state_can_be_deleted() -> None:
    """From each state but DELETED there is a way to DELETING."""
    ways = {row.origin for row in TRANSITIONS if row.target is VmState.DELETING}
    assert ways == set(VmState) - {VmState.DELETING, VmState.DELETED}


@given(tries=st.integers(1, 5000), fraction=st.floats(0, 1, exclude_max=True))
def test_a_wait_doubles_and_is_bounded(tries: int, fraction: float) -> None:
    """Each wait lies between half of what the try is due and all of it, and never above the longest."""
    policy = RestartPolicy(initial_backoff=timedelta(seconds=1), max_backoff=timedelta(seconds=30))
    due = min(timedelta(seconds=30), timedelta(seconds=1) * 2 ** min(tries - 1, 10))
    assert due / 2 <= policy.delay(tries, fraction) <= due


def test_never_means_never() -> None:
    """A policy NEVER allows no try at all; others allow exactly as many as they say."""
    assert not RestartPolicy(mode=RestartMode.NEVER).allows(1)
    assert [RestartPolicy(max_restarts=2).allows(tries) for tries in (1, 2, 3)] == [True, True, False]
