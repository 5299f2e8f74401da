"""`cellmesh container`: the containers of a VM."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated

import typer

from cellmesh.api.common.v1 import container_pb2 as common_container_pb2
from cellmesh.api.hypervisor.v1 import container_pb2, container_service_pb2
from cellmesh.cli import container_spec, render, units
from cellmesh.cli.commands.vm import Restart
from cellmesh.cli.invocation import Session, call
from cellmesh.cli.lookup import ContainerName, find_container, find_vm
from cellmesh.cli.options import ContainerArgument, JsonOption, TimeoutOption, UserOption, VmArgument, WaitOption, noun
from cellmesh.cli.output import Cell, as_json
from cellmesh.cli.timeline import container_goal, follow

app = noun("Start, stop and look at the containers of a VM.")

Mutation = Callable[[Session, ContainerName], Awaitable[container_pb2.Container]]
# The contracts allow StartContainer and RestartContainer this long; the image may have to be attached first.
_MUTATION_SECONDS = 120.0


@app.command()
def start(
    context: typer.Context,
    target: ContainerArgument,
    argv: Annotated[list[str] | None, typer.Argument(help="Program and arguments in place of the image's.")] = None,
    *,
    image: Annotated[str, typer.Option(metavar="DIGEST", help="Imported image; the start of its digest will do.")],
    user: UserOption = None,
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Variable; may be repeated.")] = None,
    working_dir: Annotated[str, typer.Option(help="Absolute path; the image's if absent.")] = "",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory limit; 0 is 128M.")] = "0",
    cpus: Annotated[float, typer.Option(help="CPU limit in cores; 0 is 1.", min=0)] = 0.0,
    pids: Annotated[int, typer.Option(help="Limit of processes and threads; 0 is 256.", min=0)] = 0,
    io_weight: Annotated[int, typer.Option(help="Share of disk time, to 10000; 0 is 100.", min=0)] = 0,
    restart: Annotated[Restart, typer.Option(help="When to start it again after it ended.")] = Restart.ON_FAILURE,
    max_restarts: Annotated[int, typer.Option(help="Tries in a row; 0 is 5.", min=0)] = 0,
    probe_http: Annotated[str | None, typer.Option(metavar="PORT/PATH", help="It is well if this answers.")] = None,
    probe_tcp: Annotated[int | None, typer.Option(metavar="PORT", help="It is well if this accepts.")] = None,
    probe_exec: Annotated[str | None, typer.Option(metavar="SHELL", help="It is well if this succeeds.")] = None,
    http_port: Annotated[int, typer.Option(help="Where it serves HTTP to the edge; 0 is 8080.", min=0, max=65535)] = 0,
    persist: Annotated[list[str] | None, typer.Option(metavar="PATH", help="Directory that outlives it.")] = None,
    stop_grace: Annotated[str | None, typer.Option(metavar="TIME", help="From the stop signal to SIGKILL; 5s.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is well, and show what happens.")] = False,
    timeout: TimeoutOption = "3m",
    json_output: JsonOption = False,
) -> None:
    """Run a container in a VM, in place of one of the same name."""

    async def body(session: Session) -> None:
        limits = container_spec.Limits(memory=memory, cpus=cpus, pids=pids, io_weight=io_weight)
        spec = common_container_pb2.ContainerSpec(
            image=container_spec.find_image(session.settings, image),
            argv=argv or [],
            environment=container_spec.parse_environment(env or []),
            working_dir=working_dir,
            resources=limits.resources(),
            restart_policy=restart.policy(max_restarts),
            probe=container_spec.parse_probe(probe_http, probe_tcp, probe_exec),
            http_port=http_port,
            persistent_paths=[common_container_pb2.PersistentPath(path=path) for path in persist or []],
            stop_grace=container_spec.parse_grace(stop_grace),
        )

        async def act(session: Session, name: ContainerName) -> container_pb2.Container:
            request = container_service_pb2.StartContainerRequest(
                request_id=session.request_id, vm_id=name.vm_id, container_name=name.container_name, spec=spec
            )
            return (await session.node.containers.StartContainer(request, timeout=_MUTATION_SECONDS)).container

        await _change(
            session,
            await find_container(session.node, target, user),
            act,
            units.parse_duration(timeout) if wait else None,
        )

    call(context, body, json_output=json_output)


@app.command()
def stop(
    context: typer.Context, target: ContainerArgument, *, user: UserOption = None, json_output: JsonOption = False
) -> None:
    """Stop a container; its own changes stay until the VM is recycled."""

    async def act(session: Session, name: ContainerName) -> container_pb2.Container:
        request = container_service_pb2.StopContainerRequest(
            request_id=session.request_id, vm_id=name.vm_id, container_name=name.container_name
        )
        return (await session.node.containers.StopContainer(request, timeout=_MUTATION_SECONDS)).container

    async def body(session: Session) -> None:
        await _change(session, await find_container(session.node, target, user), act, None)

    call(context, body, json_output=json_output)


@app.command()
def restart(
    context: typer.Context,
    target: ContainerArgument,
    *,
    user: UserOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = "3m",
    json_output: JsonOption = False,
) -> None:
    """Stop a container and start it again as it was."""

    async def act(session: Session, name: ContainerName) -> container_pb2.Container:
        request = container_service_pb2.RestartContainerRequest(
            request_id=session.request_id, vm_id=name.vm_id, container_name=name.container_name
        )
        return (await session.node.containers.RestartContainer(request, timeout=_MUTATION_SECONDS)).container

    async def body(session: Session) -> None:
        await _change(
            session,
            await find_container(session.node, target, user),
            act,
            units.parse_duration(timeout) if wait else None,
        )

    call(context, body, json_output=json_output)


@app.command("rm")
def remove(
    context: typer.Context,
    target: ContainerArgument,
    *,
    force: Annotated[bool, typer.Option("--force", "-f", help="Stop it first if it runs.")] = False,
    volumes: Annotated[bool, typer.Option("--volumes", help="Remove its persistent paths too.")] = False,
    user: UserOption = None,
    json_output: JsonOption = False,
) -> None:
    """Remove a container with its own changes and its output.

    Its persistent paths stay for the next container of this name, unless --volumes is given.
    """

    async def body(session: Session) -> None:
        name = await find_container(session.node, target, user)
        request = container_service_pb2.DeleteContainerRequest(
            request_id=session.request_id,
            vm_id=name.vm_id,
            container_name=name.container_name,
            force=force,
            persistent_paths=volumes,
        )
        answer = await session.node.containers.DeleteContainer(request, timeout=_MUTATION_SECONDS)
        if session.output.json:
            session.output.message(answer)
        else:
            session.output.styled(Cell(text=f"{name.vm_id}/{name.container_name}"), Cell(text="deleted"))

    call(context, body, json_output=json_output)


@app.command("ls")
def list_containers(
    context: typer.Context, vm: VmArgument = None, *, user: UserOption = None, json_output: JsonOption = False
) -> None:
    """List the containers of a VM."""

    async def body(session: Session) -> None:
        request = container_service_pb2.ListContainersRequest(vm_id=await find_vm(session.node, vm, user))
        answer = await session.node.containers.ListContainers(request)
        if session.output.json:
            session.output.message(answer)
        else:
            rows = [render.container_row(container) for container in answer.containers]
            session.output.table(render.CONTAINER_COLUMNS, rows)

    call(context, body, json_output=json_output)


@app.command()
def show(
    context: typer.Context, target: ContainerArgument, *, user: UserOption = None, json_output: JsonOption = False
) -> None:
    """Show one container."""

    async def body(session: Session) -> None:
        container = await _get(session, await find_container(session.node, target, user))
        if session.output.json:
            session.output.document({"container": as_json(container)})
        else:
            session.output.fields(render.container_fields(container))

    call(context, body, json_output=json_output)


@app.command()
def stats(
    context: typer.Context, target: ContainerArgument, *, user: UserOption = None, json_output: JsonOption = False
) -> None:
    """Show what a container uses now, as its guest says."""

    async def body(session: Session) -> None:
        name = await find_container(session.node, target, user)
        request = container_service_pb2.GetStatsRequest(vm_id=name.vm_id, container_name=name.container_name)
        answer = await session.node.containers.GetStats(request)
        if session.output.json:
            session.output.message(answer)
        else:
            session.output.fields(_stats_fields(answer.stats))

    call(context, body, json_output=json_output)


async def _get(session: Session, name: ContainerName) -> container_pb2.Container:
    request = container_service_pb2.GetContainerRequest(vm_id=name.vm_id, container_name=name.container_name)
    return (await session.node.containers.GetContainer(request)).container


async def _change(session: Session, name: ContainerName, act: Mutation, patience: timedelta | None) -> None:
    """Change a container, follow it until it is well if `patience` is given, and print it as it is at the end."""
    if patience is None:
        container = await act(session, name)
    else:

        async def status() -> common_container_pb2.ContainerStatus:
            changed = await act(session, name)
            changed.status.generation = changed.generation
            return changed.status

        await follow(session, status, container_goal(name.vm_id, name.container_name), patience)
        container = await _get(session, name)
    if session.output.json:
        session.output.document({"container": as_json(container)})
    else:
        status_cell = render.styled(render.container_state(container.status.state))
        session.output.styled(
            Cell(text=f"{container.vm_id}/{container.container_name}"),
            status_cell,
            render.styled(render.health(container.status.health)),
            Cell(text=container.status.reason),
        )


def _stats_fields(stats: common_container_pb2.ContainerStats) -> list[tuple[str, Cell]]:
    memory = f"{units.size(stats.memory_bytes)} of {units.size(stats.memory_limit_bytes)}"
    return [
        ("container", Cell(text=stats.container_name)),
        ("generation", Cell(text=str(stats.generation))),
        ("memory", Cell(text=f"{memory}, at most {units.size(stats.memory_peak_bytes)} so far")),
        ("cpu time", Cell(text=f"{stats.cpu_time.ToMilliseconds() / 1000:.3f} s")),
        ("held back", Cell(text=f"{stats.cpu_throttled_time.ToMilliseconds() / 1000:.3f} s")),
        ("pids", Cell(text=f"{stats.pids}, {stats.pids_refused} refused")),
        ("disk read", Cell(text=units.size(stats.io_read_bytes))),
        ("disk written", Cell(text=units.size(stats.io_write_bytes))),
        ("oom kills", Cell(text=str(stats.oom_kills))),
    ]
