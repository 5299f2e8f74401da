"""The bridge of each VM: started before its VMM, found again after a restart of the hypervisor, ended after it."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

from cellmesh.hypervisor.bridge.client import BridgeClient, BridgeRefused, BridgeUnreachable, command
from cellmesh.hypervisor.vmm import process, sweep
from cellmesh.hypervisor.vmm.errors import BridgeFailed, LaunchFailed
from cellmesh.hypervisor.vmm.layout import AGENT_PORT
from cellmesh.hypervisor.vmm.model import Handle

_START_SECONDS = 15.0
_END_SECONDS = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1


async def start(directory: Path, *, uid: int) -> tuple[int, int]:
    """Start a bridge, wait until it answers, and return its pid and start tick. Raises LaunchFailed."""
    pid = process.start(command(directory, uid), cwd=Path("/"))
    ticks = process.start_ticks(pid)
    client = BridgeClient(directory=directory)
    pause = _FIRST_PAUSE
    try:
        async with asyncio.timeout(_START_SECONDS):
            while ticks is not None and process.is_alive(pid, ticks):
                try:
                    await client.stats()
                except BridgeUnreachable:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                else:
                    return pid, ticks
    except TimeoutError:
        pass  # said below, as for one that died
    except BaseException:
        await end(pid, ticks or 0)
        raise
    await end(pid, ticks or 0)
    raise LaunchFailed(f"The vsock bridge of {directory} did not start; is the directory its uid's own?")


async def ensure(handle: Handle) -> Handle:
    """Return the handle with a live bridge that listens for the agent, starting one if there is none."""
    if not process.is_alive(handle.bridge_pid, handle.bridge_start_ticks):
        found = sweep.bridge_processes(handle.directory)
        pid = found[0] if found else 0
        ticks = process.start_ticks(pid) if pid else None
        if ticks is None:
            pid, ticks = await start(handle.directory, uid=handle.uid)
        handle = replace(handle, bridge_pid=pid, bridge_start_ticks=ticks)
    await listen(handle, f"agent.{handle.epoch}", AGENT_PORT)
    return handle


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
