"""A second door into a guest under benchmark: what a floor needs is done in the guest's own root, without the agent.

One connection is one request, a line of JSON; its answer is a line of JSON. The host measures, as an emulated guest's
clock is not to be trusted.
"""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

import grpc.aio

from cellmesh.api.guest.v1 import guest_service_pb2, guest_service_pb2_grpc
from cellmesh.guest import boot, kernel, vsock
from cellmesh.guest.containers.runtime import empty_input
from cellmesh.guest.reaper import Reaper

PORT = 2000
_CRUN = ("crun", "--root=/run/crun", "--cgroup-manager=cgroupfs")
_FLOOR = "floor"
_CONFIG = "floor.json"
_BUNDLES = Path("/run/cellmesh/containers")
_OUTPUT = Path("/run/floor.log")
_PAUSE = 0.01
_CHUNK = 64 << 10

RunAgent = Callable[[Reaper], Awaitable[None]]


def beside(run_agent: RunAgent) -> RunAgent:
    """Return what runs the agent with the door open."""

    async def run(reaper: Reaper) -> None:
        door = Door(asyncio.get_running_loop(), reaper)
        threading.Thread(target=door.serve, daemon=True).start()
        await run_agent(reaper)

    return run


class Door:
    """Answers requests, each in a thread of its own; children are started in the agent's loop, which collects them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, reaper: Reaper) -> None:
        self._loop = loop
        self._reaper = reaper

    def serve(self) -> None:
        """Accept for ever."""
        listener = vsock.listen_vsock(PORT)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            request = json.loads(stream.readline())
            answer = {}
            try:
                getattr(self, f"do_{request.pop('do')}")(stream, **request)
            except (OSError, ValueError, grpc.RpcError) as error:
                answer["error"] = repr(error)
            stream.write(json.dumps(answer).encode() + b"\n")
            stream.flush()

    def do_wait(self, _stream: BinaryIO, *, container: str, port: int) -> None:
        """Wait until a port answers in the network namespace of a container that may not be there yet."""
        _enter_network_of(Path(boot.CONTAINER_CGROUPS, container))
        _connect(port)

    def do_prepare(self, _stream: BinaryIO, *, template: str, argv: list[str]) -> None:
        """Make the bundle of a running container into one of another program, to be run by crun alone."""
        bundle = json.loads((_BUNDLES / template / "config.json").read_text())
        bundle["process"]["args"] = argv
        bundle["linux"]["cgroupsPath"] = f"/containers/{_FLOOR}"
        (_BUNDLES / template / _CONFIG).write_text(json.dumps(bundle))

    def do_start(self, _stream: BinaryIO, *, template: str, port: int) -> None:
        """Run the prepared bundle and wait until its port answers."""
        self._crun(
            "run", "--detach", f"--bundle={_BUNDLES / template}", f"--config={_BUNDLES / template / _CONFIG}", _FLOOR
        )
        _enter_network_of(Path(boot.CONTAINER_CGROUPS, _FLOOR))
        _connect(port)

    def do_remove(self, _stream: BinaryIO) -> None:
        """Kill what was started and remove it."""
        self._crun("delete", "--force", _FLOOR)

    def do_exec(self, _stream: BinaryIO, *, container: str, argv: list[str]) -> None:
        """Run a command in a container to its end."""
        self._crun("exec", container, *argv)

    def do_calls(self, _stream: BinaryIO, *, count: int) -> None:
        """Call GetInfo on the agent's own socket, one call after the other."""
        asyncio.run_coroutine_threadsafe(_calls(count), self._loop).result()

    def do_take(self, stream: BinaryIO, *, size: int) -> None:
        """Read bytes."""
        while size:
            size -= len(stream.read(min(size, _CHUNK)))

    def do_give(self, stream: BinaryIO, *, size: int) -> None:
        """Write bytes."""
        chunk = bytes(_CHUNK)
        for _ in range(size // _CHUNK):
            stream.write(chunk)

    def _crun(self, *arguments: str) -> None:
        code = asyncio.run_coroutine_threadsafe(self._spawn(*arguments), self._loop).result()
        if code != 0:
            raise ChildProcessError(f"crun {arguments[0]} ended with {code}: {_OUTPUT.read_text()[-500:]}")

    async def _spawn(self, *arguments: str) -> int:
        stdin = empty_input()
        # No device: crun gives what it is passed to the container's user.
        output = os.open(_OUTPUT, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC)
        try:
            process = self._reaper.spawn([*_CRUN, *arguments], stdin, output, output)
        finally:
            os.close(stdin)
            os.close(output)
        try:
            return await process.exited
        except asyncio.CancelledError:
            process.send_signal(signal.SIGKILL)
            raise


async def _calls(count: int) -> None:
    async with grpc.aio.insecure_channel(f"unix:{boot.RUN}/agent.sock") as channel:
        stub = guest_service_pb2_grpc.GuestServiceStub(channel)
        for _ in range(count):
            await stub.GetInfo(guest_service_pb2.GetInfoRequest())


def _enter_network_of(cgroup: Path) -> None:
    """Move this thread into the network namespace of the first process of a cgroup that has one of its own."""
    machine = Path("/proc/self/ns/net").stat().st_ino
    while True:
        for pid in _processes(cgroup):
            try:
                namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                if os.fstat(namespace).st_ino != machine:
                    kernel.enter_network(namespace)
                    return
            finally:
                os.close(namespace)
        time.sleep(_PAUSE)


def _processes(cgroup: Path) -> list[str]:
    try:
        return (cgroup / "cgroup.procs").read_text().split()
    except OSError:
        return []


def _connect(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(_PAUSE)
        else:
            return
