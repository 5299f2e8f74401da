"""`cellmesh route`: which container answers at which path, and how much it is asked for."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from cellmesh.api.common.v1 import page_pb2
from cellmesh.api.hypervisor.v1 import route_pb2, route_service_pb2
from cellmesh.cli import render, units
from cellmesh.cli.errors import UsageError
from cellmesh.cli.invocation import Session, call
from cellmesh.cli.lookup import find_vm
from cellmesh.cli.options import JsonOption, UserOption, VmArgument, noun
from cellmesh.cli.output import Cell, as_json
from cellmesh.cli.route_watch import RouteWatch
from cellmesh.cli.traffic import TrafficView

app = noun("See and switch which container answers at which path.")

_PREFIX = re.compile(r"/|/dev/?|/_/[a-z][a-z0-9-]{0,31}/?")
_PAGE = 1000
# The contracts' longest for SwitchRoute: the edge is waited for.
_SWITCH_SECONDS = 30.0


@app.command("ls")
def list_routes(
    context: typer.Context, vm: VmArgument = None, *, user: UserOption = None, json_output: JsonOption = False
) -> None:
    """List the routes of a VM, or of all."""

    async def body(session: Session) -> None:
        vm_id = await find_vm(session.node, vm, user) if vm or user else ""
        routes = await _all_routes(session, vm_id)
        if session.output.json:
            session.output.document({"routes": [as_json(route) for route in routes]})
        else:
            session.output.table(render.ROUTE_COLUMNS, [render.route_row(route) for route in routes])

    call(context, body, json_output=json_output)


@app.command()
def switch(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Id of the VM, or the unique start of it.")],
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="/, /dev/ or /_/NAME/.", autocompletion=lambda: ["/", "/dev/"])
    ],
    container: Annotated[str, typer.Argument(metavar="CONTAINER", help="The container of this VM that shall answer.")],
    *,
    generation: Annotated[
        int, typer.Option(help="Only this generation of it; 0 follows it through its generations.", min=0)
    ] = 0,
    drain: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Close what is still open to the old container after this; 30s."),
    ] = None,
    expect_revision: Annotated[
        int, typer.Option(metavar="N", help="Only if the route still has this revision; 0 is any.", min=0)
    ] = 0,
    json_output: JsonOption = False,
) -> None:
    """Point a path at another container, and wait until the edge serves it; open streams stay where they are."""

    async def body(session: Session) -> None:
        request = route_service_pb2.SwitchRouteRequest(
            request_id=session.request_id,
            vm_id=await find_vm(session.node, vm, None),
            prefix=parse_prefix(prefix),
            target=route_pb2.RouteTarget(container_name=container, generation=generation),
            expected_revision=expect_revision,
            drain_timeout=_drain(drain),
        )
        start = time.monotonic()
        route = (await session.node.routes.SwitchRoute(request, timeout=_SWITCH_SECONDS)).route
        elapsed_ms = round((time.monotonic() - start) * 1000, 1)
        if session.output.json:
            session.output.document({"elapsed_ms": elapsed_ms, "route": as_json(route)})
        else:
            session.output.styled(*render.route_cells(route), Cell(text=f"in {elapsed_ms:g} ms", style="dim"))

    call(context, body, json_output=json_output)


@app.command()
def watch(
    context: typer.Context, vm: VmArgument = None, *, user: UserOption = None, json_output: JsonOption = False
) -> None:
    """Print each route as it is, then each change, until Ctrl-C."""

    async def body(session: Session) -> None:
        vm_id = await find_vm(session.node, vm, user) if vm or user else ""
        await RouteWatch(session.node, session.output).changes(vm_id)

    call(context, body, json_output=json_output)


@app.command()
def top(
    context: typer.Context, vm: VmArgument = None, *, user: UserOption = None, json_output: JsonOption = False
) -> None:
    """Show how much each route is asked for, once a second, until Ctrl-C."""

    async def body(session: Session) -> None:
        vm_id = await find_vm(session.node, vm, user) if vm or user else ""
        await TrafficView(session.node, session.output).run(vm_id)

    call(context, body, json_output=json_output)


def parse_prefix(text: str) -> str:
    """Return a route's prefix in its one form; `/dev` is taken for `/dev/`."""
    if not _PREFIX.fullmatch(text):
        raise UsageError(f"{text!r} is not a route.", "Write /, /dev/ or /_/NAME/; `cellmesh route ls` has them.")
    return text if text.endswith("/") else f"{text}/"


def _drain(text: str | None) -> Duration | None:
    if text is None:
        return None
    drain = Duration()
    drain.FromTimedelta(units.parse_duration(text))
    return drain


async def _all_routes(session: Session, vm_id: str) -> list[route_pb2.Route]:
    routes: list[route_pb2.Route] = []
    token = ""
    while True:
        page = page_pb2.PageRequest(page_size=_PAGE, page_token=token)
        answer = await session.node.routes.ListRoutes(route_service_pb2.ListRoutesRequest(page=page, vm_id=vm_id))
        routes.extend(answer.routes)
        token = answer.next_page_token
        if not token:
            return routes
