"""A socket's path is held by one process, and what a dead one left is cleared away."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from cellmesh.mesh import unix_socket
from cellmesh.mesh.identity import EDGE
from cellmesh.mesh.server import MeshServer
from cellmesh.mesh.unix_socket import MAX_PATH_BYTES, SocketUnavailable


def test_leftover_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    """A socket nobody holds the lock of is in nobody's way."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with unix_socket.claim(path):
        assert not path.exists()


def test_second_claim_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    """Two servers never share a path, and one after the other may."""
    path = tmp_path / "s"
    with unix_socket.claim(path), pytest.raises(SocketUnavailable, match="another process"), unix_socket.claim(path):
        pytest.fail("claimed twice")
    with unix_socket.claim(path):
        pass


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A file somebody keeps under the name is not removed, nor is what a link points to."""
    file, link = tmp_path / "f", tmp_path / "l"
    file.write_text("keep")
    link.symlink_to(file)
    for path in (file, link):
        with pytest.raises(SocketUnavailable, match="not a socket"), unix_socket.claim(path):
            pytest.fail("claimed a file")
    assert file.read_text() == "keep"


def test_lock_is_not_followed_out_of_the_directory(tmp_path: Path) -> None:
    """Who owns the directory cannot make us open another file as the lock."""
    (tmp_path / "s.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"), unix_socket.claim(tmp_path / "s"):
        pytest.fail("followed a link")
    assert not (tmp_path / "elsewhere").exists()


def test_long_path_is_refused_with_a_reason(tmp_path: Path) -> None:
    """A path the kernel would cut is told before anything is made."""
    path = tmp_path / ("x" * MAX_PATH_BYTES)
    with pytest.raises(SocketUnavailable, match="shorter run directory"), unix_socket.claim(path):
        pytest.fail("claimed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.asyncio
@pytest.mark.parametrize("closed", [True, False])
async def test_nobody_else_may_connect_before_it_is_said_who(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """A socket is ours alone from its first moment on, under any umask; the control leaves it to the umask."""
    modes: dict[str, int] = {}

    def look(path: Path, **_: object) -> None:
        modes[path.name] = stat.S_IMODE(path.stat().st_mode)

    monkeypatch.setattr(unix_socket, "hand_over", look)
    if not closed:
        monkeypatch.setattr(unix_socket, "closed", nullcontext)
    with _umask(0):
        server = MeshServer([])
        server.add_operator_socket(tmp_path / "o")
        server.add_unix_socket(tmp_path / "e", services=[], caller=EDGE)
        assert os.umask(0) == 0
    async with server:
        assert set(modes) == {"o", "e"}
        assert all((mode & 0o077 == 0) == closed for mode in modes.values()), modes


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
