"""The agent's one channel to the host."""

import asyncio
import random

import grpc.aio

_MESSAGE_LIMIT = 256 << 10
_OPTIONS = (
    ("grpc.default_authority", "host"),
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
    ("grpc.max_send_message_length", _MESSAGE_LIMIT),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # This is how long one attempt may take, whatever its name says; a slow machine's handshake takes its time.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_retries", 0),
)


def open_channel(path: str) -> grpc.aio.Channel:
    """Open a channel over a unix socket that leads to the host."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=_OPTIONS)


def jittered(delay: float) -> float:
    """Return a random wait around `delay` seconds, so that a thousand guests do not come back as one."""
    return delay * random.uniform(0.5, 1.5)  # noqa: S311  # Spreads load; guards nothing.


def heed_cancellation() -> None:
    """Raise CancelledError if this task was cancelled: gRPC swallows that where a stream begins or ends."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
