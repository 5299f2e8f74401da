"""All commands of this cell, by their ids."""

import asyncio
from dataclasses import dataclass, field

from cellmesh.guest.contain import contain
from cellmesh.guest.containers.registry import Containers
from cellmesh.guest.containers.runtime import Command
from cellmesh.guest.errors import ExecNotFound, InvalidRequest, TooManyExecs
from cellmesh.guest.exec.session import Attachment, Patience, Session, Terminal

MAX_RUNNING = 32
_MAX_KEPT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a caller asks for: a new command, or a place in one that is there."""

    container_name: str
    exec_id: str
    command: Command
    terminal: Terminal | None = None
    resume: bool = False
    stdout_offset: int = 0
    stderr_offset: int = 0


@dataclass(slots=True)
class _Entry:
    container_name: str
    session: Session
    task: asyncio.Task[None] = field(repr=False)


class Sessions:
    """Starts commands and finds them again; their lives are tasks of `group`."""

    def __init__(self, containers: Containers, group: asyncio.TaskGroup, patience: Patience | None = None) -> None:
        self._containers = containers
        self._group = group
        self._patience = patience or Patience()
        self._entries: dict[str, _Entry] = {}

    async def open(self, opening: Opening) -> tuple[Attachment, bool]:
        """Start a command or come back to it; returns the place and whether it was there. Raises GuestError."""
        entry = self._entries.get(opening.exec_id)
        resumed = entry is not None
        if entry is None:
            if opening.resume:
                raise ExecNotFound(f"no command {opening.exec_id} is kept: it was never started, or is over")
            entry = self._start(opening)
        elif entry.container_name != opening.container_name:
            raise InvalidRequest(f"command {opening.exec_id} belongs to container {entry.container_name}")
        await entry.session.started()
        return entry.session.attach(opening.stdout_offset, opening.stderr_offset), resumed

    def _start(self, opening: Opening) -> _Entry:
        container = self._containers.find_running(opening.container_name)
        self._make_room()
        session = Session(container=container, command=opening.command, terminal=opening.terminal)
        task = self._group.create_task(contain(session.run(self._patience), "a command"))
        entry = _Entry(opening.container_name, session, task)
        self._entries[opening.exec_id] = entry
        task.add_done_callback(lambda _task: self._entries.pop(opening.exec_id, None))
        return entry

    def _make_room(self) -> None:
        running = [entry for entry in self._entries.values() if not entry.session.finished]
        if len(running) >= MAX_RUNNING:
            raise TooManyExecs(f"{MAX_RUNNING} commands run already: end one first")
        finished = [entry for entry in self._entries.values() if entry.session.finished]
        for entry in finished[: max(len(self._entries) - _MAX_KEPT + 1, 0)]:
            entry.task.cancel()

    def stop(self) -> None:
        """Let go of every command; those that run die with their container."""
        for entry in self._entries.values():
            entry.task.cancel()
