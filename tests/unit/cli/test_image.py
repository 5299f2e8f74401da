"""`cellmesh image import`: what comes through a pipe, which of several images, and a disk without room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellmesh.cli.errors import ExitCode
from support import oci


def import_(state: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command with its state below `state`."""
    argv = [sys.executable, "-m", "cellmesh.cli", "image", "import", *arguments]
    environment = {**os.environ, "CELLMESH_STATE_DIR": str(state)}
    return subprocess.run(argv, env=environment, capture_output=True, check=False, **options)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Give a packed layout with one image."""
    layout = oci.layout(tmp_path / "layout", [oci.tar([oci.entry("a", b"1")])])
    return oci.pack_layout(layout, tmp_path / "app.tar.gz")


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_an_image_from_standard_input(tmp_path: Path, archive: Path, name: str) -> None:
    """Both names of standard input read a pipe to its end, and give the digest that the file gives."""
    plain = import_(tmp_path / "plain", str(archive))
    piped = import_(tmp_path / "piped", name, input=archive.read_bytes())
    assert (piped.returncode, piped.stdout) == (ExitCode.OK, plain.stdout)
    assert piped.stdout.startswith(b"sha256:")


def test_no_standard_input_is_said(tmp_path: Path) -> None:
    """A closed or empty standard input is an error in one line, not a traceback."""
    closed = import_(tmp_path, "-", preexec_fn=lambda: os.close(0))
    empty = import_(tmp_path, "-", stdin=subprocess.DEVNULL)
    for done in (closed, empty):
        assert done.returncode == ExitCode.FAILED
        assert b"error: '-' cannot be imported" in done.stderr
        assert b"Traceback" not in done.stderr


def test_several_images_are_listed_and_chosen(tmp_path: Path) -> None:
    """Without `--ref` the names stand in the error, with the option to add; with it that image is imported."""
    layout = oci.layout(tmp_path / "layout", [oci.tar([oci.entry("a")])])
    other = oci.layout(tmp_path / "other", [oci.tar([oci.entry("b")])])
    for blob in (other / "blobs/sha256").iterdir():
        blob.rename(layout / "blobs/sha256" / blob.name)
    entries = []
    for path, name in ((layout, "one"), (other, "two")):
        (entry,) = json.loads((path / "index.json").read_text())["manifests"]
        entries.append({**entry, "annotations": {"org.opencontainers.image.ref.name": name}})
    oci.write_index(layout, entries)
    refused = import_(tmp_path, str(layout))
    assert refused.returncode == ExitCode.USAGE
    assert b"one, two" in refused.stderr
    assert b"--ref one" in refused.stderr
    assert import_(tmp_path, str(layout), "--ref", "two").returncode == ExitCode.OK


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 2 MiB."""
    disk = tmp_path / "full"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_line_and_an_exit_code(full: Path, tmp_path: Path) -> None:
    """The person reads which disk has no room; no file is left on it."""
    layout = oci.layout(tmp_path / "layout", [oci.tar([oci.entry("a", os.urandom(3 << 20))])])
    done = import_(full, str(layout))
    assert done.returncode == ExitCode.EXHAUSTED
    assert f"The image store {full}/images has no room".encode() in done.stderr
    assert b"Traceback" not in done.stderr
    assert [path for path in full.rglob("*") if path.is_file()] == []
