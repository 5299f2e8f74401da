"""The way from the host into a container, with real processes in network namespaces of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cellmesh.api.common.v1 import container_pb2
from cellmesh.guest import vsock
from cellmesh.guest.containers import ingress, probes
from cellmesh.guest.containers.ingress import CONNECTIONS, Ingress, PortTaken
from cellmesh.guest.containers.model import ContainerSpec, RestartMode, RestartPolicy, State, TcpProbe
from cellmesh.guest.errors import ContainerStartFailed
from cellmesh.guest.relay import Relay
from cellmesh.guest.servicers import codec
from cellmesh.hypervisor.edge import answers
from support.local_runtime import FIRST_PORT, IMAGE, HostListener, LocalCell, local_cell, until

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces"),
]
LIVE, DEV, NEXT = FIRST_PORT + 1, FIRST_PORT + 2, FIRST_PORT + 3
PATIENCE = 60.0
SERVER = """
import os, socket, sys, threading
def serve(connection):
    with connection:
        connection.sendall(f"{sys.argv[1]} {os.getpid()}\\n".encode())
        while data := connection.recv(1 << 16):
            if data == b"die":
                os._exit(1)
            connection.sendall(data)
family = socket.AF_INET6 if ":" in sys.argv[3] else socket.AF_INET
listener = socket.create_server((sys.argv[3], int(sys.argv[2])), family=family, backlog=256)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
"""Says its name and its process id, then sends back what it gets."""


def server(name: str, port: int = 8080, address: str = "127.0.0.1") -> tuple[str, ...]:
    """Return the command line of a server."""
    return (sys.executable, "-I", "-S", "-c", SERVER, name, str(port), address)


def spec(*argv: str, http_port: int = 8080, mode: RestartMode = RestartMode.NEVER) -> ContainerSpec:
    """Return a container that stops at once when it is told to."""
    policy = RestartPolicy(mode=mode, initial_backoff=0.01, max_backoff=0.01)
    return ContainerSpec(image=IMAGE, argv=argv, http_port=http_port, restart_policy=policy)


@contextmanager
def connected(cell: LocalCell, port: int) -> Iterator[socket.socket]:
    """Connect as the host does; raises OSError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(f"{cell.ports}/{port}")
        yield connection


def greeting(connection: socket.socket) -> list[str]:
    """Return what the server says first; nothing if the connection ends instead, or none listens."""
    line = b""
    while not line.endswith(b"\n"):
        try:
            part = connection.recv(64)
        except ConnectionResetError:
            return []
        if not part:
            return []
        line += part
    return [] if line == ingress.NOT_LISTENING else line.decode().split()


def who(cell: LocalCell, port: int) -> str:
    """Return the name of the server a port leads to now; empty if there is none."""
    with connected(cell, port) as connection:
        return "".join(greeting(connection)[:1])


def listens(cell: LocalCell, port: int) -> bool:
    """Tell whether anybody accepts at a port."""
    try:
        with connected(cell, port):
            return True
    except (ConnectionRefusedError, FileNotFoundError):
        return False


async def answered(cell: LocalCell, port: int) -> str:
    """Wait until a server answers at a port, and return its name."""
    async with asyncio.timeout(PATIENCE):
        # Whoever waits for a restart must not keep it from happening.
        while not (answer := await asyncio.to_thread(who, cell, port)):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    return answer


async def test_bytes_go_both_ways_and_half_a_close_is_half_a_close() -> None:
    """What is sent comes back whole, the last of it after the sender has said that there is no more."""
    async with local_cell(apart=True) as cell:
        await cell.start("live", 1, spec(*server("live")), LIVE)
        assert await answered(cell, LIVE) == "live"
        with connected(cell, LIVE) as connection:
            greeting(connection)
            sent = os.urandom(4 << 20)
            sending = asyncio.create_task(
                asyncio.to_thread(lambda: (connection.sendall(sent), connection.shutdown(socket.SHUT_WR)))
            )
            with connection.makefile("rb") as back:
                assert await asyncio.to_thread(back.read) == sent
            await sending


async def test_ports_lead_each_to_its_own_container() -> None:
    """Two containers serve the same port, and neither is reached by the other's, nor by a port it did not name."""
    async with local_cell(apart=True) as cell:
        await cell.start("live", 1, spec(*server("live")), LIVE)
        await cell.start("dev", 1, spec(*server("dev")), DEV)
        await cell.start("other", 1, spec(*server("other", 9000), http_port=9000), NEXT)
        assert [await answered(cell, port) for port in (LIVE, DEV, NEXT)] == ["live", "dev", "other"]
        await cell.containers.stop("dev")
        assert not listens(cell, DEV)
        assert who(cell, LIVE) == "live"


async def test_a_container_that_never_listens_is_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends although the container runs, and so it does while it waits for its next start."""
    monkeypatch.setattr(ingress, "_PATIENCE_AT_START", 0.5)
    async with local_cell(apart=True) as cell:
        await cell.start("live", 1, spec("/bin/sleep", "1000"), LIVE)
        assert who(cell, LIVE) == ""
        await cell.start("dev", 1, spec(*server("dev", 8081)), DEV)
        assert who(cell, DEV) == ""
        slow = RestartPolicy(mode=RestartMode.ALWAYS, initial_backoff=1000, max_backoff=1000)
        waiting = ContainerSpec(image=IMAGE, argv=("/bin/true",), restart_policy=slow)
        await cell.start("next", 1, waiting, NEXT)
        await until(lambda: cell.containers.find("next").status.state is State.BACKOFF)
        assert who(cell, NEXT) == ""


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_server_is_reached_at_either_address_of_localhost(address: str) -> None:
    """A development server that binds `localhost` may listen at one of its addresses alone."""
    async with local_cell(apart=True) as cell:
        await cell.start("live", 1, spec(*server("live", 8080, address)), LIVE)
        assert await answered(cell, LIVE) == "live"
        container = cell.containers.find_running("live")
        for port, wanted in ((8080, True), (8081, False)):
            assert await probes.is_well(TcpProbe(port=port), PATIENCE, container) is wanted


@pytest.mark.parametrize("patient", [True, False])
async def test_who_comes_before_the_server_listens_is_served_when_it_does(
    patient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was said to a container that has just started is heard; without patience it would not be."""
    monkeypatch.setattr(ingress, "_PATIENCE_AT_START", PATIENCE if patient else 0.0)
    monkeypatch.setattr(ingress, "_PATIENCE", PATIENCE if patient else 0.0)
    ready = tmp_path / "ready"
    late = f"while not __import__('os').path.exists({str(ready)!r}): __import__('time').sleep(0.01)\n{SERVER}"
    async with local_cell(apart=True) as cell:
        await cell.start("live", 1, spec(sys.executable, "-I", "-S", "-c", late, *server("live")[-3:]), LIVE)
        with connected(cell, LIVE) as connection:
            with contextlib.nullcontext() if patient else contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"early")
            assert bool(select.select([connection], [], [], 0.2 if patient else PATIENCE)[0]) is not patient
            ready.touch()
            if patient:
                with connection.makefile("rb") as back:
                    assert back.readline().startswith(b"live ")
                    assert back.read(5) == b"early"
            else:
                with connection.makefile("rb") as back:
                    assert back.readline() == b"HTTP/1.1 %d Not Listening\r\n" % answers.NOT_LISTENING


async def test_a_restart_by_policy_keeps_the_port() -> None:
    """The same listener leads to the process that took the place of the one before."""
    async with local_cell(apart=True) as cell:
        await cell.start("live", 1, spec(*server("live"), mode=RestartMode.ALWAYS), LIVE)
        await answered(cell, LIVE)
        listener = (cell.ports / str(LIVE)).stat().st_ino
        with connected(cell, LIVE) as connection:
            _, first = greeting(connection)
            connection.sendall(b"die")
            assert greeting(connection) == []
        await answered(cell, LIVE)
        with connected(cell, LIVE) as connection:
            _, second = greeting(connection)
        assert second != first
        assert (cell.ports / str(LIVE)).stat().st_ino == listener
        assert cell.containers.find("live").status.generation == 1


async def test_a_new_generation_is_never_reached_the_old_way() -> None:
    """The old port is closed before the new process runs, in the namespace they share, and the new one leads there."""
    async with local_cell(apart=True) as cell:
        await cell.start("live", 1, spec(*server("one")), LIVE)
        await answered(cell, LIVE)
        with connected(cell, LIVE) as connection:
            greeting(connection)
            await cell.start("live", 2, spec(*server("two")), NEXT)
            assert greeting(connection) == []
        assert await answered(cell, NEXT) == "two"
        assert not listens(cell, LIVE)


async def test_connections_end_with_the_generation_even_if_a_process_does_not() -> None:
    """A process that outlives its container is cut off: what came for the container is not its any more."""
    async with local_cell(apart=True) as cell:
        command = f"{sys.executable} -I -S -c '{SERVER}' live 8080 127.0.0.1 & exec sleep 1000"
        await cell.start("live", 1, spec("/bin/sh", "-c", command), LIVE)
        await answered(cell, LIVE)
        with connected(cell, LIVE) as connection:
            _, survivor = greeting(connection)
            try:
                await cell.containers.stop("live")
                assert greeting(connection) == []
                assert not listens(cell, LIVE)
                os.kill(int(survivor), 0)
            finally:
                os.kill(int(survivor), signal.SIGKILL)


async def test_what_was_accepted_before_the_end_reaches_nobody_after_it(tmp_path: Path) -> None:
    """A connection that is still being led to its container when the generation ends is closed without a byte."""
    led = threading.Event()
    far, app = socket.socketpair()

    def dial() -> socket.socket:
        led.set()
        relay._closed.wait(PATIENCE)
        return far

    relay = Relay(vsock.listen_unix(str(tmp_path / "near")), dial)
    relay.start()
    with app, vsock.dial_unix(str(tmp_path / "near")) as host:
        host.sendall(b"too late")
        assert led.wait(PATIENCE)
        relay.close()
        assert app.recv(64) == b""


async def test_connections_are_bounded_for_each_container() -> None:
    """One more than the bound is closed at once, a place that is left is given again, and others have their own."""
    async with local_cell(apart=True) as cell:
        await cell.start("live", 1, spec(*server("live")), LIVE)
        await cell.start("dev", 1, spec(*server("dev")), DEV)
        await answered(cell, LIVE)
        await answered(cell, DEV)
        with ExitStack() as stack:
            # Those who asked until it answered may still be leaving.
            held: list[socket.socket] = []

            def hold() -> bool:
                connection = stack.enter_context(connected(cell, LIVE))
                if greeting(connection):
                    held.append(connection)
                return len(held) == CONNECTIONS

            await until(hold)
            assert who(cell, LIVE) == ""
            assert who(cell, DEV) == "dev"
            held[0].close()
            assert await answered(cell, LIVE) == "live"


async def test_only_the_host_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is not the host is closed unheard."""
    async with local_cell(apart=True) as cell:
        await cell.start("live", 1, spec(*server("live")), LIVE)
        await answered(cell, LIVE)
        monkeypatch.setattr(HostListener, "peer_cid", 3)
        assert who(cell, LIVE) == ""
        monkeypatch.setattr(HostListener, "peer_cid", vsock.HOST_CID)
        assert who(cell, LIVE) == "live"


async def test_a_taken_port_is_a_failed_start() -> None:
    """Nothing of the second container runs, its status says why, and the first is reached as before."""
    async with local_cell(apart=True) as cell:
        await cell.start("live", 1, spec(*server("live")), LIVE)
        with pytest.raises(ContainerStartFailed, match=f"{LIVE} of the guest's vsock: Address already in use"):
            await cell.start("dev", 1, spec(*server("dev")), LIVE)
        status = cell.containers.find("dev").status
        assert (status.state, status.reason) == (State.FAILED, "CONTAINER_START_FAILED")
        assert len(cell.runtime.started) == 1
        assert await answered(cell, LIVE) == "live"


async def test_a_failed_start_leaves_no_port() -> None:
    """Nobody listens for a container whose process never ran."""
    async with local_cell() as cell:
        with pytest.raises(ContainerStartFailed):
            await cell.start("live", 1, spec("/nowhere"), LIVE)
        assert not listens(cell, LIVE)


async def test_the_port_is_the_one_the_specification_names() -> None:
    """0 is 8080."""
    assert codec.decode_spec(container_pb2.ContainerSpec(image=IMAGE)).http_port == 8080
    assert codec.decode_spec(container_pb2.ContainerSpec(image=IMAGE, http_port=9000)).http_port == 9000


async def test_a_vsock_port_is_free_again_after_the_close() -> None:
    """A thread that waits for connections lets go of its listener, which neither shutdown nor close makes it do."""
    try:
        vsock.listen_vsock(LIVE).close()
    except OSError as error:
        pytest.skip(f"this machine has no vsock: {error}")
    ingress = Ingress(LIVE, 8080, vsock.listen_vsock)
    ingress.open()
    with pytest.raises(PortTaken):
        Ingress(LIVE, 8080, vsock.listen_vsock).open()
    ingress.close()
    vsock.listen_vsock(LIVE).close()
