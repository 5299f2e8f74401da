"""Sparing the agent imports it has no use for: they are most of what a guest does between its kernel and Hello."""

import os
import sys
import typing
from types import ModuleType

from cellmesh.guest import late

# What only a container or a command needs, and a VM that has just booted has neither.
OF_CONTAINERS = (
    "cellmesh.guest.containers.container",
    "cellmesh.guest.containers.crun",
    "cellmesh.guest.containers.discarded",
    "cellmesh.guest.containers.ingress",
    "cellmesh.guest.containers.logs",
    "cellmesh.guest.containers.model",
    "cellmesh.guest.containers.rootfs",
    "cellmesh.guest.containers.runtime",
    "cellmesh.guest.exec.sessions",
    "cellmesh.guest.servicers.codec",
    "cellmesh.guest.servicers.exec",
)
# What others import for something the agent hardly ever does, such as showing the source of an error.
_SELDOM = ("ast", "asyncio.sslproto", "calendar", "json", "locale", "pkgutil", "shutil", "textwrap", "tokenize")


def spare() -> None:
    """Keep the needless modules out, or for later; call it before gRPC, protobuf or asyncio is imported."""
    late.put_off((*OF_CONTAINERS, *_SELDOM))
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # What we fork never touches gRPC.
    # Nothing here speaks TLS; asyncio does without ssl if it is not there.
    sys.modules["ssl"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    # protobuf written in Python: imported, with twenty modules behind it, even where protobuf in C takes its place.
    name = "google.protobuf.internal.python_message"
    sys.modules[name] = ModuleType(name)
    if sys.version_info >= (3, 12):
        # All that gRPC takes from it is here too; tests import this under 3.11, where it is not.
        sys.modules["typing_extensions"] = typing
