"""Programs that take all they can get of one kernel resource, say so, and hold it until their input ends.

Each prints one line of JSON: how many it took, and the errno that ended it (0 if it stopped by itself).
"""

from __future__ import annotations

_FRAME = """
import array, ctypes, fcntl, json, mmap, os, resource, select, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
def call(number, *arguments):
    return checked(libc.syscall(ctypes.c_long(number), *arguments))
def take(one, most):
    count = 0
    try:
        while count < most:
            held.append(one())
            count += 1
    except (OSError, RuntimeError, MemoryError) as error:
        return count, getattr(error, "errno", 0) or 0
    return count, 0
def by_processes(one, most, processes):
    pipes = [os.pipe() for _ in range(processes)]
    results = []
    for reading, writing in pipes:
        if os.fork() == 0:
            os.write(writing, json.dumps(take(one, most)).encode())
            time.sleep(86400)
        results.append(json.loads(os.read(reading, 100)))
    return sum(count for count, _ in results), max(error for _, error in results)
"""
_END = """
print(json.dumps({"taken": taken, "errno": errno}), flush=True)
sys.stdin.read()
"""

_BODIES = {
    "files": "taken, errno = by_processes(lambda: os.eventfd(0), 1 << 20, 4)",
    "inotify": "taken, errno = take(lambda: checked(libc.inotify_init()), 1000)",
    "ptys": "taken, errno = take(os.openpty, 4000)",
    "netlink": """
def one():
    asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
    asking.setblocking(False)
    ack = struct.pack("=IHHII", 16384, 0x7F, 5, 1, 0).ljust(16384, b"x")
    for _ in range(40):
        asking.send(ack)
    return asking
taken, errno = take(one, 300)
""",
    "unix buffers": """
def one():
    pair = socket.socketpair()
    pair[0].setblocking(False)
    try:
        while True:
            pair[0].send(b"x" * 65536)
    except BlockingIOError:
        return pair
taken, errno = take(one, 200)
""",
    "pipe buffers": """
def one():
    pipe = os.pipe()
    os.set_blocking(pipe[1], False)
    os.write(pipe[1], b"x" * 65536)
    return pipe
taken, errno = take(one, 800)
""",
    "tcp buffers": """
listener = socket.create_server(("127.0.0.1", 9009), backlog=64)
def one():
    sending = socket.create_connection(("127.0.0.1", 9009))
    receiving, _ = listener.accept()
    sending.setblocking(False)
    try:
        while True:
            sending.send(b"x" * 65536)
    except BlockingIOError:
        return sending, receiving
taken, errno = take(one, 40)
""",
    "unaccepted connections": """
listener = socket.create_server(("127.0.0.1", 9009), backlog=4096)
def one():
    sending = socket.socket()
    sending.setblocking(False)
    if sending.connect_ex(("127.0.0.1", 9009)) not in (0, 115):
        raise OSError(111, "refused")
    try:
        sending.send(b"x" * 32768)
    except BlockingIOError:
        raise OSError(11, "the queue is full")
    return sending
taken, errno = take(one, 3000)
""",
    "datagrams": """
def one():
    corked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    corked.sendto(b"x" * 65000, socket.MSG_MORE, ("127.0.0.1", 9009))
    return corked
taken, errno = take(one, 1500)
""",
    "epoll": """
watched = [os.eventfd(0) for _ in range(200)]
def one():
    watcher = select.epoll()
    for each in watched:
        watcher.register(each)
    return watcher
taken, errno = take(one, 200)
""",
    "timers": """
def one():
    timer = ctypes.c_int()
    return call(222, 0, None, ctypes.byref(timer))
taken, errno = take(one, 8000)
""",
    "dentries": """
for number in range(30000):
    os.path.exists(f"/tmp/none-{number}")
taken, errno = number + 1, 0
""",
    "page tables": """
area = mmap.mmap(-1, 16 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
for number in range(4096):
    area[number << 21]
taken, errno = 4096, 0
""",
    "tmpfs": """
def one():
    with open(f"/dev/shm/{len(held)}", "wb") as file:
        file.write(b"x" * (1 << 20))
taken, errno = take(one, 100)
""",
    "tmpfs inodes": """
def one():
    os.close(os.open(f"/dev/shm/empty-{len(held)}", os.O_CREAT))
taken, errno = take(one, 20000)
""",
    "posix queues": """
def one():
    return checked(libc.mq_open(f"/{len(held)}".encode(), 0o102, 0o600, None))
taken, errno = take(one, 300)
""",
    "sysv": """
def one():
    queue = checked(libc.msgget(0, 0o1600))
    message = struct.pack("=q", 1) + b"x" * 8000
    while libc.msgsnd(queue, message, 8000, 0o4000) == 0:
        pass
    checked(libc.semget(0, 250, 0o1600))
    return checked(libc.shmget(0, 1 << 20, 0o1600))
taken, errno = take(one, 500)
""",
    "threads": """
threading.stack_size(65536)
def one():
    thread = threading.Thread(target=time.sleep, args=(86400,), daemon=True)
    thread.start()
taken, errno = take(one, 1000)
""",
}
ATTACKS = {name: _FRAME + body + _END for name, body in _BODIES.items()}

ONE_OF_EACH = """
import ctypes, json, os, resource, socket, threading
told = {}
def tried(name, one):
    try:
        one()
        told[name] = 0
    except (OSError, RuntimeError) as error:
        told[name] = getattr(error, "errno", -1) or -1
def inotify():
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init()
    if watcher < 0:
        raise OSError(ctypes.get_errno(), "refused")
    os.close(watcher)
def tcp():
    with socket.create_server(("127.0.0.1", 9010)) as listener, socket.create_connection(("127.0.0.1", 9010)) as end:
        other, _ = listener.accept()
        end.sendall(b"x" * 4096)
        other.recv(4096)
        other.close()
def timer():
    made = ctypes.c_int()
    if ctypes.CDLL(None, use_errno=True).syscall(222, 0, None, ctypes.byref(made)):
        raise OSError(ctypes.get_errno(), "refused")
def queue():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mq_open(b"/own", 0o102, 0o600, None) < 0:
        raise OSError(ctypes.get_errno(), "refused")
    libc.mq_unlink(b"/own")
def thread():
    worker = threading.Thread(target=int)
    worker.start()
    worker.join()
tried("files", lambda: [os.close(each) for each in [os.eventfd(0) for _ in range(100)]])
tried("inotify", inotify)
tried("pty", lambda: [os.close(each) for each in os.openpty()])
tried("interfaces", socket.if_nameindex)
tried("pipe", lambda: [os.close(each) for each in os.pipe()])
tried("unix", lambda: [each.close() for each in socket.socketpair()])
tried("tcp", tcp)
tried("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close())
tried("timer", timer)
tried("queue", queue)
tried("thread", thread)
print(json.dumps({name: errno for name, errno in told.items() if errno}))
"""
"""The errno of each resource a sibling asks for and does not get."""

MEMORY_IN_USE = """
lines = (line.split() for line in open("/proc/meminfo"))
memory = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
print(memory["MemTotal"] - memory["MemFree"], memory["MemAvailable"])
"""
"""The guest's memory in use and available, bytes: of the whole machine, as /proc/meminfo is not the container's own."""

COMMON = """
import asyncio, multiprocessing, os, pty, socket, subprocess, sys, threading
from multiprocessing.shared_memory import SharedMemory
assert socket.getaddrinfo("localhost", 80)
assert ("lo" in [name for _, name in socket.if_nameindex()])
assert subprocess.run(["sh", "-c", "echo said"], capture_output=True, check=True).stdout == b"said\\n"
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    multiprocessing.Semaphore(1).acquire()
    shared = SharedMemory(create=True, size=4096)
    shared.close()
    shared.unlink()
    async def talk():
        async def answer(reader, writer):
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()
        async with await asyncio.start_server(answer, "127.0.0.1", 9011):
            reader, writer = await asyncio.open_connection("127.0.0.1", 9011)
            writer.write(b"hello\\n")
            assert await reader.readline() == b"hello\\n"
            writer.close()
    asyncio.run(talk())
    child, end = pty.fork()
    if child == 0:
        os.execvp("sh", ["sh", "-c", "test -t 0 && echo terminal"])
    assert b"terminal" in os.read(end, 100)
    workers = [threading.Thread(target=int) for _ in range(50)]
    [each.start() for each in workers]
    [each.join() for each in workers]
    print("works")
"""
"""What ordinary programs do that the bounds could have broken."""

FILL = """
import json, os, sys
directory, file_size, bytes_wanted, files_wanted = sys.argv[1], *map(int, sys.argv[2:])
written = made = errno = 0
block = bytes(1 << 20)
try:
    os.makedirs(directory, exist_ok=True)
    while written < bytes_wanted and made < files_wanted:
        file = os.open(os.path.join(directory, str(made)), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        made += 1
        left = min(file_size, bytes_wanted - written)
        while left > 0:
            count = os.write(file, block[: min(left, len(block))])
            written, left = written + count, left - count
        if file_size:
            os.fsync(file)
        os.close(file)
except OSError as error:
    errno = error.errno
size = os.statvfs(directory if os.path.isdir(directory) else "/")
print(json.dumps({
    "written": written, "made": made, "errno": errno, "room": size.f_blocks * size.f_frsize,
    "used": (size.f_blocks - size.f_bfree) * size.f_frsize,
    "files": size.f_files, "files_used": size.f_files - size.f_ffree,
}))
"""
"""Makes files in a directory until it has so many bytes or files, or is refused; says what it got and what there is.

Arguments: the directory, bytes of a file, bytes in all, files in all.
"""
