"""Files of a VM: names that may become paths, sockets, disks, handles, uids and events, each with its attack."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cellmesh.hypervisor.vmm import (
    Disk,
    DiskRefused,
    ExitReason,
    Handle,
    InvalidVm,
    UidsExhausted,
    VmmInvalid,
    disks,
    events,
    handle_file,
    ingress_name,
    layout,
    uids,
)
from cellmesh.hypervisor.vmm.cgroup import Cgroups
from cellmesh.hypervisor.vmm.layout import Layout

VM = "0123456789ab-4cde-8f01-234567890abc"
MIB = 1 << 20


@pytest.fixture
def root() -> Iterator[Path]:
    """Give a directory whose path has room for sockets."""
    with tempfile.TemporaryDirectory(prefix="cm-") as directory:
        yield Path(directory)


def a_handle(directory: Path) -> Handle:
    """Return a handle of no process."""
    return Handle(
        vm_id=VM,
        epoch=3,
        pid=0,
        start_ticks=0,
        host_boot_id="b",
        uid=7,
        bridge_pid=0,
        bridge_start_ticks=0,
        directory=directory,
        created=datetime(2026, 1, 2, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    "vm_id", ["", "../x", "a" * 300, "0123456789ab\0", "0123456789ab;rm", "0123456789\u0430b", "g" * 12]
)
def test_only_an_id_becomes_a_path(root: Path, vm_id: str) -> None:
    """Prove drill 5: no other id makes a path or a file."""
    with pytest.raises(InvalidVm):
        Layout(run_dir=root, state_dir=root).state(vm_id)
    with pytest.raises(InvalidVm):
        Layout(run_dir=root, state_dir=root).make(vm_id, uid=os.getuid(), separate=False)
    assert not list(root.iterdir())


def test_a_run_directory_too_long_for_sockets_is_refused_before_it_is_made(root: Path) -> None:
    """Prove that a path no socket can have fails at once, with what to change."""
    # One byte too long for the socket of a container with the longest name, epoch and generation there can be.
    long = root / ("x" * (36 - len(str(root))))
    with_room = long.with_name(long.name[1:])
    Layout(run_dir=with_room, state_dir=root).make(VM, uid=os.getuid(), separate=False)
    name = ingress_name("c" * 32, epoch=10**10 - 1, generation=10**10 - 1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(Layout(run_dir=with_room, state_dir=root).ingress(VM) / name))
    with pytest.raises(InvalidVm, match="CELLMESH_RUN_DIR"):
        Layout(run_dir=long, state_dir=root).make(VM, uid=os.getuid(), separate=False)
    assert not long.exists()


def test_the_edge_gets_to_its_sockets_whatever_our_umask(root: Path) -> None:
    """Prove that its group may pass through to a VM's ingress, and nobody else, under the umask of a service too."""
    layout = Layout(run_dir=root / "run", state_dir=root / "state", edge_gid=os.getgid())
    before = os.umask(0o077)
    try:
        layout.make(VM, uid=os.getuid(), separate=False)
    finally:
        os.umask(before)
    for directory in (layout.ingress_root, layout.ingress(VM)):
        assert directory.stat().st_mode & 0o777 == 0o710
    assert layout.run_dir.stat().st_mode & 0o111 == 0o111


def test_only_a_socket_is_given_away(root: Path) -> None:
    """Prove that a link or a second name in a VM's directory cannot make us give away another file."""
    target = root / "secret"
    target.write_text("x")
    target.chmod(0o640)
    (root / "link").symlink_to(target)
    for path in (target, root / "link"):
        with pytest.raises(InvalidVm):
            layout.own_socket(path, os.getuid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "a.sock"))
        os.link(root / "a.sock", root / "b.sock")
        with pytest.raises(InvalidVm):
            layout.own_socket(root / "a.sock", os.getuid())
        (root / "b.sock").unlink()
        layout.own_socket(root / "a.sock", os.getuid())
    assert target.stat().st_mode & 0o777 == 0o640
    assert (root / "a.sock").stat().st_mode & 0o777 == 0o600


def test_removing_a_directory_follows_no_link(root: Path) -> None:
    """Prove that what a VM's uid links to survives the removal of the VM."""
    (root / "kept").mkdir()
    (root / "kept/file").write_text("x")
    (root / "vm").mkdir()
    (root / "vm/link").symlink_to(root / "kept")
    layout.remove(root / "vm")
    (root / "vm").symlink_to(root / "kept")
    with pytest.raises(InvalidVm):
        layout.remove(root / "vm")
    assert (root / "kept/file").exists()


def test_a_safe_disk_is_accepted_and_each_unsafe_one_refused(root: Path) -> None:
    """Prove drill 4: link, link on the way, second name, open parent, qcow2, no file, odd serial."""
    real = root / "disk.raw"
    real.write_bytes(bytes(4096))
    disks.check(Disk(path=real, serial="data", readonly=False))
    (root / "link.raw").symlink_to(real)
    (root / "way").symlink_to(root)
    (root / "qcow.raw").write_bytes(b"QFI\xfb" + bytes(4092))
    (root / "open").mkdir()
    (root / "open").chmod(0o777)
    (root / "open/disk.raw").write_bytes(bytes(4096))
    os.mkfifo(root / "fifo")
    for path in ("link.raw", "way/disk.raw", "qcow.raw", "open/disk.raw", "fifo", "missing"):
        with pytest.raises(DiskRefused):
            disks.check(Disk(path=root / path, serial="data", readonly=True))
    with pytest.raises(DiskRefused):
        disks.check(Disk(path=real, serial="data,readonly=off", readonly=True))
    os.link(real, root / "second.raw")
    with pytest.raises(DiskRefused, match="second name"):
        disks.check(Disk(path=real, serial="data", readonly=False))


def test_a_data_disk_is_sparse_whole_and_kept(root: Path) -> None:
    """Prove that a disk equals its template, costs little, survives a second call and is never resized."""
    path, templates = root / "data.raw", root / "templates"
    disks.ensure_data_disk(path, size=64 * MIB, templates=templates, uid=None)
    (template,) = templates.iterdir()
    assert path.read_bytes() == template.read_bytes()
    assert path.read_bytes()[1080:1082] == b"\x53\xef"  # ext4's magic
    assert path.stat().st_blocks * 512 < 8 * MIB
    with path.open("r+b") as disk:
        disk.seek(40 * MIB)
        disk.write(b"somebody's data")
    disks.ensure_data_disk(path, size=64 * MIB, templates=templates, uid=None)
    assert b"somebody's data" in path.read_bytes()
    with pytest.raises(InvalidVm, match="not resized"):
        disks.ensure_data_disk(path, size=128 * MIB, templates=templates, uid=None)
    with pytest.raises(InvalidVm, match="too small"):
        disks.ensure_data_disk(root / "tiny", size=4096, templates=templates, uid=None)


def test_a_handle_comes_back_as_it_was(root: Path) -> None:
    """Prove that what is written is what is read, and that a missing file is no handle."""
    path = root / "handle.json"
    assert handle_file.read(path) is None
    handle_file.write(path, a_handle(root))
    handle_file.write(path, replace(a_handle(root), pid=12))
    assert handle_file.read(path) == replace(a_handle(root), pid=12)
    assert [entry.name for entry in root.iterdir()] == ["handle.json"]


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_truncated_handle_is_a_typed_error(root: Path, cut: int) -> None:
    """Prove drill 43: a torn file is told, not taken for a handle or for none."""
    path = root / "handle.json"
    handle_file.write(path, a_handle(root))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(VmmInvalid):
        handle_file.read(path)


@pytest.mark.parametrize("content", ["[]", "null", '{"pid": -1}', "\x00", "[" * 5000])
def test_a_handle_of_another_shape_is_a_typed_error(root: Path, content: str) -> None:
    """Prove that no JSON makes reading fail in another way."""
    path = root / "handle.json"
    path.write_text(content)
    with pytest.raises(VmmInvalid):
        handle_file.read(path)


def test_a_uid_belongs_to_one_vm_until_it_is_released(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove that uids are unique, survive a restart, and are given again only when released."""
    monkeypatch.setattr(uids, "RANGE", 2)
    given = uids.Uids(root / "uids", base=500)
    assert (given.allocate("a"), given.allocate("b"), given.allocate("a")) == (500, 501, 500)
    again = uids.Uids(root / "uids", base=500)
    assert again.allocate("b") == 501
    with pytest.raises(UidsExhausted):
        again.allocate("c")
    again.release("a")
    assert uids.Uids(root / "uids", base=500).allocate("c") == 500


def test_a_claim_that_a_kill_left_unfinished_is_removed(root: Path) -> None:
    """Prove that nothing stays of a uid whose hypervisor was killed before the uid's file had its name."""
    uids.Uids(root / "uids", base=500).allocate("a")
    (root / "uids" / "501.new").write_text("b")
    uids.Uids(root / "uids", base=500).release("b")
    assert [path.name for path in (root / "uids").iterdir()] == ["500"]


@pytest.mark.parametrize(
    ("text", "asked", "killed", "reason"),
    [
        (
            '{"source": "vm", "event": "shutdown"}\n\n{"source": "vmm", "event": "shutdown"}',
            False,
            False,
            "guest_shutdown",
        ),
        ('{"source": "vmm", "event": "shutdown"}', True, False, "stopped"),
        ('{"source": "guest", "event": "panic"}', False, True, "panic"),
        ('{"source": "vm", "event": "booted"}', False, True, "killed"),
        ("", False, False, "unknown"),
        ('event": "x"}\n{"source": "guest", "event": "panic"}', False, False, "panic"),
        ("{{{{\n{\n[1]\x00", False, False, "unknown"),
    ],
)
def test_events_say_why_a_vmm_ended(root: Path, text: str, asked: bool, killed: bool, reason: str) -> None:
    """Prove that each end is named, and that a torn or odd file only means less is known."""
    (root / "events.json").write_text(text)
    assert events.history(root / "events.json").reason(asked=asked, killed=killed) is ExitReason(reason)


def test_an_events_file_that_is_a_link_or_a_pipe_is_not_read(root: Path) -> None:
    """Prove that a VMM cannot make us read another file, or wait for ever."""
    (root / "real").write_text('{"source": "guest", "event": "panic"}')
    (root / "link").symlink_to(root / "real")
    os.mkfifo(root / "fifo")
    assert events.history(root / "real").panicked
    assert not events.history(root / "link").panicked
    assert not events.history(root / "fifo").panicked


def test_limits_are_written_where_cgroup_v2_has_its_controllers(root: Path) -> None:
    """Prove which limits a VM gets, on a tree laid out as the kernel's, and that a host without says what it lacks."""
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    groups = Cgroups(root=root)
    assert not groups.missing()
    groups.confine("0123456789ab", 4711, memory_bytes=512 * MIB, vcpus=2)
    group = root / "cellmesh/0123456789ab"
    assert (group / "memory.max").read_text() == str(768 * MIB)
    assert (group / "cgroup.procs").read_text() == "4711"
    assert (root / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    (root / "cgroup.controllers").write_text("hugetlb\n")
    assert groups.missing() == {"cpu", "memory", "pids"}
    assert Cgroups(root=None).missing() == {"cpu", "memory", "pids"}
