"""`cellmesh logs`: what a container writes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cellmesh.api.common.v1 import exec_pb2, log_pb2
from cellmesh.api.hypervisor.v1 import container_service_pb2
from cellmesh.cli import units
from cellmesh.cli.connection import STREAM_SECONDS, Stream, resumed, streaming
from cellmesh.cli.invocation import Session, call
from cellmesh.cli.lookup import ContainerName, find_container
from cellmesh.cli.options import ContainerArgument, JsonOption, UserOption
from cellmesh.cli.output import Output
from cellmesh.cli.text import TerminalText


def logs(
    context: typer.Context,
    target: ContainerArgument,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is written from now on.")] = False,
    user: UserOption = None,
    generation: Annotated[int, typer.Option(help="Which start of the container; 0 is the newest.", min=0)] = 0,
    offset: Annotated[int, typer.Option(help="First byte wanted.", min=0)] = 0,
    json_output: JsonOption = False,
) -> None:
    """Print a container's output: as it is into a pipe or file, with escapes for controls on a terminal."""

    async def body(session: Session) -> None:
        name = await find_container(session.node, target, user)
        await LogReader(session, name, generation=generation, offset=offset, follow=follow).run()

    call(context, body, json_output=json_output)


class LogReader:
    """Prints one container's output from an offset, across broken streams, each byte once."""

    def __init__(self, session: Session, name: ContainerName, *, generation: int, offset: int, follow: bool) -> None:
        self._session = session
        self._name = name
        self._generation = generation
        self._offset = offset
        self._follow = follow
        self._printer = LogPrinter(session.output)

    async def run(self) -> None:
        """Print until the output ends; with follow, until the generation does."""
        note = self._session.output.note
        async for message in resumed(self._open, on_break=lambda: note("The log stream broke; resuming.")):
            # From here on a resumed stream must be of the same generation, or its offset would mean other bytes.
            self._generation = message.generation
            self._offset = message.next_offset
            if message.skipped_bytes:
                note(f"{units.size(message.skipped_bytes)} of older output are no longer kept.")
            for chunk in message.chunks:
                self._printer.print(message.generation, chunk)
        self._printer.finish()

    def _open(self) -> Stream[container_service_pb2.StreamLogsResponse]:
        request = container_service_pb2.StreamLogsRequest(
            vm_id=self._name.vm_id,
            container_name=self._name.container_name,
            generation=self._generation,
            offset=self._offset,
            follow=self._follow,
        )
        return streaming(self._session.node.containers.StreamLogs(request, timeout=STREAM_SECONDS))


class LogPrinter:
    """Prints chunks of output: JSON lines, raw bytes, or text that is safe on a terminal; standard error apart."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._texts = {exec_pb2.OUTPUT_STREAM_STDOUT: TerminalText(), exec_pb2.OUTPUT_STREAM_STDERR: TerminalText()}

    def print(self, generation: int, chunk: log_pb2.LogChunk) -> None:
        """Print one chunk."""
        if self._output.json:
            self._output.document(
                {
                    "generation": generation,
                    "offset": chunk.offset,
                    "stream": "stderr" if chunk.stream == exec_pb2.OUTPUT_STREAM_STDERR else "stdout",
                    "time": units.clock(chunk.time),
                    "text": chunk.data.decode("utf-8", "backslashreplace"),
                }
            )
            return
        is_error = chunk.stream == exec_pb2.OUTPUT_STREAM_STDERR
        target = sys.stderr if is_error else sys.stdout
        if target.isatty():
            text = self._texts[exec_pb2.OUTPUT_STREAM_STDERR if is_error else exec_pb2.OUTPUT_STREAM_STDOUT]
            target.write(text.feed(chunk.data))
        else:
            target.buffer.write(chunk.data)
        target.flush()

    def finish(self) -> None:
        """Print what unfinished characters left behind."""
        for text, target in zip(self._texts.values(), (sys.stdout, sys.stderr), strict=True):
            if rest := text.finish():
                target.write(rest)
                target.flush()
