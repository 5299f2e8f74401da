"""One generation of a container: started, watched, started again by its policy, and stopped."""

import asyncio
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from cellmesh.guest.boot import say
from cellmesh.guest.containers import probes
from cellmesh.guest.containers.backoff import Ended, Restarts
from cellmesh.guest.containers.ingress import Ingress, PortTaken
from cellmesh.guest.containers.logs import LogRing, OutputReader, Stream
from cellmesh.guest.containers.model import ContainerSpec, ContainerStatus, Health, HealthProbe, State
from cellmesh.guest.containers.runtime import (
    ImageMissing,
    KeyFound,
    NoRoom,
    RunningContainer,
    Runtime,
    StartFailed,
    Stdio,
    empty_input,
)
from cellmesh.guest.errors import (
    ContainerStartFailed,
    DataDiskFull,
    GuestError,
    ImageNotAttached,
    Internal,
    ProviderKeyPresent,
)

_KILLED = 128 + signal.SIGKILL
_FIRST_PROBE_PAUSE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a container is given by who owns it."""

    runtime: Runtime
    changed: Callable[[], None]
    random: Callable[[], float]


class Container:
    """One generation of a container; `run` is its life, and somebody else's task."""

    def __init__(
        self,
        *,
        name: str,
        generation: int,
        slot: int,
        spec: ContainerSpec,
        ring: LogRing,
        ingress: Ingress,
        surroundings: Surroundings,
    ) -> None:
        self.spec = spec
        self.ring = ring
        self.status = ContainerStatus(name=name, generation=generation, state=State.STARTING)
        self.running: RunningContainer | None = None
        self._slot = slot
        self._ingress = ingress
        self._surroundings = surroundings
        self._restarts = Restarts(spec.restart_policy, surroundings.random)
        self._grace = spec.stop_grace
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._started: asyncio.Future[GuestError | None] = asyncio.get_running_loop().create_future()
        self._oom_kills_before = 0

    async def started(self) -> ContainerStatus:
        """Wait until its process first runs; raises the GuestError that kept it from running."""
        error = await asyncio.shield(self._started)
        if error is not None:
            raise error
        return self.status

    def request_stop(self, grace: float | None = None) -> None:
        """Ask it to stop, within its own grace or a shorter one, seconds."""
        if grace is not None:
            self._grace = min(self._grace, grace)
        self._stop.set()

    async def ended(self) -> ContainerStatus:
        """Wait until nothing of it runs any more."""
        await self._ended.wait()
        return self.status

    @property
    def over(self) -> bool:
        """Tell whether nothing of it runs any more."""
        return self._ended.is_set()

    def count_oom_kills(self) -> None:
        """Read again how many of its processes the kernel killed for memory."""
        if self.running is not None:
            count = self._oom_kills_before + self.running.cgroup.oom_kills()
            if count != self.status.oom_kills:
                self._update(oom_kills=count)

    async def run(self) -> None:
        """Live: start, run, and start again until stopped, done or given up."""
        try:
            while await self._run_once():
                self._update(state=State.STARTING, restart_count=self.status.restart_count + 1)
        except Exception as error:  # One container's trouble must not be the whole agent's.
            traceback.print_exc()
            self._update(state=State.FAILED, reason="INTERNAL", message=f"a fault of the agent: {type(error).__name__}")
        finally:
            self.running = None
            self._ingress.close()
            self.ring.close()
            self._settle(
                Internal("a fault of the agent kept the container from starting; the VM's console has the rest")
            )
            self._ended.set()

    async def _run_once(self) -> bool:
        try:
            running, readers = await self._start()
        except GuestError as error:
            return await self._start_failed(error)
        self.running = running
        self._ingress.lead_to(running.network)
        began = time.monotonic()
        health = Health.UNKNOWN if self.spec.probe else Health.SERVING
        self._update(state=State.RUNNING, health=health, start_time=time.time(), reason="", message="")
        self._settle(None)
        try:
            code = await self._attend(running)
        finally:
            for reader in readers:
                reader.drain()
        killed_for_memory = self._note_oom_kills(running)
        self.running = None
        self._ingress.lead_to(None)
        reason = "OOM_KILLED" if killed_for_memory and code == _KILLED else "EXITED"
        delay = self._decide(Ended(exit_code=code, ran=time.monotonic() - began), reason)
        await running.remove()
        return await self._wait_for_restart(delay)

    async def _start(self) -> tuple[RunningContainer, list[OutputReader]]:
        runtime, status = self._surroundings.runtime, self.status
        pipes = [os.pipe(), os.pipe()]
        stdio = Stdio(stdin=empty_input(), stdout=pipes[0][1], stderr=pipes[1][1])
        running = None
        try:
            self._ingress.open()
            running = await runtime.start(status.name, self._slot, self.spec, stdio)
        except (StartFailed, PortTaken) as error:
            raise ContainerStartFailed(f"container {status.name} could not be started: {error}") from error
        except ImageMissing as error:
            raise ImageNotAttached(
                f"image {self.spec.image}: {error}; attach it and start the container again"
            ) from error
        except NoRoom as error:
            raise DataDiskFull(f"container {status.name} could not be started: {error}") from error
        except KeyFound as error:
            raise ProviderKeyPresent(f"container {status.name} does not start: {error}") from error
        finally:
            os.close(stdio.stdin)
            for read_end, write_end in pipes:
                os.close(write_end)
                if running is None:
                    os.close(read_end)
        streams = zip(pipes, (Stream.STDOUT, Stream.STDERR), strict=True)
        return running, [OutputReader(pipe[0], stream, self.ring) for pipe, stream in streams]

    async def _start_failed(self, error: GuestError) -> bool:
        if not self._started.done():
            self._update(state=State.FAILED, reason=error.reason, message=str(error), health=Health.NOT_SERVING)
            self._settle(error)
            return False
        self._update(message=str(error))
        return await self._wait_for_restart(self._decide(Ended(exit_code=1, ran=0.0), error.reason))

    async def _attend(self, running: RunningContainer) -> int:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._stop_when_asked(running))]
            if self.spec.probe is not None:
                tasks.append(group.create_task(self._probe(running, self.spec.probe)))
            code = await asyncio.shield(running.process.exited)
            for task in tasks:
                task.cancel()
        return code

    async def _stop_when_asked(self, running: RunningContainer) -> None:
        await self._stop.wait()
        self._update(state=State.STOPPING)
        running.process.send_signal(running.stop_signal)
        try:
            async with asyncio.timeout(self._grace):
                await asyncio.shield(running.process.exited)
        except TimeoutError:
            running.cgroup.kill()
            running.process.send_signal(signal.SIGKILL)

    async def _probe(self, running: RunningContainer, probe: HealthProbe) -> None:
        failures, pause = 0, min(_FIRST_PROBE_PAUSE, probe.interval)
        while True:
            if await probes.is_well(probe.question, probe.timeout, running):
                failures, pause = 0, probe.interval
                self._set_health(Health.SERVING)
            elif pause >= probe.interval:
                failures += 1
                if failures >= probe.failure_threshold:
                    self._set_health(Health.NOT_SERVING)
            await asyncio.sleep(pause)
            # Somebody waits for the first good answer: until it comes, it is asked for often, then ever less.
            pause = min(pause * 2, probe.interval)

    def _decide(self, ended: Ended, reason: str) -> float | None:
        """Say in the status what follows this end; returns the seconds until the next start, None for never."""
        self._update(exit_code=ended.exit_code, health=Health.NOT_SERVING)
        if self._stop.is_set():
            self._update(state=State.STOPPED, reason="STOP_REQUESTED", message="")
            return None
        what = self._describe(ended, reason)
        if not self._restarts.wanted(ended):
            self._update(state=State.STOPPED, reason=reason, message=what)
            return None
        delay = self._restarts.next_delay(ended)
        if delay is None:
            message = f"{what}; given up after {self.spec.restart_policy.max_restarts} restarts in a row: see its log"
            self._update(state=State.FAILED, reason=reason, message=message)
            return None
        self._update(state=State.BACKOFF, reason=reason, message=what)
        return delay

    def _describe(self, ended: Ended, reason: str) -> str:
        if reason == "EXITED":
            return f"it ended with exit code {ended.exit_code}"
        if reason == "OOM_KILLED":
            limit = self.spec.resources.memory_bytes >> 20
            return f"the kernel killed it for memory: raise memory_bytes above {limit} MiB or use less"
        return self.status.message

    async def _wait_for_restart(self, delay: float | None) -> bool:
        if delay is None:
            return False
        try:
            async with asyncio.timeout(delay):
                await self._stop.wait()
        except TimeoutError:
            return True
        self._update(state=State.STOPPED, reason="STOP_REQUESTED", message="")
        return False

    def _note_oom_kills(self, running: RunningContainer) -> bool:
        kills = running.cgroup.oom_kills()
        self._oom_kills_before += kills
        self._update(oom_kills=self._oom_kills_before)
        return kills > 0

    def _set_health(self, health: Health) -> None:
        if health is not self.status.health:
            self._update(health=health)

    def _settle(self, error: GuestError | None) -> None:
        if not self._started.done():
            self._started.set_result(error)

    def _update(self, **changes: object) -> None:
        before = self.status
        self.status = replace(before, **changes)  # type: ignore[arg-type]  # the fields' own types are checked by tests
        if before.state is not self.status.state:
            say(
                f"container {before.name} generation {before.generation}: {self.status.state.name} {self.status.reason}"
            )
        self._surroundings.changed()
