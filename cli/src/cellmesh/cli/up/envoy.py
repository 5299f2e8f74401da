"""Envoy as this command starts and ends it: below another uid, and from wherever its program lies."""

from __future__ import annotations

import asyncio
import resource
import shutil
from collections.abc import Sequence

from cellmesh.cli.errors import CliError, ExitCode
from cellmesh.hypervisor.edge.admin import EdgeAway, EnvoyAdmin

DRAIN_SECONDS = 5
"""How long what is open may go on when the edge stops."""
_POLL_SECONDS = 0.1
_TOOLS = "/usr/bin:/bin:/usr/sbin:/sbin:/run/current-system/sw/bin"
_LOWEST_FREE_PORT = 1024
_FILES = 65_536
_ACTIVE = r"^http\.edge\.downstream_rq_active$"


def command(descriptor: int, arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the command line of the Envoy that is open as `descriptor`.

    By its descriptor, because the program may lie where the edge's uid can't go, as below a 0700 /root.
    """
    return (
        f"/proc/self/fd/{descriptor}",
        *arguments,
        *("--drain-time-s", str(DRAIN_SECONDS)),
        *("--drain-strategy", "immediate"),
        # An Envoy whose hypervisor is away would say so twice a second; what it refuses, the hypervisor hears.
        *("--component-log-level", "config:error"),
    )


def lowered(argv: Sequence[str], *, uid: int | None, gid: int | None, port: int) -> tuple[str, ...]:
    """Return the command behind tools that lower its privileges and then become it.

    It ends with this command even if that is killed. `uid` None keeps ours; a `port` below 1024 takes one capability.
    """
    found = {name: shutil.which(name, path=_TOOLS) for name in ("prlimit", "setpriv")}
    if None in found.values():
        raise CliError(
            "setpriv and prlimit are needed to lower the edge's privileges.",
            "apt-get install --yes util-linux; or leave the edge out with --no-edge",
            exit_code=ExitCode.FAILED,
            reason="MACHINE_UNFIT",
        )
    files = min(_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    limits = [str(found["prlimit"]), "--core=0:0", f"--nofile={files}:{files}"]
    lower = [str(found["setpriv"]), "--no-new-privs", "--pdeathsig=TERM"]
    if uid is not None:
        kept = ",+net_bind_service" if port < _LOWEST_FREE_PORT else ""
        lower += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        lower += [f"--inh-caps=-all{kept}", f"--ambient-caps=-all{kept}", f"--bounding-set=-all{kept}"]
    return (*limits, *lower, *argv)


async def is_ready(admin: EnvoyAdmin) -> bool:
    """Tell whether Envoy serves."""
    try:
        return await admin.ready()
    except EdgeAway:
        return False


async def drain(admin: EnvoyAdmin) -> None:
    """Ask clients to leave, and wait until nothing is open any more or DRAIN_SECONDS have passed."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            await admin.drain()
            while any((await admin.stats(_ACTIVE)).values()):  # noqa: ASYNC110  # another process; it tells nobody
                await asyncio.sleep(_POLL_SECONDS)
    except (EdgeAway, TimeoutError):
        return  # it is gone, or its time is up
