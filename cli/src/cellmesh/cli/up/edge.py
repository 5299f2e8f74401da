"""The edge of this node: activator and Envoy, as children of this command."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellmesh.cli.edge_address import Listen, answers, check_free, parse_listen
from cellmesh.cli.errors import CliError, ExitCode
from cellmesh.cli.output import Cell, Output, rich_table
from cellmesh.cli.settings import RUN_DIR_VARIABLE, Settings
from cellmesh.cli.up.child import Child, Program
from cellmesh.cli.up.envoy import command, drain, is_ready, lowered
from cellmesh.cli.up.progress import STILL_SECONDS, Progress
from cellmesh.hypervisor.edge.admin import EnvoyAdmin
from cellmesh.hypervisor.edge.binary import Envoy, EnvoyUnusable
from cellmesh.hypervisor.settings import HypervisorSettings
from cellmesh.mesh.settings import SettingsFault

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = ("EDGE", "STATE", "PID", "RESTARTS", "LISTENS")
_POLL_SECONDS = 0.05
_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeOptions:
    """What the edge is to be."""

    listen: Listen
    authorizer: Path
    """The socket of who decides whether a request may pass."""
    envoy: Envoy
    uid: int | None
    """Whom Envoy runs as; None is us, without root."""
    gid: int | None
    """Its group, which may reach the containers."""


def edge_options(settings: Settings) -> EdgeOptions:
    """Return what the edge of this node is to be; raises CliError if it can't be."""
    listen = parse_listen(settings.edge_listen)
    check_free(listen)
    try:
        binary = asyncio.run(Envoy.find())
        user = HypervisorSettings.load()
    except EnvoyUnusable as error:
        raise EdgeError(str(error), fix="See `cellmesh doctor`; --no-edge starts the node without it.") from error
    except SettingsFault as error:
        raise EdgeError(str(error), fix="Correct the environment.") from error
    return EdgeOptions(
        listen=listen,
        authorizer=settings.edge_authorizer,
        envoy=binary,
        uid=user.edge_user,
        gid=user.edge_group,
    )


class Edge:
    """Activator and Envoy; VMs, their streams' far ends and the hypervisor don't depend on them."""

    def __init__(self, options: EdgeOptions, settings: Settings, output: Output) -> None:
        self.options = options
        self._directory = settings.run_dir / "edge"
        self._admin = EnvoyAdmin(self._directory / "admin.sock")
        self._output = output
        self._settings = settings
        self._descriptor = -1
        self._children: list[Child] = []

    async def start(self, environment: Mapping[str, str]) -> None:
        """Start both and wait until they serve; the hypervisor has written what Envoy is to do. Raises EdgeError."""
        try:
            self._descriptor = os.open(self.options.envoy.path, os.O_PATH)
        except OSError as error:
            raise EdgeError(f"Envoy can't be opened: {self.options.envoy.path}: {error.strerror}.") from error
        self._children = [Child(program, tell=self._say) for program in (self._activator(environment), self._envoy())]
        for child in self._children:
            await child.start()
        for child, serves in zip(self._children, (self._activator_serves, self._envoy_serves), strict=True):
            await _until_serving(child, serves, self._output.note)

    async def keep(self) -> None:
        """Start each again whenever it ends, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for child in self._children:
                tasks.create_task(child.keep())

    async def stop(self) -> None:
        """Let what is open be done for a while, then end both."""
        if any(child.pid for child in self._children):
            await drain(self._admin)
        for child in reversed(self._children):
            await child.stop(_STOP_SECONDS)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def rows(self) -> list[list[Cell]]:
        """Return a row for each process under COLUMNS."""
        return [
            [
                Cell(text=child.name),
                Cell(text="RUNNING", style="green") if child.pid else Cell(text="BACKOFF", style="yellow"),
                Cell(text=str(child.pid or "")),
                Cell(text=str(child.restarts)),
                Cell(text=self.options.listen.url if child is self._children[-1] else ""),
            ]
            for child in self._children
        ]

    def table(self) -> RenderableType:
        """Return the rows as something rich can keep live."""
        return rich_table(COLUMNS, self.rows())

    def document(self) -> dict[str, object]:
        """Return what a program wants to know of it."""
        return {
            "url": self.options.listen.url,
            "authorizer": str(self.options.authorizer),
            "gid": self.options.gid,
            "authorizer_answers": answers(self.options.authorizer),
            "pids": {child.name: child.pid for child in self._children},
        }

    def tell(self) -> None:
        """Say to a person where the edge is, and who decides."""
        self._output.styled(Cell(text="The edge listens:", style="green"), Cell(text=self.options.listen.url))
        if not answers(self.options.authorizer):
            group = "" if self.options.gid is None else f" --gid {self.options.gid}"
            self._output.note(
                f"No authorizer answers on {self.options.authorizer}: until one does, every request is refused. To try "
                f"things out: `python -m dev_authenticator --socket {self.options.authorizer}{group}`."
            )

    def _say(self, text: str) -> None:
        if self._output.is_terminal and not self._output.json:
            # Through the console, which makes room for it above the live table.
            self._output.styled(Cell(text=text, style="yellow"))
        else:
            self._output.note(text)

    async def _activator_serves(self) -> bool:
        return answers(self._directory / "activator.sock")

    async def _envoy_serves(self) -> bool:
        return await is_ready(self._admin)

    def _activator(self, environment: Mapping[str, str]) -> Program:
        argv = (sys.executable, "-m", "cellmesh.hypervisor.activator")
        return Program(
            name="activator",
            # It becomes the edge's own user itself, once it has read what that one may not be able to.
            argv=lowered(argv, uid=None, gid=None, port=self.options.listen.port),
            environment={**environment, RUN_DIR_VARIABLE: str(self._settings.run_dir)},
            log=self._settings.run_dir / "activator.log",
        )

    def _envoy(self) -> Program:
        named = self.options.envoy.command(self._directory / "envoy.json", concurrency=os.cpu_count() or 1)
        argv = command(self._descriptor, named[1:])
        return Program(
            name="envoy",
            argv=lowered(argv, uid=self.options.uid, gid=self.options.gid, port=self.options.listen.port),
            environment={},
            log=self._settings.run_dir / "envoy.log",
            descriptors=(self._descriptor,),
        )


async def _until_serving(child: Child, serves: Callable[[], Awaitable[bool]], tell: Callable[[str], None]) -> None:
    progress = Progress(name=f"the edge's {child.name}", pid=child.pid, log=child.log, tell=tell)
    while not await serves():
        if not child.pid:
            what = f"The edge's {child.name} ended with exit code {child.exit_code}."
            raise EdgeError(what, context=child.last_words())
        if progress.is_still():
            what = f"The edge's {child.name} does not serve, and did nothing for {STILL_SECONDS:g} s."
            raise EdgeError(what, context=child.last_words())
        await asyncio.sleep(_POLL_SECONDS)


class EdgeError(CliError):
    """The edge could not start."""

    def __init__(
        self,
        what: str,
        *,
        fix: str = "Read its log; --no-edge starts the node without it.",
        context: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, fix, exit_code=ExitCode.FAILED, reason="EDGE_FAILED", context=context)
