"""What `cellmesh up` starts beside the hypervisor: kept alive, lowered, ended, and where it listens."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from cellmesh.api.hypervisor.v1 import vm_pb2, vm_service_pb2
from cellmesh.cli.connection import connect
from cellmesh.cli.edge_address import answers, check_free, parse_listen
from cellmesh.cli.errors import CliError, UsageError
from cellmesh.cli.output import Output
from cellmesh.cli.up.child import Child, Program, last_words, open_log
from cellmesh.cli.up.envoy import command, lowered
from cellmesh.cli.up.node import _stop_once, _stop_vms
from cellmesh.mesh import status
from cellmesh.mesh.errors import Code, RemoteError
from support.fake_node import FakeNode

SECONDS = 30.0
NOBODY = 65534
NET_BIND_SERVICE = 1 << 10


@asynccontextmanager
async def kept(tmp_path: Path, script: str, tell: Callable[[str], None]) -> AsyncIterator[Child]:
    """Keep a shell's script alive inside; afterwards it is gone."""
    argv = ("/bin/sh", "-c", script)
    child = Child(Program(name="toy", argv=argv, environment={}, log=tmp_path / "log"), tell=tell)
    await child.start()
    keeping = asyncio.create_task(child.keep())
    try:
        yield child
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await child.stop(SECONDS)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_what_dies_is_started_again(tmp_path: Path) -> None:
    """A program that is killed runs again with another pid, and the person is told with its exit code."""
    told: list[str] = []
    async with kept(tmp_path, "exec sleep 1000", told.append) as child:
        first = child.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.pid not in (0, first))
        assert child.restarts == 1
    assert child.pid == 0
    assert "exit code -9" in told[0]


@pytest.mark.asyncio
async def test_what_fails_at_once_is_not_hammered(tmp_path: Path) -> None:
    """The wait before the next start grows from try to try."""
    told: list[str] = []
    ends: list[float] = []

    def note(said: str) -> None:
        ends.append(time.monotonic())
        told.append(said)

    async with kept(tmp_path, "exit 3", note):
        await until(lambda: len(ends) >= 4)
    gaps = [after - before for before, after in itertools.pairwise(ends)]
    # The third wait is at least 0.5 s: a quarter doubled twice, halved by the jitter.
    assert gaps[2] >= 0.5
    assert "exit code 3" in told[0]


@pytest.mark.asyncio
async def test_what_does_not_listen_to_reason_is_killed(tmp_path: Path) -> None:
    """A program that ignores SIGTERM is killed once its time is up."""
    script = (
        f"exec {sys.executable} -c 'import signal, time; signal.signal(15, 1); print(1, flush=1); time.sleep(1000)'"
    )
    child = Child(
        Program(name="toy", argv=("/bin/sh", "-c", script), environment={}, log=tmp_path / "log"), tell=lambda _: None
    )
    await child.start()
    await until(lambda: (tmp_path / "log").read_bytes() == b"1\n")
    await child.stop(0.1)
    assert (child.pid, child.exit_code) == (0, -signal.SIGKILL)


@pytest.mark.parametrize("left", [None, 0o644], ids=["new", "left readable by all"])
def test_a_log_is_its_owners_alone(tmp_path: Path, left: int | None) -> None:
    """A log is 0600 whatever the umask, one that an earlier node left readable too; what was in it stays."""
    log = tmp_path / "hypervisor.log"
    if left is not None:
        log.write_bytes(b"before ")
        log.chmod(left)
    umask = os.umask(0)
    try:
        with open_log(log) as sink:
            sink.write(b"after")
        control = tmp_path / "control.log"
        control.open("ab").close()
    finally:
        os.umask(umask)
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.read_bytes() == (b"after" if left is None else b"before after")
    # Without the mode given, another uid could read it.
    assert control.stat().st_mode & 0o004


def test_a_log_is_never_written_through_a_link(tmp_path: Path) -> None:
    """A link in the place of the log is refused, and what it names stays as it is."""
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        open_log(tmp_path / "log")
    assert not (tmp_path / "elsewhere").exists()


def test_the_end_of_a_log_is_safe_to_print(tmp_path: Path) -> None:
    """The last lines are told with what could drive a terminal escaped; without a log there are none."""
    log = tmp_path / "log"
    assert last_words(log) == ()
    log.write_bytes(b"".join(b"%d\n" % number for number in range(100)) + b"\x1b[2J\xff\n")
    assert last_words(log)[-2:] == ("99", "\\x1b[2J\\xff")
    assert len(last_words(log)) == 20


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("port", "capabilities"), [(8443, 0), (443, NET_BIND_SERVICE)])
def test_the_edge_has_no_privileges_but_a_low_port(port: int, capabilities: int) -> None:
    """Lowered, a program has another uid and gid, no groups, and no capability but the one its port takes."""
    argv = lowered(["/bin/cat", "/proc/self/status"], uid=NOBODY, gid=NOBODY, port=port)
    lines = subprocess.run(argv, check=True, capture_output=True, text=True, env={}).stdout.splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    assert (set(status["Uid"]), set(status["Gid"]), status["Groups"]) == ({str(NOBODY)}, {str(NOBODY)}, [])
    assert status["NoNewPrivs"] == ["1"]
    assert {int(status[name][0], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {capabilities}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_program_runs_from_where_its_uid_can_not_go(tmp_path: Path) -> None:
    """Opened by us, a program in a 0700 directory runs as a uid that could not even see it."""
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    program = Path(shutil.copy2("/bin/echo", hidden / "echo"))
    descriptor = os.open(program, os.O_PATH)
    try:
        argv = lowered(command(descriptor, ["ran"]), uid=NOBODY, gid=NOBODY, port=8443)
        done = subprocess.run(argv, pass_fds=[descriptor], check=True, capture_output=True, text=True, env={})
        named = lowered(["/bin/sh", "-c", str(program)], uid=NOBODY, gid=NOBODY, port=8443)
        assert subprocess.run(named, capture_output=True, env={}, check=False).returncode != 0
    finally:
        os.close(descriptor)
    assert done.stdout.startswith("ran ")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:8443", "https://127.0.0.1:8443/"),
        ("[::1]:443", "https://[::1]:443/"),
        ("0.0.0.0:1", "https://localhost:1/"),
        ("[::]:1", "https://localhost:1/"),
    ],
)
def test_addresses_are_read_and_shown(text: str, url: str) -> None:
    """An address is read and written in one form; what listens everywhere is opened on this machine."""
    assert str(parse_listen(text)) == text
    assert parse_listen(text).url == url


@pytest.mark.parametrize("text", ["8443", ":8443", "host:", "host:0", "host:65536", "::1:8443", "[]:1", "host:https"])
def test_what_is_no_address_is_a_wrong_usage(text: str) -> None:
    """An address that can't be one is refused before anything starts."""
    with pytest.raises(UsageError):
        parse_listen(text)


def test_two_do_not_listen_on_one_address() -> None:
    """An address somebody listens on is refused, though SO_REUSEPORT would let two share it."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = parse_listen(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(CliError, match="can't listen"):
            check_free(listen)
    check_free(listen)


def test_only_a_socket_with_somebody_behind_it_answers(tmp_path: Path) -> None:
    """A socket that a dead process left behind does not count as an authorizer."""
    path = tmp_path / "authz.sock"
    assert not answers(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert answers(path)
    assert not answers(path)


class Vanishing(FakeNode):
    """A node that says of one VM what became of it, when it is told to stop it, and tells no watcher."""

    fate, lost = "", ""

    def StopVm(
        self, request: vm_service_pb2.StopVmRequest, context: grpc.ServicerContext
    ) -> vm_service_pb2.StopVmResponse:
        """Stop any other VM at once."""
        if request.vm_id == self.lost:
            del self.vms[self.lost]
            error = RemoteError("gone", code=Code.FAILED_PRECONDITION, reason=self.fate, domain="hypervisor.cellmesh")
            context.set_trailing_metadata(status.trailers(error))
            context.abort(status.grpc_code(error), error.message)
        self.move(self.vms[request.vm_id], vm_pb2.VM_STATE_STOPPED)
        return vm_service_pb2.StopVmResponse(vm=self.vms[request.vm_id])


@pytest.mark.asyncio
@pytest.mark.parametrize("fate", ["VM_NOT_FOUND", "VM_QUARANTINED", "VM_DELETING"])
async def test_what_became_of_a_vm_since_it_was_listed_stops_nothing(fate: str, run_dir: Path) -> None:
    """A VM that is deleted or quarantined by another need not be stopped; the others are, and are waited for."""
    node = Vanishing()
    node.fate, node.lost = fate, node.add_vm().vm_id
    other = node.add_vm()
    node.start(run_dir / "operator.sock")
    try:
        async with asyncio.timeout(SECONDS), connect(run_dir / "operator.sock") as connected:
            await _stop_vms(connected, Output(json_output=True))
    finally:
        node.stop()
    assert list(node.vms) == [other.vm_id]
    assert other.state == vm_pb2.VM_STATE_STOPPED


@pytest.mark.asyncio
async def test_an_impatient_second_ctrl_c_cuts_nothing_short() -> None:
    """Who is told to stop twice takes down what it had started, to the end."""
    taken_down, stops = asyncio.Event(), []

    async def starting() -> None:
        stops.append(_stop_once())
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await taken_down.wait()
            stops.append(None)

    task = asyncio.create_task(starting())
    await until(lambda: bool(stops))
    stops[0]()
    done, _ = await asyncio.wait({task}, timeout=0.05)
    stops[0]()
    done, _ = await asyncio.wait({task}, timeout=0.05)
    assert not done
    taken_down.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stops[1:] == [None]
