"""Everything that a node makes has the owner and mode it is to have, and each uid can reach no more than it must."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from cellmesh.hypervisor.vmm import process
from integration.test_cli_edge import authenticator, client, served, up
from support.cli_stage import stage

VM_UID, EDGE_UID, STRANGER = 600_000, 599_999, 65_534
_NAMES = ((r"[0-9a-f]{64}", "IMAGE"), (r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID"), (r"\b[0-9a-f]{12}\b", "VM"))
TABLE: Mapping[str, tuple[str, str]] = {
    "run": ("drwxr-xr-x", "us"),
    "run/activator.log": ("-rw-------", "us"),
    "run/edge": ("drwxrwx--T", "us:edge"),
    "run/edge/access.log": ("-rw-------", "edge"),
    "run/edge/activator.sock": ("srw-rw----", "us:edge"),
    "run/edge/activator.sock.lock": ("-rw-------", "us"),
    "run/edge/admin.sock": ("srw-------", "edge"),
    "run/edge/authz.sock": ("srw-rw----", "us:edge"),
    "run/edge/certificate.json": ("-rw-r-----", "us:edge"),
    "run/edge/edge.sock": ("srw-rw----", "us:edge"),
    "run/edge/edge.sock.lock": ("-rw-------", "us"),
    "run/edge/envoy.json": ("-rw-r-----", "us:edge"),
    "run/edge/probe.sock": ("srw-------", "edge"),
    "run/envoy.log": ("-rw-------", "us"),
    "run/hello": ("drwx------", "us"),
    "run/hello/VM": ("srwx------", "us"),
    "run/hypervisor.log": ("-rw-------", "us"),
    "run/in": ("drwx--x---", "us:edge"),
    "run/in/VM": ("drwx--x---", "us:edge"),
    "run/in/VM/sandbox-live.1.1": ("srw-rw----", "us:edge"),
    "run/operator.sock": ("srw-------", "us"),
    "run/operator.sock.lock": ("-rw-------", "us"),
    "run/vm": ("drwx--x--x", "us"),
    "run/vm/VM": ("drwx------", "vm"),
    "run/vm/VM/api.sock": ("srwx------", "vm"),
    "run/vm/VM/api.sock.lock": ("-rw-------", "vm"),
    "run/vm/VM/bridge.sock": ("srw-------", "vm"),
    "run/vm/VM/console.fifo": ("prw-------", "vm"),
    "run/vm/VM/console.log": ("-rw-------", "vm"),
    "run/vm/VM/events.json": ("-rw-------", "vm"),
    "run/vm/VM/in": ("drwx------", "vm"),
    "run/vm/VM/in/agent.1": ("srw-------", "vm"),
    "run/vm/VM/vsock.sock": ("srwx------", "vm"),
    "run/vm/VM/vsock.sock_1025": ("srw-------", "vm"),
    "run/vm/VM/vsock.sock_1025.lock": ("-rw-------", "us"),
    "state": ("drwxr-xr-x", "us"),
    "state/audit": ("drwx------", "us"),
    "state/audit/heads": ("-rw-------", "us"),
    "state/audit/key.pem": ("-rw-------", "us"),
    "state/audit/lock": ("-rw-------", "us"),
    "state/edge-authority.lock": ("-rw-------", "us"),
    "state/edge-authority.pem": ("-rw-------", "us"),
    "state/hypervisor.db": ("-rw-------", "us"),
    "state/hypervisor.db-shm": ("-rw-------", "us"),
    "state/hypervisor.db-wal": ("-rw-------", "us"),
    "state/hypervisor.lock": ("-rw-------", "us"),
    "state/images": ("drwxr-xr-x", "us"),
    "state/images/IMAGE": ("drwxr-xr-x", "us"),
    "state/images/IMAGE/initramfs": ("-rw-r--r--", "us"),
    "state/images/IMAGE/manifest.json": ("-rw-r--r--", "us"),
    "state/images/IMAGE/rootfs.erofs": ("-rw-r--r--", "us"),
    "state/images/IMAGE/vmlinuz": ("-rw-r--r--", "us"),
    "state/images/default-guest": ("-rw-r--r--", "us"),
    "state/templates": ("drwx------", "us"),
    "state/templates/ext4-projects-2147483648.raw": ("-rw-------", "us"),
    "state/uids": ("drwx------", "us"),
    "state/uids/600000": ("-rw-------", "us"),
    "state/vm": ("drwx--x--x", "us"),
    "state/vm/ID": ("drwx--x---", "us:vm"),
    "state/vm/ID/data.raw": ("-rw-------", "vm"),
    "state/vm/ID/handle.json": ("-rw-------", "us"),
}
"""What a node with one running VM and an edge has: mode and owner, with its group where that is another."""
PUBLIC = {"run", "state", *(path for path in TABLE if path.startswith("state/images"))}
"""What any uid may read: images, which all VMs share, and the names beside them."""
OF_VM = {path for path, (_, owner) in TABLE.items() if owner == "vm"}
OF_EDGE = {path for path, (mode, owner) in TABLE.items() if owner == "edge" or (owner == "us:edge" and "r" in mode[4:])}
ACCESS = """
import os, socket, stat, sys
for path in sys.stdin.read().split("\\n"):
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISSOCK(mode):
            socket.socket(socket.AF_UNIX).connect(path)
        elif stat.S_ISDIR(mode):
            os.listdir(path)
        else:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except PermissionError:
        continue
    except OSError:
        pass
    print(path)
"""
"""Says which files, directories and sockets the kernel lets it open, list or connect to."""
pytestmark = [pytest.mark.asyncio, pytest.mark.skipif(os.getuid() != 0, reason="uids of their own need root")]


def name_of(path: Path, home: Path) -> str:
    """Return a path as the table has it."""
    name = str(path.relative_to(home))
    for pattern, word in _NAMES:
        name = re.sub(pattern, word, name)
    return name


def walk(home: Path) -> list[Path]:
    """Return everything that is there, but what is about to get another name."""
    paths = [path for root in (home / "run", home / "state") for path in (root, *root.rglob("*"))]
    return [path for path in paths if path.suffix != ".new"]


def found(home: Path) -> dict[str, tuple[str, str]]:
    """Return mode and owner of everything, by its name."""
    words = {os.getuid(): "us", VM_UID: "vm", EDGE_UID: "edge"}
    things = {}
    for path in walk(home):
        status = path.lstat()
        owner, group = words.get(status.st_uid, "?"), words.get(status.st_gid, "?")
        things[name_of(path, home)] = (stat.filemode(status.st_mode), owner if owner == group else f"{owner}:{group}")
    return things


async def reached(home: Path, uid: int) -> set[str]:
    """Return what a process of a uid may open, list or connect to."""
    setpriv = process.tool("setpriv")
    assert setpriv is not None
    argv = [setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/python3", "-I", "-S", "-c", ACCESS]
    asked = await asyncio.create_subprocess_exec(
        *argv, cwd="/", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await asked.communicate("\n".join(map(str, walk(home))).encode())
    return {name_of(Path(line), home) for line in said.decode().splitlines()}


async def test_everything_a_node_makes_is_as_closed_as_it_can_be() -> None:
    """Nothing is there that the table has not, with another mode or owner; and the kernel lets nobody reach more.

    The node is started with a umask that closes nothing. The control: what is opened, or added, is found.
    """
    user = str(uuid.uuid4())
    mask = os.umask(0o022)
    try:
        async with stage() as it, up(it) as (_, edge), authenticator(edge), client(it, edge, user) as session:
            created = (await it.run("vm", "create", "--user", user, "--wait", "--json")).splitlines()
            vm = json.loads(created[-1])["vm"]["vm_id"]
            await it.run("container", "start", f"{vm}/sandbox-live", "--image", it.image, "--wait")
            await served(session)
            home = it.directory
            async with asyncio.timeout(60):
                # Console and access log are written about a second after what they tell of.
                while TABLE.keys() - found(home).keys():  # noqa: ASYNC110  # other processes write them
                    await asyncio.sleep(0.05)
            seen = found(home)
            assert {name: seen[name] for name in seen if TABLE.get(name) != seen[name]} == {}
            assert await reached(home, STRANGER) == PUBLIC
            assert await reached(home, VM_UID) == PUBLIC | OF_VM
            assert await reached(home, EDGE_UID) == PUBLIC | OF_EDGE
            (home / "run" / "operator.sock").chmod(0o666)
            (home / "state" / "stray").write_text("")
            changed, opened = found(home), {"run/operator.sock", "state/stray"}
            assert {name for name in changed if TABLE.get(name) != changed[name]} == opened
            assert await reached(home, STRANGER) == PUBLIC | opened
    finally:
        os.umask(mask)
