"""A cloud-hypervisor without KVM: the same process, sockets and API, with QEMU in software behind them."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import signal
import socket
import sys
from pathlib import Path

from chv53.events import EventLog
from chv53.rest import serve_connection
from chv53.vmm import Vmm
from emulator.command_line import BUILD_VERSION, Options, parse
from emulator.qemu import Qemu, Settings

_ACCELERATOR = Path(__file__).parent / "accelerator"
_GRACE_SECONDS = 1.0


def main() -> None:
    """Run until the API, the guest or a signal ends it."""
    options = parse(sys.argv[1:])
    os.umask(0o077)
    asyncio.run(_run(options))


async def _run(options: Options) -> None:
    lock = _lock(options.api_socket)
    log = _append(options.log_file) if options.log_file else sys.stderr.fileno()
    events = EventLog(_append(options.event_monitor) if options.event_monitor else None)
    settings = Settings(accelerator=_accelerator(), log=log)
    vmm = Vmm(make_machine=functools.partial(Qemu, settings=settings), events=events, build_version=BUILD_VERSION)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await serve_connection(reader, writer, vmm.handle)
        finally:
            connections.discard(task)

    server = await asyncio.start_unix_server(serve, sock=_listen(options.api_socket))
    async with asyncio.TaskGroup() as group:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: group.create_task(vmm.stop()))
        await vmm.exited.wait()
    server.close()
    options.api_socket.unlink(missing_ok=True)
    if connections:
        # The answer to vmm.shutdown is still on its way; a client that keeps its connection open must not hold us.
        await asyncio.wait(connections, timeout=_GRACE_SECONDS if _answering(connections) else 0)
    os.close(lock)


def _answering(connections: set[asyncio.Task[None]]) -> bool:
    return any(not task.done() for task in connections)


def _accelerator() -> str:
    return _ACCELERATOR.read_text().strip() if _ACCELERATOR.exists() else "tcg,thread=multi"


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _lock(path: Path) -> int:
    """Take the lock that says whose the socket is; exits with status 1 if it is taken or cannot be made."""
    try:
        lock = os.open(f"{path}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        _fail("Error creation API server's socket", f"{error.strerror} (os error {error.errno})")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _fail(f'API socket "{path}" is already in use by another running instance')
    path.unlink(missing_ok=True)
    return lock


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener


def _fail(*causes: str) -> None:
    chain = "".join(f"\n  {index}: {cause}" for index, cause in enumerate(("Failed to start the VMM thread", *causes)))
    sys.stderr.write(f"Error: Cloud Hypervisor exited with the following chain of errors:{chain}\n")
    raise SystemExit(1)


if __name__ == "__main__":
    main()
