"""No two installed distributions own the same file: the one installed last would win, in silence."""

from __future__ import annotations

from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest


def _owners() -> dict[Path, set[str]]:
    owners: dict[Path, set[str]] = defaultdict(set)
    for distribution in metadata.distributions():
        for file in distribution.files or ():
            # Byte code is made after installing, and two scripts of one name would be a fault too.
            if file.suffix != ".pyc":
                owners[Path(str(distribution.locate_file(file))).resolve()].add(distribution.name)
    return owners


def test_no_file_has_two_owners() -> None:
    """Installing in another order gives the same environment."""
    owners = _owners()
    assert owners
    assert {str(path): names for path, names in owners.items() if len(names) > 1} == {}


def test_a_second_owner_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two distributions that record one file are told by name."""
    for name in ("one", "two"):
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "RECORD").write_text("shared/module.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert _owners()[(tmp_path / "shared" / "module.py").resolve()] == {"one", "two"}
