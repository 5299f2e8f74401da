"""`cellmesh events`: what happened on the node."""

from __future__ import annotations

import base64
import binascii
from contextlib import aclosing
from typing import Annotated

import typer

from cellmesh.api.common.v1 import page_pb2
from cellmesh.api.hypervisor.v1 import event_pb2, event_service_pb2
from cellmesh.cli import render, units
from cellmesh.cli.errors import UsageError
from cellmesh.cli.invocation import Session, call
from cellmesh.cli.lookup import find_vm
from cellmesh.cli.options import JsonOption, UserOption, VmArgument
from cellmesh.cli.output import Cell, as_json
from cellmesh.cli.timeline import EventFollower


def events(
    context: typer.Context,
    vm: VmArgument = None,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Print what happens from now on.")] = False,
    user: UserOption = None,
    resume_token: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="With -f: what came after this token of `--json`.")
    ] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="With -f: the events that are kept first.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Print events, of one VM or of the node, oldest first."""

    async def body(session: Session) -> None:
        vm_id = await find_vm(session.node, vm, user) if vm or user else ""
        if not follow:
            await _list(session, vm_id)
            return
        follower = EventFollower(session, vm_id=vm_id, token=_token(resume_token), from_beginning=from_beginning)
        async with aclosing(follower.messages()) as messages:
            async for message in messages:
                _print_message(session, message)

    if not follow and (resume_token or from_beginning):
        raise UsageError("--resume-token and --from-beginning are for a stream.", "Add -f.")
    call(context, body, json_output=json_output)


def _token(text: str | None) -> bytes:
    try:
        return base64.b64decode(text or "", validate=True)
    except binascii.Error as error:
        raise UsageError(
            f"{text!r} is not a resume token.", "Give back a token exactly as `events -f --json` printed it."
        ) from error


async def _list(session: Session, vm_id: str) -> None:
    token = ""
    while True:
        page = page_pb2.PageRequest(page_size=1000, page_token=token)
        answer = await session.node.events.ListEvents(event_service_pb2.ListEventsRequest(page=page, vm_id=vm_id))
        for event in answer.events:
            if session.output.json:
                session.output.document({"event": as_json(event)})
            else:
                _print_event(session, event)
        token = answer.next_page_token
        if not token:
            return


def _print_message(session: Session, message: event_service_pb2.WatchEventsResponse) -> None:
    if session.output.json:
        # Bookmarks too: their token is the newest, and a program may want to keep it.
        session.output.message(message)
    elif message.HasField("event"):
        _print_event(session, message.event)


def _print_event(session: Session, event: event_pb2.Event) -> None:
    session.output.styled(Cell(text=units.clock(event.time), style="dim"), *render.event_cells(event))
