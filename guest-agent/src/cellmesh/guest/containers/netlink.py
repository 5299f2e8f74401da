"""A bound on the netlink sockets of a container: their buffers are charged to no cgroup, and no limit counts them.

Programs need a few: getifaddrs() asks its questions there. The seccomp profile therefore sends each socket(AF_NETLINK)
here, and the kernel keeps the caller waiting until this has answered: go on, or ENOBUFS.
"""

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
from pathlib import Path

MOST_SOCKETS = 32
"""Netlink sockets of one network namespace. Each thread that is let go on at the same moment may exceed it by one."""

_RECEIVE = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_NOTIFICATION = struct.Struct("=QII64x")  # struct seccomp_notif: id, pid, flags, seccomp_data
_ANSWER = struct.Struct("=QqiI")  # struct seccomp_notif_resp: id, val, error, flags
_CONTINUE = 1  # Sound here: the filter has looked at registers, which no other thread can change.
_PAUSE = 0.005
"""Seconds between two answers to one process: what a container spends of the agent's time by asking for ever."""
_MESSAGE = 65536


class NetlinkBound:
    """Answers the notifications of all containers, in the loop that calls `listen`."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def listen(self, path: Path) -> None:
        """Take the filters' descriptors that crun sends to this path; once is enough. Raises OSError."""
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def close(self) -> None:
        """Take no more of them; those taken are answered on."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.settimeout(0)
            asyncio.get_running_loop().add_reader(connection, self._take, connection)

    def _take(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        filters: list[int] = []
        with contextlib.suppress(OSError):
            _, filters, _, _ = socket.recv_fds(connection, _MESSAGE, 1)
        loop.remove_reader(connection)
        connection.close()
        for descriptor in filters:
            os.set_blocking(descriptor, False)
            loop.add_reader(descriptor, _answer, descriptor)


def _answer(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    loop.remove_reader(descriptor)
    notification = array.array("B", bytes(_NOTIFICATION.size))
    try:
        fcntl.ioctl(descriptor, _RECEIVE, notification)
        number, pid, _ = _NOTIFICATION.unpack(notification)
        if sockets_of(pid) < MOST_SOCKETS:
            answer = _ANSWER.pack(number, 0, 0, _CONTINUE)
        else:
            answer = _ANSWER.pack(number, 0, -errno.ENOBUFS, 0)
        fcntl.ioctl(descriptor, _SEND, answer)
    except OSError as error:
        # ENOENT: the caller was killed meanwhile; so does a filter answer that no process has any more.
        if error.errno != errno.ENOENT or not _has_processes(descriptor):
            os.close(descriptor)
            return
    loop.call_later(_PAUSE, loop.add_reader, descriptor, _answer, descriptor)


def _has_processes(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return not any(events & select.POLLHUP for _, events in poll.poll(0))


def sockets_of(pid: int) -> int:
    """Return how many netlink sockets the network namespace of a process has; raises OSError."""
    for line in Path(f"/proc/{pid}/net/protocols").read_text().splitlines():
        name, _, sockets, *_ = line.split()
        if name == "NETLINK":
            return int(sockets)
    return 0
