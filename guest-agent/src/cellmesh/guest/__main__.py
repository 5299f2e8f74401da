"""PID 1 of a cell's guest."""

import os
import sys
import traceback

from cellmesh.guest import kernel
from cellmesh.guest.boot import BootFailed, prepare_machine, say


def main() -> None:
    """Bring the machine up, serve the host until it asks for the end, and power off."""
    if os.getpid() != 1:
        sys.exit("cellmesh-guest is PID 1 of a cell's guest and is of no use elsewhere")
    try:
        prepare_machine()
        _serve()
    except BootFailed as error:
        say(f"fatal: {error}")
    except BaseException as error:  # PID 1 may not die: the kernel would panic and the host learn nothing.
        traceback.print_exc()
        say(f"fatal: {type(error).__name__}: {error}")
    finally:
        kernel.power_off()


def _serve() -> None:
    # Nothing here speaks TLS; asyncio does without ssl if it is not there, which saves a tenth of the imports' time.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # What we fork never touches gRPC.
    sys.modules["ssl"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    import asyncio

    from cellmesh.guest.agent import run_agent
    from cellmesh.guest.reaper import Reaper

    asyncio.run(run_agent(Reaper()))


if __name__ == "__main__":
    main()
