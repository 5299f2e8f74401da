"""Containers from start to end, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from pathlib import Path

import pytest

from cellmesh.guest.containers.model import (
    ContainerSpec,
    ExecProbe,
    Health,
    HealthProbe,
    HttpProbe,
    RestartMode,
    RestartPolicy,
    State,
    TcpProbe,
)
from cellmesh.guest.errors import (
    ContainerNotFound,
    ContainerRunning,
    ContainerStartFailed,
    ImageInUse,
    ImageNotAttached,
    OldGeneration,
    TooManyContainers,
)
from support.local_runtime import IMAGE, MISSING_IMAGE, LocalCell, local_cell, until

pytestmark = pytest.mark.asyncio
_QUICK = RestartPolicy(max_restarts=2, initial_backoff=0.01, max_backoff=0.01)
_NEVER = RestartPolicy(mode=RestartMode.NEVER)
_LONG = ("/bin/sleep", "1000")


def _spec(*argv: str, policy: RestartPolicy = _NEVER, probe: HealthProbe | None = None) -> ContainerSpec:
    return ContainerSpec(image=IMAGE, argv=argv or _LONG, restart_policy=policy, probe=probe, stop_grace=60.0)


def _shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def _state(cell: LocalCell, name: str = "live") -> State:
    return cell.containers.find(name).status.state


async def test_a_container_runs_and_its_output_is_kept() -> None:
    """Started means running, and what it says on both streams is in its log to the last byte."""
    async with local_cell() as cell:
        status = await cell.start("live", 1, _spec(*_shell("echo out; echo err >&2")))
        assert (status.state, status.health) == (State.RUNNING, Health.SERVING)
        await cell.containers.find("live").ended()
        found = cell.containers.logs("live").find(0)
        assert found is not None
        part = found[1].read(0)
        assert sorted((chunk.stream.name, chunk.data) for chunk in part.chunks) == [
            ("STDERR", b"err\n"),
            ("STDOUT", b"out\n"),
        ]
        assert part.ended
        final = cell.containers.find("live").status
        assert (final.state, final.exit_code, final.reason) == (State.STOPPED, 0, "EXITED")


async def test_a_crash_is_restarted_until_it_is_given_up() -> None:
    """The policy's tries are made, counted, and end in FAILED with what to do."""
    async with local_cell() as cell:
        await cell.start("live", 1, _spec(*_shell("exit 3"), policy=_QUICK))
        status = await cell.containers.find("live").ended()
        assert (status.state, status.exit_code, status.restart_count) == (State.FAILED, 3, 2)
        assert "exit code 3" in status.message
        assert "see its log" in status.message
        assert len(cell.runtime.started) == 3
        assert all(container.removed for container in cell.runtime.started)


async def test_a_kill_for_memory_is_told_as_such() -> None:
    """A process killed while its cgroup counts a kill for memory is OOM_KILLED, with the limit in the message."""
    async with local_cell() as cell:
        await cell.start("live", 1, _spec())
        (process,) = cell.runtime.started
        (process.cgroup.path / "memory.events").write_text("oom_kill 1\n")
        process.process.send_signal(9)
        status = await cell.containers.find("live").ended()
        assert (status.state, status.exit_code, status.reason, status.oom_kills) == (
            State.STOPPED,
            137,
            "OOM_KILLED",
            1,
        )
        assert "128 MiB" in status.message


async def test_a_kill_for_memory_of_a_child_is_counted_at_once() -> None:
    """The count of a running container follows its cgroup."""
    async with local_cell() as cell:
        await cell.start("live", 1, _spec())
        (cell.runtime.started[0].cgroup.path / "memory.events").write_text("oom_kill 2\n")
        cell.containers.count_oom_kills()
        assert cell.containers.find("live").status.oom_kills == 2
        assert _state(cell) is State.RUNNING


async def test_stopping_asks_first() -> None:
    """SIGTERM comes first, its exit code is the answer, and a second stop is the same stop."""
    async with local_cell() as cell:
        script = _shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done")
        await cell.start("live", 1, _spec(*script))
        ring = cell.containers.logs("live").find(0)
        assert ring is not None
        await until(lambda: ring[1].end > 0)
        first, second = await asyncio.gather(cell.containers.stop("live"), cell.containers.stop("live"))
        assert first == second
        assert (first.state, first.exit_code, first.reason) == (State.STOPPED, 7, "STOP_REQUESTED")
        assert (await cell.containers.stop("live")) == first


async def test_a_stop_sends_the_signal_of_the_image() -> None:
    """What the image names as its stop signal comes in place of SIGTERM."""
    async with local_cell() as cell:
        script = "trap 'exit 11' TERM; trap 'exit 12' QUIT; echo ready; while :; do sleep 0.05; done"
        await cell.start("live", 1, _spec(*_shell(script)))
        cell.runtime.started[0].stop_signal = signal.SIGQUIT
        found = cell.containers.logs("live").find(0)
        assert found is not None
        await until(lambda: found[1].end > 0)
        assert (await cell.containers.stop("live")).exit_code == 12


async def test_who_does_not_go_is_killed() -> None:
    """After the grace the process is killed, whatever it does with SIGTERM."""
    async with local_cell() as cell:
        await cell.start("live", 1, _spec(*_shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")))
        ring = cell.containers.logs("live").find(0)
        assert ring is not None
        await until(lambda: ring[1].end > 0)
        cell.containers.find("live").request_stop(0.05)
        assert (await cell.containers.stop("live")).exit_code == 137


async def test_a_stop_ends_the_wait_for_a_restart() -> None:
    """A container in BACKOFF stops at once."""
    async with local_cell() as cell:
        slow = RestartPolicy(initial_backoff=600.0, max_backoff=600.0)
        await cell.start("live", 1, _spec(*_shell("exit 1"), policy=slow))
        await until(lambda: _state(cell) is State.BACKOFF)
        assert (await cell.containers.stop("live")).state is State.STOPPED


async def test_one_generation_is_started_once() -> None:
    """Starts of the same generation, at once and later, are one start; an ended one is not begun again."""
    async with local_cell() as cell:
        spec = _spec()
        both = await asyncio.gather(*(cell.start("live", 4, spec) for _ in range(5)))
        assert {status.state for status in both} == {State.RUNNING}
        await cell.containers.stop("live")
        assert (await cell.start("live", 4, spec)).state is State.STOPPED
        assert len(cell.runtime.started) == 1


async def test_a_newer_generation_takes_the_place_of_an_older() -> None:
    """The older is stopped and gone before the newer starts; the past is refused."""
    async with local_cell() as cell:
        await cell.start("live", 4, _spec())
        await cell.start("live", 6, _spec())
        assert cell.runtime.started[0].removed
        assert not cell.runtime.started[1].removed
        with pytest.raises(OldGeneration, match="generation 6"):
            await cell.start("live", 5, _spec())


async def test_a_start_that_fails_says_why_each_time() -> None:
    """Neither a missing program nor a missing disk is a running container, and the status keeps the reason."""
    async with local_cell() as cell:
        for _ in range(2):
            with pytest.raises(ContainerStartFailed, match="No such file"):
                await cell.start("live", 1, _spec("/nowhere"))
        with pytest.raises(ImageNotAttached, match="attach it"):
            await cell.start("dev", 1, ContainerSpec(image=MISSING_IMAGE))
        assert [status.reason for status in cell.containers.statuses()] == [
            "IMAGE_NOT_ATTACHED",
            "CONTAINER_START_FAILED",
        ]
        assert {status.state for status in cell.containers.statuses()} == {State.FAILED}
        assert (await cell.start("live", 2, _spec())).state is State.RUNNING


async def test_a_cell_has_room_for_sixteen() -> None:
    """The seventeenth is refused, and a name that is not there is not found."""
    async with local_cell() as cell:
        for number in range(16):
            await cell.start(f"c{number}", 1, _spec())
        with pytest.raises(TooManyContainers):
            await cell.start("c16", 1, _spec())
        with pytest.raises(ContainerNotFound):
            await cell.containers.stop("c16")


async def test_one_containers_crash_leaves_the_others() -> None:
    """A neighbour's end changes nothing for a container."""
    async with local_cell() as cell:
        await cell.start("live", 1, _spec())
        await cell.start("dev", 1, _spec(*_shell("kill -9 $$")))
        await cell.containers.find("dev").ended()
        assert _state(cell) is State.RUNNING


def _probe(question: HttpProbe | TcpProbe | ExecProbe) -> HealthProbe:
    return HealthProbe(question=question, interval=0.01, timeout=2.0, failure_threshold=2)


async def test_an_exec_probe_follows_its_exit_code(tmp_path: Path) -> None:
    """Health goes both ways with the command's exit code, and says UNKNOWN before the first answer."""
    flag = tmp_path / "well"
    async with local_cell() as cell:
        probe = _probe(ExecProbe(argv=("/bin/sh", "-c", f"yes | head -c 100000; test -e {flag}")))
        await cell.start("live", 1, _spec(probe=probe))
        await until(lambda: cell.containers.find("live").status.health is Health.NOT_SERVING)
        flag.touch()
        await until(lambda: cell.containers.find("live").status.health is Health.SERVING)


@pytest.mark.parametrize(("status", "health"), [(b"204 No Content", Health.SERVING), (b"500 Oh", Health.NOT_SERVING)])
async def test_an_http_probe_follows_the_status(status: bytes, health: Health) -> None:
    """200 to 399 is well, anything else is not."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(EOFError, ConnectionError):
            # A probe that is under way when the container is stopped hangs up.
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, local_cell() as cell:
        port = server.sockets[0].getsockname()[1]
        await cell.start("live", 1, _spec(probe=_probe(HttpProbe(port=port, path="/healthz"))))
        await until(lambda: cell.containers.find("live").status.health is health)


async def test_a_tcp_probe_follows_the_port() -> None:
    """A listening port is well, a closed one is not."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        async with local_cell() as cell:
            await cell.start("live", 1, _spec(probe=_probe(TcpProbe(port=port))))
            await until(lambda: cell.containers.find("live").status.health is Health.NOT_SERVING)
            listener.listen()
            await until(lambda: cell.containers.find("live").status.health is Health.SERVING)


async def test_a_removal_waits_until_a_stopped_container_has_let_go() -> None:
    """STOPPED is reported before the container is taken apart; a running one is refused, and stays."""
    async with local_cell() as cell:
        await cell.start("live", 1, _spec())
        with pytest.raises(ContainerRunning, match="stop it first"):
            await cell.containers.remove("live", persistent=False)
        container = cell.containers.find("live")
        container.request_stop(0.0)
        await until(lambda: _state(cell) is State.STOPPED)
        await cell.containers.remove("live", persistent=True)
        assert container.over
        assert cell.runtime.started[0].removed
        assert cell.runtime.removed == [("live", True)]
        await cell.containers.remove("live", persistent=True)


async def test_an_image_is_released_only_when_no_container_uses_it() -> None:
    """The refusal names the container, or says what still holds the disk."""
    async with local_cell() as cell:
        serial = IMAGE[7:27]
        await cell.start("live", 1, _spec())
        with pytest.raises(ImageInUse, match="live"):
            await cell.containers.release_image(serial)
        await cell.containers.stop("live")
        cell.runtime.busy = "its file system is in use"
        with pytest.raises(ImageInUse, match="in use"):
            await cell.containers.release_image(serial)
        assert cell.runtime.released == []
        cell.runtime.busy = ""
        await cell.containers.release_image(serial)
        await cell.containers.release_image(serial)
        assert cell.runtime.released == [serial, serial]
