"""The bridge as its own process: it carries every byte, keeps each half-close, and stays small whatever it carries."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.hypervisor.bridge.client import BridgeClient, BridgeRefused, BridgeUnreachable
from cellmesh.hypervisor.bridge.console import KEPT
from cellmesh.hypervisor.bridge.main import CONNECTIONS, RESERVE
from cellmesh.hypervisor.vmm import bridges, process
from support import hybrid

UID = 300_001
PORT = 1024
MIB = 1 << 20
QUIET = {
    "port": PORT,
    **dict.fromkeys(("open", "connections", "refused", "failed", "to_guest_bytes", "from_guest_bytes"), 0),
}

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="a bridge lowers itself to another uid, which needs root")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Give a VM's run directory, which the VM's uid can reach."""
    root = Path(tempfile.mkdtemp(prefix="cm-"))
    root.chmod(0o711)
    run = root / "0123456789ab"
    for made in (run, run / "in"):
        made.mkdir(mode=0o700)
        os.chown(made, UID, UID)
    yield run
    shutil.rmtree(root)


@pytest_asyncio.fixture
async def bridge(directory: Path) -> AsyncIterator[tuple[BridgeClient, int]]:
    """Give a running bridge with a listener for the agent, and its pid."""
    pid, ticks = await bridges.start(directory, uid=UID)
    client = BridgeClient(directory=directory)
    await client.add("agent.1", PORT)
    yield client, pid
    await bridges.end(pid, ticks, directory=directory)


def dial(directory: Path, path: Path | None = None) -> socket.socket:
    """Connect to a listener, the agent's if none is named."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(60)
        connection.connect(str(path or directory / "in/agent.1"))
    except BaseException:
        connection.close()
        raise
    return connection


async def give(client: BridgeClient, path: Path, name: str, *, limit: int = 8) -> None:
    """Bind a socket and hand it to the bridge."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(512)
        await client.give(listener, name, PORT, limit=limit)


def stats_of(stats: Mapping[str, object], name: str) -> Mapping[str, int]:
    """Return what a bridge says of one listener."""
    listeners = stats["listeners"]
    assert isinstance(listeners, dict)
    found: Mapping[str, int] = listeners[name]
    return found


async def until_open(client: BridgeClient, count: int) -> None:
    """Wait until a bridge carries so many connections."""
    async with asyncio.timeout(60):
        while (await client.stats())["open"] != count:  # noqa: ASYNC110 - as in until()
            await asyncio.sleep(0.01)


def noise(seed: int, size: int) -> bytes:
    """Return bytes that repeat nowhere, the same on every run."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - nothing secret


def holding(release: threading.Event, first: bytes = b"") -> hybrid.Guest:
    """Return a guest that says something and then reads nothing until it is released."""

    def guest(connection: socket.socket) -> None:
        connection.sendall(first)
        release.wait(60)

    return guest


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side ends its half."""
    return b"".join(iter(lambda: connection.recv(MIB), b""))


async def until(holds: Callable[[], bool]) -> None:
    """Poll until a condition holds; the deadline is far beyond any load."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - what another process does sets no event here
            await asyncio.sleep(0.01)


def test_fifty_megabytes_pass_both_ways_at_once_unchanged(directory: Path, bridge: object) -> None:
    """Prove that the bridge carries bytes exactly, in both directions at the same time."""
    there, back = noise(1, 50 * MIB), noise(2, 50 * MIB)
    seen: list[bytes] = []

    def guest(connection: socket.socket) -> None:
        writer = threading.Thread(target=connection.sendall, args=(back,))
        writer.start()
        seen.append(hashlib.sha256(read_all(connection)).digest())
        writer.join()

    with hybrid.serve(directory / "vsock.sock", {PORT: guest}), dial(directory) as connection:
        reader = threading.Thread(target=lambda: seen.append(hashlib.sha256(read_all(connection)).digest()))
        reader.start()
        connection.sendall(there)
        connection.shutdown(socket.SHUT_WR)
        reader.join()
    assert set(seen) == {hashlib.sha256(there).digest(), hashlib.sha256(back).digest()}


def test_the_guest_may_answer_after_the_host_ended_its_half(directory: Path, bridge: object) -> None:
    """Prove that a half-close towards the guest leaves the other direction open."""
    with (
        hybrid.serve(directory / "vsock.sock", {PORT: lambda c: c.sendall(b"got " + read_all(c))}),
        dial(directory) as connection,
    ):
        connection.sendall(b"question")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"got question"


def test_the_host_may_speak_after_the_guest_ended_its_half(directory: Path, bridge: object) -> None:
    """Prove that a half-close from the guest leaves the other direction open."""
    heard: list[bytes] = []
    done = threading.Event()

    def guest(connection: socket.socket) -> None:
        connection.sendall(b"last word")
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))
        done.set()

    with hybrid.serve(directory / "vsock.sock", {PORT: guest}), dial(directory) as connection:
        assert read_all(connection) == b"last word"
        connection.sendall(b"still here")
        connection.shutdown(socket.SHUT_WR)
        assert done.wait(60)
    assert heard == [b"still here"]


def test_bytes_sent_with_the_handshake_are_not_lost(directory: Path, bridge: object) -> None:
    """Prove that a guest's first bytes, in one packet with OK, reach the host."""
    with (
        hybrid.serve(directory / "vsock.sock", {PORT: lambda c: c.sendall(b" then more")}, together=b"early"),
        dial(directory) as connection,
    ):
        assert read_all(connection) == b"early then more"


@pytest.mark.asyncio
async def test_a_port_without_a_listener_ends_the_connection(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that a refused CONNECT is an end for the caller and a count in the statistics."""
    with hybrid.serve(directory / "vsock.sock", {}), dial(directory) as connection:
        assert await asyncio.to_thread(connection.recv, 1) == b""
    stats = await bridge[0].stats()
    assert (stats["failed"], stats["connections"]) == (1, 1)


def test_a_vmm_that_never_answers_connect_is_given_up(directory: Path, bridge: object) -> None:
    """Prove that a hung handshake ends by the bridge's own timeout and not by the caller's patience."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(directory / "vsock.sock"))
        (directory / "vsock.sock").chmod(0o666)
        silent.listen()
        with dial(directory) as connection:
            assert connection.recv(1) == b""


@pytest.mark.asyncio
async def test_a_slow_reader_stops_the_sender_and_costs_no_memory(
    directory: Path, bridge: tuple[BridgeClient, int]
) -> None:
    """Prove that unread bytes push back to their sender instead of piling up in the bridge."""
    release = threading.Event()
    with hybrid.serve(directory / "vsock.sock", {PORT: holding(release)}), dial(directory) as caller:
        before = resident(bridge[1])
        caller.setblocking(False)
        sent = 0
        quiet_since = time.monotonic()
        while time.monotonic() < quiet_since + 1:
            try:
                sent += caller.send(b"x" * 65536)
                quiet_since = time.monotonic()
            except BlockingIOError:
                await asyncio.sleep(0.01)
            assert sent < 16 * MIB
        assert resident(bridge[1]) - before < 4 * MIB
        release.set()


@pytest.mark.asyncio
async def test_connections_beyond_the_limit_are_closed_at_once(
    directory: Path, bridge: tuple[BridgeClient, int]
) -> None:
    """Prove that one VM cannot make its bridge grow without end, and that a freed place is taken again."""
    client, pid = bridge
    release = threading.Event()
    with hybrid.serve(directory / "vsock.sock", {PORT: holding(release, b"in")}):
        held = [dial(directory) for _ in range(CONNECTIONS)]
        try:
            for connection in held:
                assert await asyncio.to_thread(connection.recv, 2) == b"in"
            with dial(directory) as extra:
                assert await asyncio.to_thread(extra.recv, 1) == b""
            assert (await client.stats())["refused"] == 1
            release.set()
        finally:
            for connection in held:
                connection.close()
        await until_open(client, 0)
        with dial(directory) as again:
            assert await asyncio.to_thread(again.recv, 2) == b"in"
    await until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) < 20)


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
        held = [dial(directory, paths[0]) for _ in range(2)]
        try:
            for connection in held:
                assert await asyncio.to_thread(connection.recv, 2) == b"in"
            with dial(directory, paths[0]) as extra:
                assert await asyncio.to_thread(extra.recv, 1) == b""
            for path in (paths[1], None):
                with dial(directory, path) as other:
                    assert await asyncio.to_thread(other.recv, 2) == b"in"
            assert stats_of(await client.stats(), "app.1.1")["refused"] == 1
        finally:
            release.set()
            for connection in held:
                connection.close()


@pytest.mark.asyncio
async def test_ingress_leaves_the_last_places_to_the_agent(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that listeners with a limit cannot take the places that are kept for those without."""
    client, _ = bridge
    release = threading.Event()
    path = directory.parent / "app.1.1"
    with hybrid.serve(directory / "vsock.sock", {PORT: holding(release, b"in")}):
        await give(client, path, "app.1.1", limit=CONNECTIONS)
        held = [dial(directory, path) for _ in range(CONNECTIONS - RESERVE)]
        try:
            for connection in held:
                assert await asyncio.to_thread(connection.recv, 2) == b"in"
            with dial(directory, path) as extra:
                assert await asyncio.to_thread(extra.recv, 1) == b""
            with dial(directory) as agent:
                assert await asyncio.to_thread(agent.recv, 2) == b"in"
        finally:
            release.set()
            for connection in held:
                connection.close()


@pytest.mark.asyncio
async def test_callers_wait_while_the_vmm_is_busy(directory: Path, bridge: tuple[BridgeClient, int]) -> None:
    """Prove that more callers at once than the VMM's queue holds are all served once it looks at its queue."""
    client, _ = bridge
    path = directory / "vsock.sock"
    with socket.socket(socket.AF_UNIX) as vmm:
        vmm.bind(str(path))
        os.chown(path, UID, UID)
        vmm.listen(1)
        callers = [dial(directory) for _ in range(8)]
        try:
            await until_open(client, len(callers))
            for _ in callers:
                guest, _ = await asyncio.to_thread(vmm.accept)
                with guest:
                    assert await asyncio.to_thread(guest.recv, 64) == b"CONNECT 1024\n"
                    guest.sendall(b"OK 1\nin")
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
        held = [dial(directory) for _ in range(200)]
        try:
            for connection in held:
                assert await asyncio.to_thread(connection.recv, 2) == b"in"
            assert (resident(pid) - before) / 200 < 48 << 10
        finally:
            release.set()
            for connection in held:
                connection.close()


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


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
