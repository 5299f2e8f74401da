"""PID 1 of a cell's guest."""

import gc
import os
import sys

from cellmesh.guest import imports, kernel
from cellmesh.guest.boot import BootFailed, prepare_machine, say


def main() -> None:
    """Bring the machine up, serve the host until it asks for the end, and power off."""
    if os.getpid() != 1:
        sys.exit("cellmesh-guest is PID 1 of a cell's guest and is of no use elsewhere")
    gc.disable()  # All that imports make is to stay.
    try:
        prepare_machine()
        _serve()
    except BootFailed as error:
        say(f"fatal: {error}")
    except BaseException as error:  # PID 1 may not die: the kernel would panic and the host learn nothing.
        sys.excepthook(type(error), error, error.__traceback__)
        say(f"fatal: {type(error).__name__}: {error}")
    finally:
        kernel.power_off()


def _serve() -> None:
    imports.spare()
    import asyncio

    from cellmesh.guest.agent import run_agent
    from cellmesh.guest.reaper import Reaper

    # Nor is it looked through ever again, which would be most of what a collection costs.
    gc.freeze()
    gc.enable()
    asyncio.run(run_agent(Reaper()))


if __name__ == "__main__":
    main()
