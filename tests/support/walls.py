"""What hostile programs in a container try, as source for its Python: each prints what came of it as JSON."""

from __future__ import annotations

SOCKETS = """
import json, socket
told = {}
families = {"inet": (2, 1), "unix": (1, 1), "vsock": (40, 1), "vsock_dgram": (40, 2), "alg": (38, 5), "packet": (17, 3)}
for name, arguments in families.items():
    try:
        socket.socket(*arguments).close()
        told[name] = 0
    except OSError as error:
        told[name] = error.errno
print(json.dumps(told))
"""
"""The errno of opening a socket of each family."""

FOREIGN_CALLS = """
import ctypes, json, mmap, os
def code_of(*parts):
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("".join(parts)))
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    child = os.fork()
    if child == 0:
        os._exit(0 if function() >= 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps({
    "inet": code_of("b829000000", "bf02000000", "be01000000", "31d2", "0f05", "c3"),
    "vsock": code_of("b829000000", "bf28000000", "be01000000", "31d2", "0f05", "c3"),
    "vsock by x32": code_of("b829000040", "bf28000000", "be01000000", "31d2", "0f05", "c3"),
    "vsock by i386": code_of("53", "b867010000", "bb28000000", "b901000000", "31d2", "cd80", "5b", "c3"),
}))
"""
"""socket() in machine code, also by the kernel's other ABIs: 0 if it gave a socket, else 1, or less if it killed."""

DEVICES = """
import json, os, stat
found = {}
for directory, _, files in os.walk("/dev"):
    for name in files:
        path = os.path.join(directory, name)
        mode = os.lstat(path).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            found[path] = [stat.S_IFMT(mode) == stat.S_IFBLK, os.stat(path).st_rdev]
made = {}
nodes = {"disk": (stat.S_IFBLK, 254, 0), "mem": (stat.S_IFCHR, 1, 1), "fuse": (stat.S_IFCHR, 10, 229)}
for name, (kind, major, minor) in nodes.items():
    try:
        os.mknod("/tmp/" + name, kind | 0o666, os.makedev(major, minor))
        os.unlink("/tmp/" + name)
        made[name] = 0
    except OSError as error:
        made[name] = error.errno
print(json.dumps({"found": found, "made": made}))
"""
"""Every device node, and the errno of making one."""

CALLS = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
calls = {
    "getpid": (39,),
    "unshare a user namespace": (272, 0x10000000),
    "unshare a network": (272, 0x40000000),
    "mount": (165, b"none", b"/tmp", b"tmpfs", 0, None),
    "umount": (166, b"/proc", 2),
    "pivot_root": (155, b"/tmp", b"/tmp"),
    "setns": (308, os.open("/proc/self/ns/net", os.O_RDONLY), 0),
    "open_by_handle_at": (304, -100, None, 0),
    "bpf": (321, 0, None, 0),
    "perf_event_open": (298, None, 0, -1, -1, 0),
    "io_uring_setup": (425, 1, None),
    "io_setup": (206, 1, None),
    "seccomp": (317, 1, 0, None),
    "prctl to set a filter": (157, 22, 2, None, 0, 0),
    "userfaultfd": (323, 0),
    "add_key": (248, b"user", b"a", b"b", 1, -3),
    "keyctl": (250, 0, -3, 0),
    "init_module": (175, None, 0, b""),
    "kexec_load": (246, 0, 0, None, 0),
    "reboot": (169, 0xFEE1DEAD, 0x28121969, 0x1234567, None),
    "settimeofday": (164, b"\\0" * 16, None),
    "swapon": (167, b"/tmp", 0),
    "iopl": (172, 3),
    "clone3": (435, None, 0),
    "move_mount": (429, -100, b"/", -100, b"/tmp", 0),
    "process_vm_readv": (310, 1, None, 0, None, 0, 0),
}
told = {}
for name, (number, *arguments) in calls.items():
    ctypes.set_errno(0)
    passed = (ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    result = libc.syscall(ctypes.c_long(number), *passed)
    told[name] = ctypes.get_errno() if result < 0 else 0
print(json.dumps(told))
"""
"""The errno of each call that only the machine's own root should make; 0 if it succeeded."""

PROJECTS = """
import fcntl, json, os, struct
told = {}
attributes = struct.Struct("=5I8x")
for place in ("/tmp/project", "/srv/lasting/project"):
    os.makedirs(place, exist_ok=True)
    open(place + "/file", "w").close()
    for path in (place, place + "/file"):
        descriptor = os.open(path, os.O_RDONLY)
        def project():
            return attributes.unpack(fcntl.ioctl(descriptor, 0x801C581F, bytes(28)))
        before = project()
        flags = bytearray(struct.pack("=q", 0))
        fcntl.ioctl(descriptor, 0x80086601, flags)
        flags = struct.unpack("=q", flags)[0]
        attempts = {
            "another project": (0x401C5820, attributes.pack(before[0], 0, 0, before[3] + 1, 0)),
            "no project": (0x401C5820, attributes.pack(before[0], 0, 0, 0, 0)),
            "no inheritance": (0x401C5820, attributes.pack(before[0] & ~0x200, 0, 0, before[3], 0)),
            "no inheritance, by flags": (0x40086602, struct.pack("=q", flags & ~0x20000000)),
        }
        for name, (command, data) in attempts.items():
            try:
                fcntl.ioctl(descriptor, command, data)
            except OSError:
                pass
            if project() != before:
                told[path + ": " + name] = [before, project()]
        told["counted"] = told.get("counted", True) and before[3] > 0
print(json.dumps(told))
"""
"""Whether files are counted for a project, and each attempt to change that which came true."""

FILES = """
import json
told = {}
for path in (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/net/ipv4/ip_forward",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/pids.max",
    "/sys/fs/cgroup/cgroup.procs",
):
    try:
        with open(path, "w") as file:
            file.write("0")
        told[path] = "written"
    except OSError as error:
        told[path] = type(error).__name__
with open("/proc/kcore", "rb") as file:
    told["/proc/kcore"] = len(file.read(16))
print(json.dumps(told))
"""
"""What came of writing where a container's limits and the kernel's settings are; and the readable bytes of kcore."""

HOG = "b'x' * (400 << 20)"
"""Takes more memory than any container here may have."""

BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.05)
"""
"""Forks, and so does each child."""

LISTEN = """
import socket, sys
shared = socket.socket()
shared.bind(("0.0.0.0", 9999))
shared.listen()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0cell")
abstract.listen()
print("listening", flush=True)
sys.stdin.read()
"""
"""Listens on port 9999 and on an abstract socket until its input ends."""

CONNECT = """
import json, socket
told = {}
for name, family, address in (
    ("port", socket.AF_INET, ("127.0.0.1", 9999)),
    ("abstract", socket.AF_UNIX, "\\0cell"),
):
    try:
        with socket.socket(family) as caller:
            caller.connect(address)
        told[name] = "connected"
    except OSError as error:
        told[name] = type(error).__name__
print(json.dumps(told))
"""
"""What came of connecting to what LISTEN opens."""
