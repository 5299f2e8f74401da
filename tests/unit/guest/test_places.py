"""What the agent finds on disks: serials, images, slots, lasting directories."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from cellmesh.guest import disks
from cellmesh.guest.containers import deletion, quotas
from cellmesh.guest.containers.cgroup import Cgroup
from cellmesh.guest.containers.image import BadImage, read_image
from cellmesh.guest.containers.model import Resources
from cellmesh.guest.containers.rootfs import Places, discard_container, discard_layers
from cellmesh.guest.containers.slots import Slots
from cellmesh.guest.containers.users import User


def _plug(root: Path, name: str, serial: str, *, usable: bool = True) -> None:
    (root / "block" / name).mkdir(parents=True)
    (root / "block" / name / "serial").write_text(serial)
    node = root / "dev" / name
    node.parent.mkdir(exist_ok=True)
    if usable:
        node.touch()
    else:
        with socket.socket(socket.AF_UNIX) as refusing:  # As a disk that comes or goes, it can't be opened: ENXIO.
            refusing.bind(str(node))


def _find(root: Path, serial: str) -> str | None:
    return disks.find_disk(serial, block=root / "block", nodes=root / "dev")


def test_a_disk_is_found_by_its_serial(tmp_path: Path) -> None:
    """The serial decides, whatever the order of the disks."""
    for name, serial in (("vda", "root"), ("vdb", "ab12"), ("loop0", "data")):
        _plug(tmp_path, name, serial)
    (tmp_path / "block" / "vdc").mkdir()
    assert _find(tmp_path, "ab12") == str(tmp_path / "dev/vdb")
    assert _find(tmp_path, "data") is None


def test_a_disk_that_cannot_be_opened_yet_is_not_found(tmp_path: Path) -> None:
    """The kernel shows a serial before the disk can be mounted, and still while the disk leaves."""
    _plug(tmp_path, "vda", "ab12", usable=False)
    assert _find(tmp_path, "ab12") is None
    _plug(tmp_path, "vdb", "ab12")
    assert _find(tmp_path, "ab12") == str(tmp_path / "dev/vdb")


def test_a_disk_plugged_late_is_waited_for(tmp_path: Path) -> None:
    """No disk at all is an answer, after the wait."""
    assert disks.wait_for_disk("late", timeout=0.05, block=tmp_path) is None


def _image(root: Path, config: object) -> Path:
    (root / ".cellmesh").mkdir()
    (root / ".cellmesh/config.json").write_text(json.dumps(config))
    (root / "rootfs/etc").mkdir(parents=True)
    (root / "rootfs/etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")
    (root / "rootfs/etc/group").write_text("staff:x:50:\n")
    return root


def test_an_image_says_how_it_is_started(tmp_path: Path) -> None:
    """Entrypoint, command, environment, directory and user are read from the image's own description."""
    config = {"entrypoint": ["/a"], "cmd": ["b"], "env": ["X=1=2", "Y"], "working_dir": "/w", "user": "app:staff"}
    image = read_image(_image(tmp_path, config))
    assert (image.argv, image.cmd, image.working_dir) == (("/a",), ("b",), "/w")
    assert image.environment == (("X", "1=2"), ("Y", ""))
    assert image.user == User(uid=1000, gid=50, home="/home/app")


@pytest.mark.parametrize("config", [[], {"env": "A=B"}, {"entrypoint": [1]}, {"user": 5}, {"cmd": ["a\0b"]}])
def test_a_description_that_is_not_one_is_refused(tmp_path: Path, config: object) -> None:
    """Whatever an image's description holds, it is an error with a sentence or a configuration."""
    with pytest.raises(BadImage, match=r"config\.json"):
        read_image(_image(tmp_path, config))


@pytest.mark.parametrize(("config", "number"), [({}, 15), ({"stop_signal": 3}, 3), ({"stop_signal": 64}, 64)])
def test_an_image_says_which_signal_stops_it(tmp_path: Path, config: dict[str, int], number: int) -> None:
    """An image that was imported before signals were kept is stopped by SIGTERM."""
    assert read_image(_image(tmp_path, config)).stop_signal == number


@pytest.mark.parametrize("value", [0, 65, -9, "SIGQUIT", None, 9.0])
def test_a_stop_signal_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    """No other signal is sent in place of one that does not exist."""
    with pytest.raises(BadImage, match="stop_signal"):
        read_image(_image(tmp_path, {"stop_signal": value}))


def test_a_description_with_a_large_environment_is_read(tmp_path: Path) -> None:
    """Variables of all that execve takes are within the limit of the description."""
    environment = [f"V{number}={'x' * 100_000}" for number in range(15)]
    assert len(read_image(_image(tmp_path, {"env": environment})).environment) == 15


def test_slots_stay_with_their_names(tmp_path: Path) -> None:
    """A container finds the ids its files belong to after every boot, and shares them with nobody."""
    slots = Slots(tmp_path / "slots.json")
    assert [slots.slot(name) for name in ("live", "dev", "live")] == [0, 1, 0]
    again = Slots(tmp_path / "slots.json")
    assert [again.slot(name) for name in ("side", "dev")] == [2, 1]


def test_lasting_directories_do_not_collide() -> None:
    """Two paths of the contract never mean one directory."""
    places = Places(data=Path("/data"))
    paths = ["/a/b", "/a-b", "/a", "/a.b", "/a_b"]
    assert len({places.persistent("live", path) for path in paths}) == len(paths)


def test_limits_are_written_and_numbers_read(tmp_path: Path) -> None:
    """The cgroup's files get the limits, and what they say comes back as numbers."""
    cgroup = Cgroup(tmp_path)
    assert cgroup.create(Resources(memory_bytes=1 << 25, cpu_millis=250, pids=9, io_weight=50)) == []
    written = {name: (tmp_path / name).read_text() for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max")}
    assert written == {
        "memory.max": str(1 << 25), "memory.swap.max": "0", "cpu.max": "25000 100000", "pids.max": "9"
    }  # fmt: skip
    for name, text in {
        "memory.current": "5\n",
        "memory.peak": "6\n",
        "memory.events": "low 0\noom 2\noom_kill 3\n",
        "cpu.stat": "usage_usec 1500000\nthrottled_usec 250000\n",
        "pids.current": "4\n",
        "pids.events": "max 8\n",
        "io.stat": "254:0 rbytes=10 wbytes=20 rios=1\n254:16 rbytes=1 wbytes=2\n",
    }.items():
        (tmp_path / name).write_text(text)
    stats = cgroup.stats()
    assert (stats.memory_bytes, stats.memory_peak_bytes, stats.memory_limit_bytes) == (5, 6, 1 << 25)
    assert (stats.cpu_seconds, stats.throttled_seconds) == (1.5, 0.25)
    assert (stats.pids, stats.pids_refused, stats.oom_kills) == (4, 8, 3)
    assert (stats.io_read_bytes, stats.io_write_bytes) == (11, 22)


def test_discarded_layers_are_gone_at_once_and_deleted_later(tmp_path: Path) -> None:
    """A start after a discard finds no layer, what lasts stays, and the room comes back even after a lost boot."""
    places = Places(data=tmp_path)
    for _ in range(2):
        layer = places.layer("live", "ab12")
        (layer / "upper").mkdir(parents=True)
        places.persistent("live", "/keep").mkdir(parents=True, exist_ok=True)
        discard_layers(places)
        assert not layer.exists()
    discard_layers(places)
    assert len(list(places.discarded.iterdir())) == 2
    assert deletion.main(str(places.discarded)) == 0
    assert deletion.main(str(places.discarded)) == 0
    assert list(places.discarded.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["discarded", "persist"]


def test_a_container_is_discarded_without_its_lasting_directories_unless_asked(tmp_path: Path) -> None:
    """Its ids are free only when none of its files is left in use."""
    places = Places(data=tmp_path)
    (places.layer("live", "ab12") / "upper").mkdir(parents=True)
    (places.layer("dev", "ab12") / "upper").mkdir(parents=True)
    places.persistent("live", "/keep").mkdir(parents=True)
    assert not discard_container(places, "live", persistent=False)
    assert places.persistent("live", "/keep").exists()
    assert discard_container(places, "live", persistent=True)
    assert discard_container(places, "live", persistent=True)
    assert not places.persistent("live", "/keep").exists()
    assert places.layer("dev", "ab12").exists()


def test_a_slot_that_could_not_be_saved_is_not_taken(tmp_path: Path) -> None:
    """After a failed save a name has no ids, here and after a restart, and gets its own once there is room."""
    (tmp_path / "slots.new").mkdir()  # The save cannot write its file.
    slots = Slots(tmp_path / "slots.json")
    with pytest.raises(OSError, match="directory"):
        slots.slot("live")
    (tmp_path / "slots.new").rmdir()
    assert slots.slot("dev") == 0
    assert slots.slot("live") == 1
    assert Slots(tmp_path / "slots.json").slot("live") == 1
    slots.free("dev")
    assert Slots(tmp_path / "slots.json").slot("other") == 0


@pytest.mark.parametrize("total", [1 << 14, 64 << 20, 2 << 30, 16 << 40])
def test_all_containers_but_one_leave_it_a_sixteenth(total: int) -> None:
    """However many there are: at sixteen, that is what each may use."""
    for containers in range(2, 17):
        others = (containers - 1) * quotas.share(total, containers)
        assert total // 16 <= total - total // 32 - others < total // 16 + containers
    assert quotas.share(total, 1) == quotas.share(total, 2) < total
    assert quotas.share(total, 16) >= total // 17


def test_a_container_over_its_share_keeps_what_it_has_and_can_start_anew() -> None:
    """A new layer has room for itself; without one, restarts in a row add nothing."""
    assert quotas.bound(100, 20, 0, room=5, anew=True) == 100
    assert quotas.bound(100, 100, 100, room=5, anew=True) == 105
    assert quotas.bound(100, 104, 105, room=5, anew=False) == 105
    assert quotas.bound(100, 20, 105, room=5, anew=False) == 100
    had, share = 150, 100  # Another container came.
    limit = quotas.bound(share, had, 200, room=5, anew=False)
    assert limit == 155
    assert quotas.bound(share, limit, limit, room=5, anew=False) == limit


def test_a_disk_without_projects_has_no_shares(tmp_path: Path) -> None:
    """Neither counting nor sharing fails there, nor changes anything."""
    (tmp_path / "layers").mkdir()
    quotas.count_for(tmp_path / "layers", 1)
    quotas.share_out(tmp_path, [tmp_path / "layers"])
