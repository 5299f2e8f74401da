"""One VM under test: its directory, its process, and the ways to talk to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from conformance.client import DEADLINE_SECONDS, Api, VsockStream, eventually
from conformance.payload import Payload

COMMAND_PORT, EARLY_PORT, READY_PORT = 5000, 5001, 5002
_MEMORY_BYTES = 256 << 20
_CMDLINE = "console=hvc0 quiet panic=-1 cryptomgr.notests"


class Vm:
    """A directory like the product's, and the process in it."""

    def __init__(self, binary: Path, directory: Path, payload: Payload, *, uid: int | None = None) -> None:
        self.binary = binary
        self.directory = directory
        self.payload = payload
        self.api = Api(directory / "api.sock")
        self.vsock = directory / "vsock.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self._uid = uid

    def start(self) -> None:
        """Run the binary and wait until it answers a ping."""
        line: list[str | Path] = [self.binary, "--api-socket", f"path={self.api.path}", "--seccomp", "true"]
        line += ["--event-monitor", f"path={self.directory / 'events.json'}", "--log-file", self.directory / "vmm.log"]
        self.process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.directory,
            env={},
            user=self._uid,
            group=self._uid,
            extra_groups=None if self._uid is None else [],
        )
        eventually(self._answers)

    def end(self) -> None:
        """Kill what still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    def wait_exit(self) -> int:
        """Wait for the process's end and return its status."""
        assert self.process is not None
        return self.process.wait(DEADLINE_SECONDS)

    def config(self, **changes: Any) -> dict[str, Any]:
        """Return a configuration like the product's, with some keys changed."""
        return {
            "payload": {
                "kernel": str(self.payload.kernel),
                "initramfs": str(self.payload.initramfs),
                "cmdline": _CMDLINE,
            },
            "memory": {"size": _MEMORY_BYTES},
            "rng": {"src": "/dev/urandom"},
            "serial": {"mode": "Off"},
            "console": {"mode": "File", "file": str(self.directory / "console.log")},
            "vsock": {"cid": 3, "socket": str(self.vsock)},
            **changes,
        }

    def boot(self, **changes: Any) -> None:
        """Create and boot, and wait until the guest's ports are open."""
        with self.listening(READY_PORT) as ready:
            assert self.api.put("vm.create", self.config(**changes)).status == 204
            assert self.api.put("vm.boot").status == 204
            ready.accept()[0].close()

    def listening(self, port: int) -> socket.socket:
        """Listen on a port of the host, for the guest to dial."""
        path = Path(f"{self.vsock}_{port}")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.settimeout(DEADLINE_SECONDS)
        listener.bind(str(path))
        if self._uid is not None:
            os.chown(path, self._uid, self._uid)
        listener.listen()
        return listener

    def command(self, line: str) -> bytes:
        """Let the guest act on a line and return all it says."""
        with VsockStream.connect(self.vsock, COMMAND_PORT) as stream:
            stream.end.sendall(line.encode() + b"\n")
            return stream.read_all()

    def disk(self, name: str, content: bytes, *, megabytes: int = 1) -> str:
        """Make a raw disk image and return its path."""
        path = self.directory / name
        with path.open("wb") as file:
            file.truncate(megabytes << 20)
            file.write(content)
        return str(path)

    def disks(self) -> dict[str, tuple[bool, int, bytes]]:
        """Return what the guest sees: by serial, whether read-only, size in bytes, first 16 bytes."""
        found = {}
        for line in self.command("disks").decode().splitlines():
            serial, readonly, sectors, head = line.split(" ")
            found[serial] = (readonly == "1", int(sectors) * 512, bytes.fromhex(head))
        return found

    def events(self) -> list[str]:
        """Return the event monitor's file as `source.event` words."""
        decoder, text, found = json.JSONDecoder(), (self.directory / "events.json").read_text(), []
        while text := text.lstrip():
            event, end = decoder.raw_decode(text)
            assert set(event) == {"timestamp", "source", "event", "properties"}
            found.append(f"{event['source']}.{event['event']}")
            text = text[end:]
        return [event for event in found if not event.startswith("virtio-device.")]

    def console(self) -> str:
        """Return what the guest wrote on its console."""
        return (self.directory / "console.log").read_text(errors="replace")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(os.fsdecode(self.process.communicate()[1]))
        try:
            return self.api.get("vmm.ping").status == 200
        except OSError:
            return False
