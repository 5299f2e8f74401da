"""The hypervisor as a child of this command."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from cellmesh.api.hypervisor.v1 import node_service_pb2
from cellmesh.cli.connection import connect
from cellmesh.cli.errors import CliError, ExitCode, NoNodeError
from cellmesh.cli.refusal import is_broken_stream
from cellmesh.cli.settings import (
    EDGE_AUTHORIZER_VARIABLE,
    EDGE_LISTEN_VARIABLE,
    RUN_DIR_VARIABLE,
    STATE_DIR_VARIABLE,
    VMM_VARIABLE,
    Settings,
)
from cellmesh.cli.up.child import last_words, open_log
from cellmesh.cli.up.progress import STILL_SECONDS, Progress

_POLL_SECONDS = 0.1
# Where nobody listens that is known at once; a node that is busy, or just starts, gets time to answer.
_ANSWER_SECONDS = 10.0
# It hands its VMs over to nobody, so it has little to do; what takes longer hangs.
_STOP_SECONDS = 45.0


class HypervisorProcess:
    """A running `cellmesh-hypervisor`. VMs outlive it, so ending it ends no VM."""

    def __init__(self, process: asyncio.subprocess.Process, settings: Settings, log: Path) -> None:
        self._process = process
        self._settings = settings
        self.log = log
        """Where its log goes."""

    @classmethod
    async def start(cls, settings: Settings, environment: Mapping[str, str]) -> Self:
        """Start the hypervisor with what `settings` say in place of `environment`."""
        for directory in (settings.run_dir, settings.state_dir):
            # The uids of VMs have to pass through both; what is private in them is 0700 or 0600 itself.
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        log = settings.run_dir / "hypervisor.log"
        with open_log(log) as sink:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "cellmesh.hypervisor",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                # Ctrl-C is for us to pass on, once it is time.
                start_new_session=True,
                env={
                    **environment,
                    RUN_DIR_VARIABLE: str(settings.run_dir),
                    STATE_DIR_VARIABLE: str(settings.state_dir),
                    VMM_VARIABLE: settings.vmm,
                    EDGE_LISTEN_VARIABLE: settings.edge_listen,
                    EDGE_AUTHORIZER_VARIABLE: str(settings.edge_authorizer),
                },
            )
        return cls(process, settings, log)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait until it ends; return its exit code, negative for a signal."""
        return await self._process.wait()

    async def ready(self, tell: Callable[[str], None]) -> None:
        """Wait until it answers, and tell of a long wait; raises CliError if it ends or does nothing."""
        progress = Progress(name="the hypervisor", pid=self.pid, log=self.log, tell=tell)
        while not await is_answered(self._settings):
            if self._process.returncode is not None:
                raise self.ended()
            if progress.is_still():
                raise self._failure(f"The hypervisor does not answer, and did nothing for {STILL_SECONDS:g} s.")
            await asyncio.sleep(_POLL_SECONDS)

    def ended(self) -> CliError:
        """Return what to say when it ended by itself."""
        return self._failure(f"The hypervisor ended with exit code {self._process.returncode}.")

    async def stop(self) -> None:
        """End it gracefully, by force if it hangs; what it had stored is safe either way."""
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _failure(self, what: str) -> CliError:
        return HypervisorError(what, f"Read all of its log in {self.log}.", last_words(self.log))


async def is_answered(settings: Settings) -> bool:
    """Tell whether a node answers on the operator socket."""
    try:
        async with connect(settings.socket) as node:
            await node.node.GetNode(node_service_pb2.GetNodeRequest(), timeout=_ANSWER_SECONDS)
    except NoNodeError:
        return False
    except Exception as error:
        if is_broken_stream(error):
            return False
        raise
    return True


class HypervisorError(CliError):
    """The hypervisor could not start, or died; the end of its log tells more."""

    def __init__(self, what: str, fix: str, last_lines: tuple[str, ...]) -> None:
        super().__init__(what, fix, exit_code=ExitCode.FAILED, reason="HYPERVISOR_FAILED", context=last_lines)
