"""The text of the simulated binary: it hands its command line to the hub and waits to be told how to end.

It imports two built-in modules only and starts in ten milliseconds. The path of the hub is written into it, because
it runs with an empty environment.
"""

from __future__ import annotations

from pathlib import Path

_TEXT = """#!/usr/bin/python3 -ISE
import _signal
import _socket
import posix
import sys

hub = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
try:
    hub.connect({hub!r})
except OSError:
    posix._exit(1)
words = [posix.getcwd(), *sys.argv[1:]]
text = b"\\0".join(word.encode("utf-8", "surrogateescape") for word in words)
hub.send(len(text).to_bytes(4, "big") + text)
_signal.signal(_signal.SIGTERM, lambda *_: hub.send(b"T"))
_signal.signal(_signal.SIGINT, lambda *_: hub.send(b"T"))
end = hub.recv(65536) or b"\1"
posix.write(2 if end[0] else 1, end[1:])
posix._exit(end[0])
"""


def write(path: Path, hub: Path) -> None:
    """Write the binary of one hub, executable by everybody."""
    path.write_text(_TEXT.format(hub=str(hub)))
    path.chmod(0o755)
