"""The emulator's own promises: its installation, its rights, and the parts the suite sees only as a whole."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chv53.command_line import UsageError, parse
from conformance.payload import Payload
from conformance.vm import Vm
from emulator.vsock_command import BadCommandError, CommandReader
from emulator.vsock_stream import HostSide, Stream

INSTALL = Path(__file__).parents[2] / "tools" / "emulator" / "install.sh"
STRANGER = 54321


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give two joined sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_installation_is_idempotent_and_open_to_all(tmp_path: Path) -> None:
    """Installing twice gives one copy, which every uid may read and run."""
    paths = [subprocess.run([INSTALL, tmp_path], check=True, capture_output=True, text=True).stdout for _ in range(2)]
    assert paths[0] == paths[1]
    assert len(list(tmp_path.iterdir())) == 1
    for path in Path(paths[0].strip()).parent.rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044
    version = subprocess.run([paths[0].strip(), "--version"], check=True, capture_output=True, text=True, env={})
    assert version.stdout == "cloud-hypervisor v53.0-emulated-qemu-tcg\n"


@pytest.mark.guest
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another uid")
def test_stranger_in_a_closed_directory_boots(guest_payload: Payload) -> None:
    """A VM's own uid, in a directory of mode 0700 and without any environment, is enough."""
    with tempfile.TemporaryDirectory(prefix="stranger-") as name:
        home = Path(name)
        home.chmod(0o755)
        binary = Path(
            subprocess.run([INSTALL, home / "bin"], check=True, capture_output=True, text=True).stdout.strip()
        )
        payload = Payload(kernel=home / "vmlinuz", initramfs=home / "initramfs")
        for source, target in ((guest_payload.kernel, payload.kernel), (guest_payload.initramfs, payload.initramfs)):
            target.write_bytes(source.read_bytes())
        directory = home / "vm"
        directory.mkdir(mode=0o700)
        os.chown(directory, STRANGER, STRANGER)
        vm = Vm(binary, directory, payload, uid=STRANGER)
        try:
            vm.start()
            vm.boot()
            assert vm.command("boot-id")
            assert vm.vsock.stat().st_uid == STRANGER
        finally:
            vm.end()


def test_command_line_leaves_what_follows(pair: tuple[socket.socket, socket.socket]) -> None:
    """The reader stops at the newline: the rest is the stream's."""
    ours, theirs = pair
    theirs.sendall(b"CONNECT 99\nfirst bytes")
    assert CommandReader(ours).read() == 99
    assert ours.recv(100) == b"first bytes"


@pytest.mark.parametrize("line", [b"", b"NO", b"CONNECT 4294967296\n", b"CONNECT -1\n", b"CONNECT " + b"0" * 32])
def test_command_line_that_is_none(pair: tuple[socket.socket, socket.socket], line: bytes) -> None:
    """Anything else ends the connection."""
    ours, theirs = pair
    theirs.sendall(line)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(BadCommandError):
        _read_twice(CommandReader(ours))


def test_credit_survives_the_wrap_of_its_counters(pair: tuple[socket.socket, socket.socket]) -> None:
    """Counters are 32 bits wide and wrap: the room is their difference."""
    stream = Stream(pair[0], host_port=1, guest_port=2, established=True)
    stream.take_credit(buffer_bytes=1000, forwarded=0)
    stream.count_sent(600)
    assert stream.credit == 400
    stream.count_sent(0xFFFFFFFF)
    stream.take_credit(buffer_bytes=1000, forwarded=500)
    assert stream.credit == 901


def test_stream_is_finished_when_nothing_can_flow(pair: tuple[socket.socket, socket.socket]) -> None:
    """Both directions must have ended, by whichever side."""
    stream = Stream(pair[0], host_port=1, guest_port=2, established=True)
    stream.guest_sends = False
    assert not stream.finished
    stream.host_side = HostSide.ENDED
    assert stream.finished


@pytest.mark.parametrize("line", [[], ["--api-socket"], ["--kernel", "k"], ["--api-socket", "path=a", "--net", "n"]])
def test_other_arguments_are_refused(line: list[str]) -> None:
    """What the doubles do not do they do not take."""
    with pytest.raises(UsageError):
        parse(line)


def test_arguments_may_carry_an_equals_sign() -> None:
    """Both spellings of an argument mean the same."""
    spelled = ["--api-socket=path=a", "--event-monitor=path=e", "--log-file=l"]
    apart = ["--api-socket", "path=a", "--event-monitor", "path=e", "--log-file", "l"]
    assert parse(spelled) == parse(apart)


def _read_twice(reader: CommandReader) -> None:
    """Read what has come and then the end."""
    reader.read()
    reader.read()
