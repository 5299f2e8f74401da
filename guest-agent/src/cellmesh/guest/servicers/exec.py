"""The frames of an exec stream, between the contract and the domain."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from cellmesh.api.common.v1 import exec_pb2
from cellmesh.api.guest.v1 import container_service_pb2
from cellmesh.guest.containers.runtime import Command
from cellmesh.guest.errors import GuestError, InvalidRequest, ungrouped
from cellmesh.guest.exec.session import Attachment, Exited, Frame, InputTaken, Output, Terminal
from cellmesh.guest.exec.sessions import Opening, Sessions
from cellmesh.guest.servicers import codec
from cellmesh.guest.servicers.answer import Context

_LAST_SIGNAL = 31
_ID_LIMIT = 64
_LAST_WORDS = 1.0


async def serve_exec(
    sessions: Sessions, requests: AsyncIterator[container_service_pb2.ExecRequest], context: Context
) -> None:
    """Serve one exec stream to its end; raises GuestError."""
    first = await anext(aiter(requests), None)
    if first is None or first.input.WhichOneof("frame") != "open":
        raise InvalidRequest("the first frame of an exec stream must be open")
    attachment, resumed = await sessions.open(_decode_open(first.input.open))
    try:
        opened = exec_pb2.ExecOpened(resumed=resumed, stdin_offset=attachment.session.input_offset)
        await context.write(_response(exec_pb2.ExecOutput(opened=opened)))
        with ungrouped(GuestError):
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(_read(attachment, requests))
                async for frame in attachment.frames():
                    await context.write(_response(_encode(frame)))
                # A caller whose last acknowledgement meets a closed stream sees an error in place of a success.
                await attachment.session.wait_acknowledged(_LAST_WORDS)
                reader.cancel()
    finally:
        attachment.close()


async def _read(attachment: Attachment, requests: AsyncIterator[container_service_pb2.ExecRequest]) -> None:
    session = attachment.session
    async for request in requests:
        frame = request.input
        match frame.WhichOneof("frame"):
            case "stdin":
                await session.accept_input(frame.stdin.offset, frame.stdin.data, eof=frame.stdin.eof)
            case "ack":
                session.acknowledge(frame.ack.stdout_offset, frame.ack.stderr_offset)
            case "resize":
                session.resize(_decode_size(frame.resize))
            case "signal":
                if not 1 <= frame.signal.number <= _LAST_SIGNAL:
                    raise InvalidRequest(f"signal.number must be from 1 to {_LAST_SIGNAL}")
                session.send_signal(frame.signal.number)
            case _:
                raise InvalidRequest("only the first frame of an exec stream may be open, and each must be something")


def _decode_open(message: exec_pb2.ExecOpen) -> Opening:
    if not message.argv:
        raise InvalidRequest("argv must name a program")
    if not message.exec_id or len(message.exec_id) > _ID_LIMIT:
        raise InvalidRequest("exec_id must be a UUID")
    terminal = _decode_size(message.size) if message.HasField("size") else Terminal()
    return Opening(
        container_name=codec.decode_name(message.container_name),
        exec_id=message.exec_id,
        command=Command(
            argv=tuple(message.argv),
            environment=tuple((entry.name, entry.value) for entry in message.environment),
            working_dir=message.working_dir,
        ),
        terminal=terminal if message.tty else None,
        resume=message.resume,
        stdout_offset=message.stdout_offset,
        stderr_offset=message.stderr_offset,
    )


def _decode_size(message: exec_pb2.TerminalSize) -> Terminal:
    return Terminal(rows=min(message.rows, 4096), columns=min(message.columns, 4096))


def _encode(frame: Frame) -> exec_pb2.ExecOutput:
    match frame:
        case Output(stream=stream, offset=offset, data=data):
            number = cast("exec_pb2.OutputStream", int(stream))
            return exec_pb2.ExecOutput(data=exec_pb2.ExecData(stream=number, offset=offset, data=data))
        case InputTaken(offset=offset):
            return exec_pb2.ExecOutput(stdin_ack=exec_pb2.ExecStdinAck(offset=offset))
        case Exited():
            return exec_pb2.ExecOutput(
                exited=exec_pb2.ExecExited(
                    exit_code=frame.exit_code,
                    oom_killed=frame.oom_killed,
                    stdout_length=frame.stdout_length,
                    stderr_length=frame.stderr_length,
                )
            )


def _response(output: exec_pb2.ExecOutput) -> container_service_pb2.ExecResponse:
    return container_service_pb2.ExecResponse(output=output)
