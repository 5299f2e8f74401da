"""The conformance guest as the simulator plays it: what `guest/init.c` does, in Python."""

from __future__ import annotations

import asyncio

from conformance.pattern import pattern
from simulator import SimulatedGuest

COMMAND_PORT, EARLY_PORT, READY_PORT = 5000, 5001, 5002
_CHUNK = 65536


class ConformanceGuest(SimulatedGuest):
    """A guest without an agent: it knows only the commands of the suite."""

    def listens(self, port: int) -> bool:
        """Whether a connection of the host to this port is taken."""
        return port in {COMMAND_PORT, EARLY_PORT}

    async def run(self) -> None:
        """Say that the ports are open, then nothing."""
        self.machine.write_console("conformance guest ready\n")
        if self.machine.vsock is not None:
            try:
                _reader, writer = await self.machine.vsock.dial_host(READY_PORT)
            except OSError:
                return  # nobody waits
            self.machine.vsock.hang_up(writer)

    async def serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        if port == EARLY_PORT:
            writer.write(b"early bytes\n")
            await _echo(reader, writer)
            return
        verb, _, argument = (await reader.readline()).decode().rstrip("\n").partition(" ")
        await self._act(verb, argument, reader, writer)

    async def _act(self, verb: str, argument: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match verb:
            case "echo":
                await _echo(reader, writer)
            case "send":
                await _say(writer, pattern(int(argument)))
            case "count":
                data = await reader.read(-1)
                wrong = sum(mine != theirs for mine, theirs in zip(data, pattern(len(data)), strict=True))
                await _say(writer, f"{len(data)} {wrong}\n".encode())
            case "disks":
                await _say(writer, "".join(f"{line}\n" for line in self._disks()).encode())
            case "dial":
                port, _, size = argument.partition(" ")
                await self._dial(int(port), int(size or 0), writer)
            case "console":
                self.machine.write_console(f"{argument}\n")
            case "boot-id":
                await _say(writer, f"{self.boot_id}\n".encode())
            case "poweroff":
                self.power_off()
            case "reboot" | "panic":
                self.reboot()

    def _disks(self) -> list[str]:
        lines = []
        for disk in self.machine.config.get("disks", []):
            with open(disk["path"], "rb") as file:  # noqa: PTH123 - a few bytes of a local file
                head = file.read(16)
                sectors = file.seek(0, 2) // 512
            lines.append(f"{disk.get('serial', '')} {int(disk['readonly'])} {sectors} {head.hex()}")
        return lines

    async def _dial(self, port: int, size: int, writer: asyncio.StreamWriter) -> None:
        assert self.machine.vsock is not None
        try:
            host_reader, host_writer = await self.machine.vsock.dial_host(port)
        except OSError:
            await _say(writer, b"refused\n")
            return
        await _say(host_writer, pattern(size))
        host_writer.write_eof()
        await _echo(host_reader, writer)
        self.machine.vsock.hang_up(host_writer)


async def _say(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        await _say(writer, data)
