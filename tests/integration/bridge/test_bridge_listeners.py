"""The bridge as its own process: what listens, who may command it, and what ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from cellmesh.hypervisor.bridge.client import BridgeClient, BridgeRefused, BridgeUnreachable
from cellmesh.hypervisor.bridge.console import KEPT
from cellmesh.hypervisor.bridge.main import CONNECTIONS, RESERVE
from cellmesh.hypervisor.vmm import bridges, process
from support import hybrid
from support.bridge import (
    MIB,
    PORT,
    QUIET,
    UID,
    dial,
    give,
    holding,
    noise,
    occupied,
    read_all,
    resident,
    stats_of,
    until,
    until_open,
)

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="a bridge lowers itself to another uid, which needs root")


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["", "../agent", "a/b", ".hidden", "A", "x" * 64, "a\n"])
async def test_a_name_that_leaves_its_directory_is_refused(bridge: tuple[BridgeClient, int], name: str) -> None:
    """Prove that no name becomes a path outside in/."""
    with pytest.raises(BridgeRefused, match="a name is"):
        await bridge[0].add(name, PORT)


@pytest.mark.asyncio
@pytest.mark.parametrize("port", [0, -1, 2**32 - 1, 2**40])
async def test_a_port_that_is_none_is_refused(bridge: tuple[BridgeClient, int], port: int) -> None:
    """Prove that only ports a guest can have are dialled."""
    with pytest.raises(BridgeRefused, match="a port is"):
        await bridge[0].add("agent.2", port)


@pytest.mark.asyncio
async def test_listeners_come_and_go(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that a removed listener leaves no socket behind and its name can be used again."""
    client, _ = bridge
    await client.add("live.1", 8080)
    with pytest.raises(BridgeRefused, match="taken"):
        await client.add("live.1", 8080)
    assert list((await client.stats())["listeners"]) == ["agent.1", "live.1"]
    await client.remove("live.1")
    assert [path.name for path in (directory / "in").iterdir()] == ["agent.1"]
    await client.add("live.1", 8081)


@pytest.mark.asyncio
async def test_a_given_socket_is_served_until_it_is_removed(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that a bridge serves a socket that lies where it may not write, and leaves its file to whoever made it."""
    client, _ = bridge
    path = directory.parent / "app.1.1"
    with hybrid.serve(directory / "vsock.sock", {PORT: lambda c: c.sendall(b"hi")}):
        await give(client, path, "app.1.1")
        with dial(directory, path) as connection:
            assert await asyncio.to_thread(read_all, connection) == b"hi"
        await until_open(client, 0)
        assert stats_of(await client.stats(), "app.1.1") == {**QUIET, "connections": 1, "from_guest_bytes": 2}
        await client.remove("app.1.1")
    with pytest.raises(ConnectionRefusedError):
        dial(directory, path)
    assert path.is_socket()


@pytest.mark.asyncio
async def test_a_socket_that_does_not_listen_is_refused(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that a descriptor of another kind ends the request, and not the bridge."""
    client, pid = bridge
    before = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf, pytest.raises(BridgeUnreachable):
        await client.give(deaf, "app.1.1", PORT, limit=1)
    assert list((await client.stats())["listeners"]) == ["agent.1"]
    await until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) <= before)


@pytest.mark.asyncio
async def test_a_listeners_limit_leaves_room_for_the_agent(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that a container whose callers take every place of it costs neither another one's nor the agent's."""
    client, _ = bridge
    release = threading.Event()
    paths = [directory.parent / name for name in ("app.1.1", "dev.1.1")]
    with hybrid.serve(directory / "vsock.sock", {PORT: holding(release, b"in")}):
        for path in paths:
            await give(client, path, path.name, limit=2)
        try:
            async with occupied(directory, 2, paths[0]):
                with dial(directory, paths[0]) as extra:
                    assert await asyncio.to_thread(extra.recv, 1) == b""
                for path in (paths[1], None):
                    with dial(directory, path) as other:
                        assert await asyncio.to_thread(other.recv, 2) == b"in"
                assert stats_of(await client.stats(), "app.1.1")["refused"] == 1
        finally:
            release.set()


@pytest.mark.asyncio
async def test_ingress_leaves_the_last_places_to_the_agent(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that listeners with a limit cannot take the places that are kept for those without."""
    client, _ = bridge
    release = threading.Event()
    path = directory.parent / "app.1.1"
    with hybrid.serve(directory / "vsock.sock", {PORT: holding(release, b"in")}):
        await give(client, path, "app.1.1", limit=CONNECTIONS)
        try:
            async with occupied(directory, CONNECTIONS - RESERVE, path):
                with dial(directory, path) as extra:
                    assert await asyncio.to_thread(extra.recv, 1) == b""
                with dial(directory) as agent:
                    assert await asyncio.to_thread(agent.recv, 2) == b"in"
        finally:
            release.set()


@pytest.mark.asyncio
async def test_callers_wait_while_the_vmm_is_busy(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that more callers at once than the VMM's queue holds are all served once it looks at its queue."""
    client, _ = bridge
    path = directory / "vsock.sock"
    with socket.socket(socket.AF_UNIX) as vmm:
        vmm.bind(str(path))
        os.chown(path, UID, UID)
        vmm.listen(1)
        vmm.settimeout(60)
        callers = [dial(directory) for _ in range(8)]

        def look() -> None:
            # In one go: the bridge gives each of them two seconds.
            for _ in callers:
                guest, _ = vmm.accept()
                with guest:
                    assert guest.recv(64) == b"CONNECT 1024\n"
                    guest.sendall(b"OK 1\nin")

        try:
            await until_open(client, len(callers))
            await asyncio.to_thread(look)
            for caller in callers:
                assert await asyncio.to_thread(caller.recv, 2) == b"in"
        finally:
            for caller in callers:
                caller.close()


@pytest.mark.asyncio
async def test_cutting_a_listener_ends_its_connections_only(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that a drained container's streams end on both sides, those of others go on, and new ones are taken."""
    client, _ = bridge
    ended = threading.Event()

    def guest(connection: socket.socket) -> None:
        connection.sendall(b"in")
        if connection.recv(1) == b"":
            ended.set()

    path = directory.parent / "app.1.1"
    with hybrid.serve(directory / "vsock.sock", {PORT: guest}):
        await give(client, path, "app.1.1")
        with dial(directory, path) as drained, dial(directory) as other:
            for connection in (drained, other):
                assert await asyncio.to_thread(connection.recv, 2) == b"in"
            await client.cut("app.1.1")
            assert await asyncio.to_thread(drained.recv, 1) == b""
            assert await asyncio.to_thread(ended.wait, 60)
            assert stats_of(await client.stats(), "agent.1")["open"] == 1
            with dial(directory, path) as fresh:
                assert await asyncio.to_thread(fresh.recv, 2) == b"in"
    with pytest.raises(BridgeRefused, match="not there"):
        await client.cut("app.1.2")


@pytest.mark.asyncio
async def test_idle_connections_cost_little(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that a connection that says little takes little: 200 open WebSockets are no 25 MB of buffers."""
    _, pid = bridge
    release = threading.Event()
    with hybrid.serve(directory / "vsock.sock", {PORT: holding(release, b"in")}):
        before = resident(pid)
        try:
            async with occupied(directory, 200):
                assert (resident(pid) - before) / 200 < 48 << 10
        finally:
            release.set()


@pytest.mark.asyncio
@pytest.mark.parametrize("line", [b"{}", b"nonsense", b'{"add": 1}', b'{"format": {}}', b"[" * 3000])
async def test_nonsense_on_the_control_socket_is_answered(
    directory: Path, bridge: tuple[BridgeClient, int], line: bytes
) -> None:
    """Prove that a line that is no request gets an error and the bridge goes on."""
    reader, writer = await asyncio.open_unix_connection(directory / "bridge.sock")
    writer.write(line + b"\n")
    assert b'"error"' in await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert (await bridge[0].stats())["open"] == 0


@pytest.mark.asyncio
async def test_the_vms_own_uid_may_not_command_its_bridge(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that a VMM that was broken out of cannot open sockets through its bridge."""
    setpriv = process.tool("setpriv")
    assert setpriv is not None
    program = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{directory}/bridge.sock'); "
    program += "s.sendall(b'{\"stop\": {}}\\n'); print(s.recv(100))"
    asked = await asyncio.create_subprocess_exec(
        setpriv,
        *(f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "/usr/bin/python3", "-c", program),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asked.communicate()
    assert b"{" not in said
    assert process.start_ticks(bridge[1]) is not None


@pytest.mark.asyncio
async def test_the_bridge_has_no_privilege_left(bridge: tuple[BridgeClient, int]) -> None:
    """Prove drill 3 for the bridge: own uid, no capability, none to be gained."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{bridge[1]}/status").read_text().splitlines())
    assert fields["Uid"].split() == [str(UID)] * 4
    assert fields["Gid"].split() == [str(UID)] * 4
    assert fields["Groups"].split() == []
    assert (int(fields["CapPrm"], 16), int(fields["CapEff"], 16), fields["NoNewPrivs"]) == (0, 0, "1")


@pytest.mark.asyncio
async def test_a_console_without_end_stays_small(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that the newest 64 KiB of a console are kept, raw, and the rest is counted."""
    printed = noise(3, 2 * MIB)
    with (directory / "console.fifo").open("wb", buffering=0) as console:
        await asyncio.to_thread(console.write, printed)
    log = directory / "console.log"
    await until(lambda: log.exists() and log.read_bytes() == printed[-KEPT:])
    assert (await bridge[0].stats())["console_dropped"] == len(printed) - KEPT


@pytest.mark.asyncio
async def test_a_new_bridge_takes_the_console_over(directory: Path) -> None:
    """Prove that a writer who holds the FIFO survives the bridge's death, and what was kept is kept on."""
    first, ticks = await bridges.start(directory, uid=UID)
    with (directory / "console.fifo").open("wb", buffering=0) as console:
        console.write(b"before ")
        log = directory / "console.log"
        await until(lambda: log.exists() and log.read_bytes() == b"before ")
        process.send_signal(first, ticks, signal.SIGKILL)
        await process.wait(first, ticks)
        process.reap(first)
        second, ticks = await bridges.start(directory, uid=UID)
        console.write(b"after")
        await until(lambda: log.read_bytes() == b"before after")
    await bridges.end(second, ticks, directory=directory)


@pytest.mark.asyncio
async def test_a_bridge_ends_with_its_directory(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that a bridge nobody knows any more goes by itself."""
    ticks = process.start_ticks(bridge[1])
    assert ticks is not None
    directory.rename(directory.with_name("elsewhere"))
    directory.mkdir()
    assert await process.wait(bridge[1], ticks, seconds=60)
    process.reap(bridge[1])
    with pytest.raises(BridgeUnreachable):
        await bridge[0].stats()
