"""The bridge of each VM: started before its VMM, found again after a restart of the hypervisor, ended after it."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import replace
from pathlib import Path

from cellmesh.hypervisor.bridge.client import ASK_SECONDS, BridgeClient, BridgeRefused, BridgeUnreachable, command
from cellmesh.hypervisor.vmm import process, sweep
from cellmesh.hypervisor.vmm.errors import BridgeFailed, LaunchFailed
from cellmesh.hypervisor.vmm.layout import AGENT_PORT
from cellmesh.hypervisor.vmm.liveness import Silence, Watch
from cellmesh.hypervisor.vmm.model import Handle

_START_SECONDS = 15.0
_END_SECONDS = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1


async def start(directory: Path, *, uid: int) -> tuple[int, int]:
    """Start a bridge, wait until it answers, and return its pid and start tick. Raises LaunchFailed."""
    pid = process.start(command(directory, uid), cwd=Path("/"))
    ticks = process.start_ticks(pid) or 0
    try:
        await _answers(directory, pid, ticks)
    except BaseException:
        await end(pid, ticks)
        raise
    return pid, ticks


async def _answers(directory: Path, pid: int, ticks: int) -> None:
    """Wait until a bridge that starts answers. Raises LaunchFailed."""
    client = BridgeClient(directory=directory)
    silence, pause = Silence(Watch.of(pid), limit=_START_SECONDS), _FIRST_PAUSE
    dead: str | None = "It ended."
    while process.is_alive(pid, ticks):
        begun = time.monotonic()
        try:
            await client.stats()
        except BridgeUnreachable:
            await asyncio.sleep(pause)
            dead = silence.unanswered(took=time.monotonic() - begun, within=ASK_SECONDS + pause)
            if dead is not None:
                break
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return
    raise LaunchFailed(f"The vsock bridge of {directory} did not start; is the directory its uid's own? {dead or ''}")


async def ensure(handle: Handle) -> Handle:
    """Return the handle with a live bridge that listens for the agent, starting one if there is none."""
    if not process.is_alive(handle.bridge_pid, handle.bridge_start_ticks):
        pid, ticks = await _started(handle.directory) or await start(handle.directory, uid=handle.uid)
        handle = replace(handle, bridge_pid=pid, bridge_start_ticks=ticks)
    await listen(handle, f"agent.{handle.epoch}", AGENT_PORT)
    return handle


async def _started(directory: Path) -> tuple[int, int] | None:
    """Return the bridge that a hypervisor before us started, once it answers; one that never does is ended."""
    for pid in sweep.bridge_processes(directory):
        if (ticks := process.start_ticks(pid)) is not None:
            try:
                await _answers(directory, pid, ticks)
            except LaunchFailed:
                await end(pid, ticks)
            else:
                return pid, ticks
    return None


async def listen(handle: Handle, name: str, port: int) -> None:
    """Make the bridge listen on in/<name> for a guest port; once is enough. Raises BridgeFailed."""
    client = BridgeClient(directory=handle.directory)
    try:
        listeners = (await client.stats()).get("listeners")
        if not (isinstance(listeners, dict) and name in listeners):
            await client.add(name, port)
    except (BridgeUnreachable, BridgeRefused) as error:
        raise BridgeFailed(str(error)) from error


async def end_all(directory: Path) -> None:
    """End every bridge of a directory."""
    for pid in await asyncio.to_thread(sweep.bridge_processes, directory):
        if (ticks := process.start_ticks(pid)) is not None:
            await end(pid, ticks, directory=directory)


async def end(pid: int, ticks: int, *, directory: Path | None = None) -> None:
    """End one bridge: ask it if it can be asked, so that it saves the console; then kill it."""
    if pid <= 0:
        return
    if directory is not None:
        try:
            await BridgeClient(directory=directory).stop()
            await process.wait(pid, ticks, seconds=_END_SECONDS)
        except (BridgeUnreachable, BridgeRefused):
            pass  # it is killed below
    process.send_signal(pid, ticks, signal.SIGKILL)
    await process.wait(pid, ticks, seconds=_END_SECONDS)
    process.reap(pid)
