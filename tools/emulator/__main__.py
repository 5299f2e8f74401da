"""A cloud-hypervisor without KVM: the same process, sockets and API, with QEMU in software behind them."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from pathlib import Path

from chv53.api_socket import ApiSocketError, accept_forever, listen, take_lock
from chv53.command_line import USAGE_STATUS, Options, UsageError, parse
from chv53.events import EventLog
from chv53.rest import serve_connection
from chv53.vmm import Vmm
from emulator.qemu import Qemu, Settings

_BUILD_VERSION = "v53.0-emulated-qemu-tcg"
_ACCELERATOR = Path(__file__).parent / "accelerator"


def main() -> None:
    """Run until the API, the guest or a signal ends it; exits with 2 for bad usage, 1 for a socket it cannot have."""
    try:
        options = parse(sys.argv[1:])
        if options.version:
            sys.stdout.write(f"cloud-hypervisor {_BUILD_VERSION}\n")
            return
        os.umask(0o077)
        asyncio.run(_run(options))
    except UsageError as error:
        sys.stderr.write(str(error))
        raise SystemExit(USAGE_STATUS) from error
    except ApiSocketError as error:
        sys.stderr.write(str(error))
        raise SystemExit(1) from error


async def _run(options: Options) -> None:
    lock = take_lock(options.api_socket)
    settings = Settings(
        accelerator=_ACCELERATOR.read_text().strip() if _ACCELERATOR.exists() else "tcg,thread=multi",
        log=_append(options.log_file) if options.log_file else sys.stderr.fileno(),
    )
    events = EventLog(_append(options.event_monitor) if options.event_monitor else None)
    vmm = Vmm(make_machine=functools.partial(Qemu, settings=settings), events=events, build_version=_BUILD_VERSION)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: group.create_task(vmm.stop()))
        serve = functools.partial(serve_connection, handle=vmm.handle)
        api = group.create_task(accept_forever(listen(options.api_socket), serve))
        await vmm.exited.wait()
        options.api_socket.unlink(missing_ok=True)
        api.cancel()
    os.close(lock)


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


if __name__ == "__main__":
    main()
