r"""The hybrid vsock of cloud-hypervisor behind QEMU: a vhost-user device in a thread of this process.

Host to guest: `CONNECT <port>\n` on the VM's socket, answered by `OK <host port>\n`. Guest to host: a connection to
`<socket>_<port>`. A connection without a taker is closed at once; half-closes travel both ways, as since v53.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from emulator.vhost_user import BackEnd, FrontEndGoneError
from emulator.virtqueue import Chain, Virtqueue
from emulator.vsock_command import BadCommandError, CommandReader
from emulator.vsock_packet import (
    BUFFER_BYTES,
    HEADER,
    HOST_CID,
    SHUT_RECEIVE,
    SHUT_SEND,
    STREAM_TYPE,
    Operation,
    Packet,
    decode,
    split_header,
)
from emulator.vsock_stream import HostSide, Stream

_RX, _TX, _EVENT = 0, 1, 2
_MOST_STREAMS = 1023
_FIRST_HOST_PORT = 1 << 30
_BURST = 32
_CONNECT_SECONDS = 2.0


class VsockDevice:
    """Owns the VM's vsock socket from construction until `close`."""

    def __init__(self, path: Path, *, guest_cid: int, front_end: socket.socket) -> None:
        self._path = path
        self._guest_cid = guest_cid
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._listener.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._streams: dict[tuple[int, int], Stream] = {}
        self._readers: dict[int, CommandReader] = {}
        self._control: deque[tuple[Operation, int, int, int]] = deque()
        self._starving: list[Stream] = []
        self._next_host_port = _FIRST_HOST_PORT
        self._queues: dict[int, tuple[Virtqueue, int]] = {}
        self._stop = os.eventfd(0)
        self._stopping = False
        self._watch(self._stop, select.EPOLLIN, self._on_stop)
        self._back_end = BackEnd(
            front_end, config=struct.pack("<Q", guest_cid), rings=3, ring_changed=self._on_ring_changed
        )
        self._watch(front_end.fileno(), select.EPOLLIN, self._on_front_end)
        self._thread = threading.Thread(target=self._run, name="vsock", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, close every connection, remove the socket."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        for stream in list(self._streams.values()):
            stream.host.close()
        for reader in self._readers.values():
            reader.host.close()
        self._listener.close()
        self._back_end.close()
        self._epoll.close()
        os.close(self._stop)
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopping:
            for descriptor, events in self._epoll.poll(self._patience()):
                handler = self._handlers.get(descriptor)
                if handler is not None:
                    handler(events)
            self._expire()
            self._flush_control()
            self._feed_starving()
            for queue, _kick in self._queues.values():
                queue.signal()

    def _patience(self) -> float:
        deadlines = [stream.deadline for stream in self._streams.values() if stream.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else -1.0

    def _watch(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def _forget(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def _on_stop(self, _events: int) -> None:
        self._stopping = True

    def _on_front_end(self, _events: int) -> None:
        try:
            self._back_end.serve_one()
        except FrontEndGoneError:
            self._forget(self._back_end.front_end.fileno())

    def _on_ring_changed(self, index: int) -> None:
        if index == _EVENT:
            return  # transport resets are for migration, which is not emulated
        known = self._queues.pop(index, None)
        if known is not None:
            self._forget(known[1])
        started = self._back_end.queue(index)
        if started is not None:
            self._queues[index] = started
            self._watch(started[1], select.EPOLLIN, self._on_rx_kick if index == _RX else self._on_tx_kick)
        listening = self._listener.fileno() in self._handlers
        if len(self._queues) == 2 and not listening:
            self._watch(self._listener.fileno(), select.EPOLLIN, self._on_host_connection)
        elif len(self._queues) < 2 and listening:
            self._forget(self._listener.fileno())

    # Host to guest.

    def _on_host_connection(self, _events: int) -> None:
        host, _address = self._listener.accept()
        if len(self._streams) + len(self._readers) >= _MOST_STREAMS:
            host.close()
            return
        host.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        reader = CommandReader(host)
        self._readers[host.fileno()] = reader
        self._watch(host.fileno(), select.EPOLLIN, lambda _events: self._on_command(reader))

    def _on_command(self, reader: CommandReader) -> None:
        host = reader.host
        try:
            port = reader.read()
        except BadCommandError:
            self._forget(host.fileno())
            del self._readers[host.fileno()]
            host.close()
            return
        if port is None:
            return
        self._forget(host.fileno())
        del self._readers[host.fileno()]
        stream = Stream(host, host_port=self._take_host_port(), guest_port=port, established=False)
        self._streams[stream.key] = stream
        self._say(Operation.REQUEST, stream.host_port, port)

    def _take_host_port(self) -> int:
        taken = {host_port for host_port, _guest_port in self._streams}
        while self._next_host_port in taken:
            self._next_host_port += 1
        self._next_host_port += 1
        return self._next_host_port - 1

    def _on_host(self, stream: Stream, events: int) -> None:
        if events & (select.EPOLLOUT | select.EPOLLERR) and stream.backlog:
            self._drain(stream)
        if stream.key not in self._streams:
            return
        if stream.host_side is HostSide.ENDED:
            if events & select.EPOLLHUP:
                self._end_host_side(stream, gone=True)
        elif events & (select.EPOLLIN | select.EPOLLHUP):
            self._pump(stream, hung_up=bool(events & select.EPOLLHUP))
        self._rewatch(stream)

    def _pump(self, stream: Stream, *, hung_up: bool) -> None:
        """Move what the host sent into the guest's buffers, as far as both credit and buffers go."""
        queue = self._queues[_RX][0]
        for _ in range(_BURST):
            credit = stream.credit
            if not credit:
                self._say(Operation.CREDIT_REQUEST, *stream.key)
                return
            chain = None if self._control else queue.pop()
            if chain is None:
                stream.awaits_buffers = True
                self._starving.append(stream)
                return
            _header, room = split_header(chain.writable)
            try:
                size = stream.host.recvmsg_into(_limit(room, credit))[0]
            except BlockingIOError:
                queue.put_back()
                return
            except ConnectionError:
                size, hung_up = 0, True
            if size == 0:
                queue.put_back()
                self._end_host_side(stream, gone=hung_up)
                return
            self._send(queue, chain, (Operation.DATA, *stream.key, 0), size)
            stream.count_sent(size)

    def _end_host_side(self, stream: Stream, *, gone: bool) -> None:
        stream.host_side = HostSide.GONE if gone else HostSide.ENDED
        if stream.finished and not stream.backlog:
            self._reset(stream)
            return
        self._say(Operation.SHUTDOWN, *stream.key, SHUT_SEND | SHUT_RECEIVE if gone else SHUT_SEND)
        if gone or stream.finished:
            stream.start_timer()

    def _on_rx_kick(self, _events: int) -> None:
        os.eventfd_read(self._queues[_RX][1])

    def _feed_starving(self) -> None:
        """Let streams read again once there are buffers; the guest offers new ones long before the old are used up."""
        if not self._starving or self._control or _RX not in self._queues or self._queues[_RX][0].empty:
            return
        starving, self._starving = self._starving, []
        for stream in starving:
            stream.awaits_buffers = False
            if self._streams.get(stream.key) is stream:
                self._rewatch(stream)

    def _say(self, operation: Operation, host_port: int, guest_port: int, flags: int = 0) -> None:
        self._control.append((operation, host_port, guest_port, flags))

    def _flush_control(self) -> None:
        while self._control and _RX in self._queues:
            queue = self._queues[_RX][0]
            chain = queue.pop()
            if chain is None:
                return
            self._send(queue, chain, self._control.popleft(), 0)

    def _send(self, queue: Virtqueue, chain: Chain, meaning: tuple[Operation, int, int, int], size: int) -> None:
        operation, host_port, guest_port, flags = meaning
        stream = self._streams.get((host_port, guest_port))
        room, forwarded = (BUFFER_BYTES, stream.tell_credit()) if stream is not None else (0, 0)
        header = HEADER.pack(
            HOST_CID, self._guest_cid, host_port, guest_port, size, STREAM_TYPE, operation, flags, room, forwarded
        )
        for view in split_header(chain.writable)[0]:
            view[:], header = header[: len(view)], header[len(view) :]
        queue.push(chain, HEADER.size + size)

    # Guest to host.

    def _on_tx_kick(self, _events: int) -> None:
        queue, kick = self._queues[_TX]
        os.eventfd_read(kick)
        while (chain := queue.pop()) is not None:
            packet = decode(chain)
            if packet is not None and packet.target_cid == HOST_CID:
                self._receive(packet)
            queue.push(chain, 0)

    def _receive(self, packet: Packet) -> None:
        stream = self._streams.get((packet.host_port, packet.guest_port))
        if packet.operation == Operation.RESET:
            if stream is not None:
                self._drop(stream)
        elif packet.operation == Operation.REQUEST and stream is None and packet.type == STREAM_TYPE:
            self._dial_host(packet)
        elif stream is None:
            self._say(Operation.RESET, packet.host_port, packet.guest_port)
        else:
            stream.take_credit(buffer_bytes=packet.buffer_bytes, forwarded=packet.forwarded)
            self._advance(stream, packet)
            if self._streams.get(stream.key) is stream:
                self._rewatch(stream)

    def _dial_host(self, packet: Packet) -> None:
        host = socket.socket(socket.AF_UNIX)
        host.settimeout(_CONNECT_SECONDS)
        try:
            host.connect(f"{self._path}_{packet.host_port}")
        except OSError:
            host.close()
            self._say(Operation.RESET, packet.host_port, packet.guest_port)
            return
        stream = Stream(host, host_port=packet.host_port, guest_port=packet.guest_port, established=True)
        stream.take_credit(buffer_bytes=packet.buffer_bytes, forwarded=packet.forwarded)
        self._streams[stream.key] = stream
        self._say(Operation.RESPONSE, *stream.key)
        self._rewatch(stream)

    def _advance(self, stream: Stream, packet: Packet) -> None:
        if packet.operation == Operation.RESPONSE and not stream.established:
            stream.established, stream.deadline = True, None
            try:
                stream.host.send(b"OK %d\n" % stream.host_port)
            except OSError:
                self._reset(stream)  # who dialled did not wait for so slow a guest
        elif packet.operation == Operation.DATA and stream.guest_sends:
            self._to_host(stream, packet.payload)
        elif packet.operation == Operation.SHUTDOWN:
            self._end_guest_side(stream, packet.flags)
        elif packet.operation == Operation.CREDIT_REQUEST:
            self._say(Operation.CREDIT_UPDATE, *stream.key)

    def _to_host(self, stream: Stream, payload: list[memoryview]) -> None:
        size = sum(map(len, payload))
        sent = 0
        if not stream.backlog:
            try:
                sent = stream.host.sendmsg(payload)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._reset(stream)
                return
        if sent < size:
            stream.backlog += b"".join(payload)[sent:]
        if len(stream.backlog) > BUFFER_BYTES:
            self._reset(stream)
            return
        stream.count_forwarded(sent)
        if stream.owes_credit:
            self._say(Operation.CREDIT_UPDATE, *stream.key)

    def _drain(self, stream: Stream) -> None:
        try:
            sent = stream.host.send(stream.backlog)
        except BlockingIOError:
            return
        except OSError:
            self._reset(stream)
            return
        del stream.backlog[:sent]
        stream.count_forwarded(sent)
        if stream.backlog:
            return
        if stream.finished:
            self._reset(stream)
        elif not stream.guest_sends:
            stream.end_writing()
        elif stream.owes_credit:
            self._say(Operation.CREDIT_UPDATE, *stream.key)

    def _end_guest_side(self, stream: Stream, flags: int) -> None:
        stream.guest_receives = stream.guest_receives and not flags & SHUT_RECEIVE
        stream.guest_sends = stream.guest_sends and not flags & SHUT_SEND
        if stream.finished and not stream.backlog:
            self._reset(stream)
        elif stream.finished:
            stream.start_timer()
        elif not stream.guest_sends and not stream.backlog:
            stream.end_writing()

    # Ends.

    def _expire(self) -> None:
        now = time.monotonic()
        for stream in [s for s in self._streams.values() if s.deadline is not None and s.deadline <= now]:
            self._reset(stream)

    def _reset(self, stream: Stream) -> None:
        self._say(Operation.RESET, *stream.key)
        self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        self._streams.pop(stream.key, None)
        self._forget(stream.host.fileno())
        stream.host.close()

    def _rewatch(self, stream: Stream) -> None:
        if self._streams.get(stream.key) is not stream:
            return
        wanted = stream.wanted_events()
        if wanted == stream.watched:
            return
        descriptor = stream.host.fileno()
        if stream.watched is not None and wanted is not None:
            self._epoll.modify(descriptor, wanted)
        elif wanted is None:
            self._forget(descriptor)
        else:
            self._watch(descriptor, wanted, lambda events: self._on_host(stream, events))
        stream.watched = wanted


def _limit(views: list[memoryview], size: int) -> list[memoryview]:
    limited = []
    for view in views:
        limited.append(view[:size])
        size -= len(limited[-1])
    return [view for view in limited if view]
