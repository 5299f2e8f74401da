"""What the edge's files need for as long as a node runs: a certificate that is not old, a log that is not long."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from cellmesh.hypervisor.edge.admin import EdgeAway, EnvoyAdmin
from cellmesh.hypervisor.edge.options import EdgeMisconfigured
from cellmesh.hypervisor.settings import HypervisorSettings
from cellmesh.hypervisor.vmm.liveness import Watch, usable

_PERIOD = timedelta(minutes=1)
_PATIENCE = timedelta(seconds=30)
_LOG_BYTES = 64 << 20
_log = structlog.get_logger()


class EdgeUpkeep:
    """The files of one edge: `prepare` before an Envoy starts, then `run`."""

    def __init__(
        self,
        settings: HypervisorSettings,
        admin: EnvoyAdmin,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._admin = admin
        self._renew_at = datetime.max.replace(tzinfo=UTC)

    async def prepare(self) -> None:
        """Write Envoy's configuration and certificate. Raises EdgeMisconfigured."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cellmesh.hypervisor.edge.prepare"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("CELLMESH_")},
        )
        try:
            async with usable(_PATIENCE.total_seconds(), Watch.of(process.pid)):
                answer, errors = await process.communicate(self._settings.model_dump_json().encode())
        except TimeoutError:
            raise EdgeMisconfigured("What the edge starts with could not be written in time; try again.") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            said = errors.decode(errors="replace").strip()
            raise EdgeMisconfigured(f"The edge cannot be prepared: {said[-1000:]}")
        self._renew_at = datetime.fromisoformat(json.loads(answer)["renew_at"])

    async def run(self) -> None:
        """Renew the certificate when it is due and begin another log when one is long, until cancelled."""
        while True:
            await asyncio.sleep(_PERIOD.total_seconds())
            try:
                await self.look()
            except (EdgeAway, EdgeMisconfigured, OSError) as error:
                # What there is goes on being used; it is tried again in a minute.
                _log.warning("edge.upkeep_failed", error=str(error))

    async def look(self) -> None:
        """Do what is due now. Raises EdgeAway, EdgeMisconfigured, OSError."""
        if self._clock() >= self._renew_at:
            await self.prepare()
        await self._admin.rotate(self._settings.edge_dir / "access.log", max_bytes=_LOG_BYTES)
