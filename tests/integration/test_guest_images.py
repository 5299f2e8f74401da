"""What can be imported can be started: images at the limits of the import, in a real guest."""

from __future__ import annotations

import pytest

from cellmesh.image import ArchiveInvalid, ImageStore
from cellmesh.image.limits import MAX_STRING, MAX_STRINGS, POINTER
from support.cell import Cell
from support.images import example_with

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]

COUNT = "import os; print(sum(len(value) for name, value in os.environ.items() if name.startswith('V_')))"


async def test_the_largest_environment_that_is_imported_starts(cell: Cell) -> None:
    """As many of the longest variables as an image can have reach the program whole; one more is refused at import."""
    store = ImageStore(cell.it.state_dir / "images")
    variables = [f"V_{number}=".ljust(MAX_STRING, "x") for number in range(MAX_STRINGS // (MAX_STRING + 1 + POINTER))]
    cell.images["large"] = example_with(store, Env=["PATH=/usr/bin", *variables], Entrypoint=[], Cmd=["sleep", "1000"])
    async with cell.running("large", image="large") as box:
        ended = await box.run("python3", "-c", COUNT)
    assert ended.stdout.decode().strip() == str(sum(len(variable) - len("V_0=") for variable in variables))
    with pytest.raises(ArchiveInvalid, match="can be started"):
        example_with(store, Env=[*variables, f"V_last={'x' * (MAX_STRING - 7)}"])
