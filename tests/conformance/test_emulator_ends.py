"""What ends while the emulator looks elsewhere: a machine that reboots, a host that does not wait for its guest."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from pathlib import Path

import pytest

from chv53.machine import Exit
from emulator.qemu import Qemu, Settings
from emulator.qmp import Qmp
from emulator.vsock_device import VsockDevice
from emulator.vsock_packet import STREAM_TYPE, Operation, Packet
from emulator.vsock_stream import Stream


@pytest.mark.asyncio
async def test_why_a_machine_ended_may_be_heard_after_its_end() -> None:
    """QEMU's end and its word on it come by two sockets: a reset is one whichever is seen first."""
    ours, theirs = socket.socketpair()
    with theirs:
        machine = Qemu({}, Settings(accelerator="tcg", log=2))
        machine._qmp = Qmp(*await asyncio.open_connection(sock=ours), machine._on_event)
        machine._ended.set()
        waiting = asyncio.create_task(machine.wait())
        done, _ = await asyncio.wait({waiting}, timeout=0.1)
        assert not done
        theirs.sendall(json.dumps({"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}).encode() + b"\n")
        theirs.close()
        assert await waiting is Exit.RESET
        greeted = await asyncio.gather(machine._qmp._greeted, return_exceptions=True)
        assert str(greeted[0]) == "QEMU has ended"
        await machine._qmp.close()


def test_a_guest_may_accept_whom_nobody_waits_for() -> None:
    """A guest that answers after the host has hung up costs that connection, and not the device."""
    front_end, theirs = socket.socketpair()
    host, caller = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="cm-") as directory, theirs, host:
        device = VsockDevice(Path(directory) / "vsock.sock", guest_cid=3, front_end=front_end)
        try:
            stream = Stream(host, host_port=1 << 30, guest_port=1024, established=False)
            device._streams[stream.key] = stream
            caller.close()
            device._receive(_response(stream))
            assert device._streams == {}
            assert device._control[-1][:3] == (Operation.RESET, *stream.key)
        finally:
            device.close()


def _response(stream: Stream) -> Packet:
    return Packet(
        target_cid=2,
        host_port=stream.host_port,
        guest_port=stream.guest_port,
        type=STREAM_TYPE,
        operation=Operation.RESPONSE,
        flags=0,
        buffer_bytes=1 << 16,
        forwarded=0,
        payload=[],
    )
