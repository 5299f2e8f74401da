"""A bridge as its own process, in a directory of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from cellmesh.hypervisor.bridge.client import BridgeClient
from cellmesh.hypervisor.vmm import bridges
from support.bridge import PORT, UID


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
