"""Sparing the agent imports it has no use for: they are most of what a guest does between its kernel and Hello."""

import os
import sys
import typing
from types import ModuleType


def spare() -> None:
    """Keep the needless modules out; call it before gRPC, protobuf or asyncio is imported."""
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # What we fork never touches gRPC.
    # Nothing here speaks TLS; asyncio does without ssl if it is not there.
    sys.modules["ssl"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    # protobuf written in Python: imported, with twenty modules behind it, even where protobuf in C takes its place.
    name = "google.protobuf.internal.python_message"
    sys.modules[name] = ModuleType(name)
    if sys.version_info >= (3, 12):
        # All that gRPC takes from it is here too; tests import this under 3.11, where it is not.
        sys.modules["typing_extensions"] = typing
