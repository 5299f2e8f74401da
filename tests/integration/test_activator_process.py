"""The activator as a process: what it may do, that there is one, and how it ends and is started again."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from support.activator import EDGE_UID, Activator, activator, client, run_directory

_PATIENCE = 60.0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to lower")
@pytest.mark.asyncio
async def test_process_keeps_no_privileges() -> None:
    """It runs as the edge's user, may gain nothing, and the edge's group alone may connect."""
    with run_directory() as run_dir:
        async with activator(run_dir) as running:
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
            )
            assert status["Uid"].split() == status["Gid"].split() == [str(EDGE_UID)] * 4
            assert status["Groups"].split() == []
            assert (status["NoNewPrivs"].strip(), int(status["CapEff"], 16)) == ("1", 0)
            found = running.socket.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, EDGE_UID)


@pytest.mark.asyncio
async def test_second_activator_is_refused() -> None:
    """Another one finds the socket held and says so; the first goes on."""
    with run_directory() as run_dir:
        async with activator(run_dir) as running:
            second = Activator(run_dir, {})
            await second.spawn()
            async with asyncio.timeout(_PATIENCE):
                assert await second.process.wait() == 78
            assert "is served by another process" in second.log.read_text()
            async with client(running.socket) as session, session.get("http://cell/healthz") as response:
                assert response.status == 200


@pytest.mark.asyncio
async def test_killed_activator_is_started_again() -> None:
    """After a kill the next one serves on the same socket; asked to end, it ends well."""
    with run_directory() as run_dir:
        async with activator(run_dir) as made:
            await made.kill()
            await made.start()
            made.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(_PATIENCE):
                assert await made.process.wait() == 0


# What starts it, says so to the kernel, and is killed; it prints the pid first.
_STARTER = """
import subprocess, sys, time
started = subprocess.Popen(["setpriv", "--pdeathsig=TERM", sys.executable, "-m", "cellmesh.hypervisor.activator"])
print(started.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.asyncio
async def test_activator_ends_with_who_started_it_if_that_was_chosen() -> None:
    """The kernel forgets such a choice when a uid changes; the activator does not."""
    with run_directory() as run_dir:
        made = Activator(run_dir, {})
        starter = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _STARTER, env=made.environment, stdout=asyncio.subprocess.PIPE
        )
        assert starter.stdout is not None
        async with asyncio.timeout(_PATIENCE):
            process = psutil.Process(int(await starter.stdout.readline()))
            try:
                await made.well()
                starter.kill()
                await starter.wait()
                await asyncio.to_thread(process.wait, _PATIENCE / 2)
            finally:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
