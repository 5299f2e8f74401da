"""A failpoint kills its process where it is armed, and nowhere else."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from cellmesh.mesh import failpoint

_PROGRAM = """
import sys
from cellmesh.mesh import failpoint
HERE, THERE = failpoint.declare("here"), failpoint.declare("there")
failpoint.arm(sys.argv[1] or None)
failpoint.reach(HERE)
print("passed here", flush=True)
failpoint.reach(THERE)
print("passed there", flush=True)
"""


@pytest.mark.parametrize(
    ("armed", "code", "printed"),
    [
        ("", 0, "passed here\npassed there\n"),
        ("here", -signal.SIGKILL, ""),
        ("there", -signal.SIGKILL, "passed here\n"),
    ],
)
def test_process_dies_where_it_is_armed(armed: str, code: int, printed: str) -> None:
    """It dies by SIGKILL, so that nothing is tidied up, at that place only."""
    ran = subprocess.run([sys.executable, "-c", _PROGRAM, armed], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (code, printed)


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo in a test or in the code does not pass for a failpoint that is never reached."""
    monkeypatch.setattr(failpoint, "_declared", {"known"})
    for use in (failpoint.arm, failpoint.reach):
        with pytest.raises(failpoint.UnknownFailpoint, match="There are: known"):
            use("unknown")
    assert failpoint.names() == {"known"}
