"""How long `cellmesh up` waits for what it starts: for as long as that moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cellmesh.cli.up.progress import STILL_SECONDS, Progress
from cellmesh.hypervisor.vmm.processor import ProcessorTime


@dataclass(slots=True)
class Machine:
    """A machine with one program, and a clock that only the test moves."""

    log: Path
    now: float = 0.0
    used: float = 0.0
    waited: float = 0.0
    told: list[str] = field(default_factory=list)

    def progress(self) -> Progress:
        """Return what watches the program."""
        return Progress(
            name="the toy",
            pid=1,
            log=self.log,
            tell=self.told.append,
            clock=lambda: self.now,
            measure=lambda _: ProcessorTime(used=self.used, waited=self.waited),
        )


@pytest.mark.parametrize(
    ("used", "waited", "lines", "still"),
    [
        pytest.param(0.1, 0.0, False, False, id="a tenth of a processor"),
        pytest.param(0.0, 1.0, False, False, id="no processor at all"),
        pytest.param(0.0, 0.0, True, False, id="it only writes"),
        pytest.param(0.001, 0.0, False, True, id="only its timers run"),
        pytest.param(0.0, 0.0, False, True, id="it hangs"),
    ],
)
def test_only_a_program_that_does_nothing_is_given_up(
    tmp_path: Path, used: float, waited: float, lines: bool, still: bool
) -> None:
    """In ten times the limit a program that moves is never still, however slowly; one that hangs is."""
    machine = Machine(tmp_path / "log")
    progress = machine.progress()
    seen = []
    for second in range(int(10 * STILL_SECONDS)):
        machine.now, machine.used, machine.waited = second, machine.used + used, machine.waited + waited
        if lines and second % 30 == 0:
            machine.log.write_bytes(b"x" * (second + 1))
        seen.append(progress.is_still())
    assert any(seen) is still
    assert not any(seen[: int(STILL_SECONDS)])
    assert "Still waiting for the toy after 15 s" in machine.told[0]
    assert str(machine.log) in machine.told[0]
