"""What a container finds around it in a real guest, also in images that put odd things in the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from cellmesh.image import ContainerImage, GuestImage
from cellmesh.mesh.errors import MeshError
from support import images, oci
from support.cell import Cell, empty_cell
from support.commands import ExecStream

pytestmark = [pytest.mark.guest, pytest.mark.asyncio(loop_scope="module")]
FOREVER = ("sleep", "86400")
PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/app:/bin/sh\nzed:x:77:88::/:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1000:\nvideo:x:44:app\n"
STOPPING = "trap 'exit 11' TERM; trap 'exit 12' QUIT; echo ready; while :; do sleep 0.1; done"
ODD = {
    "plain": (
        oci.tar([oci.entry("etc/passwd", PASSWD), oci.entry("etc/group", GROUP), oci.entry("etc/hosts", b"")]),
        {
            "User": "app",
            "StopSignal": "SIGQUIT",
            "Env": ["PATH=/usr/bin:/bin", *(f"V{n}=" + "x" * 100_000 for n in range(4))],
        },
    ),
    "linked": (
        oci.tar(
            [
                oci.directory("nix"),
                oci.entry("nix/passwd", PASSWD),
                oci.link("etc/passwd", "/nix/passwd"),
                oci.link("etc/hosts", "../../../proc/self/root/nix/nowhere"),
                oci.directory("etc/hostname"),
                oci.link("etc/resolv.conf", "/etc/passwd"),
                oci.entry("dev/ptmx", b"mine"),
                oci.link("dev/console", "/etc/passwd"),
                oci.link("dev/pts", "/tmp"),
                oci.link("work", "../../../../../etc"),
            ]
        ),
        {"User": "zed", "WorkingDir": "/work"},
    ),
    "etcless": (oci.tar([oci.entry(".wh.etc"), oci.link("etc", "/nowhere")]), {"User": "0:0"}),
    "rooted": (oci.tar([oci.entry("etc/hosts", b"")]), {"User": "0:0"}),
    "tableless": (oci.tar([oci.directory("etc/passwd")]), {"User": "app"}),
}
LOOKUPS = """
import json, socket
told = {}
for name in ("localhost", socket.gethostname()):
    told[name] = sorted({entry[4][0] for entry in socket.getaddrinfo(name, 80)})
try:
    socket.getaddrinfo("example.org", 80)
except OSError as error:
    told["elsewhere"] = type(error).__name__
print(json.dumps(told))
"""


@pytest.fixture(scope="session")
def odd() -> dict[str, ContainerImage]:
    """Give the example `live` with other things in it."""
    return images.odd_images(ODD)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cell(
    guest_image: GuestImage, example_images: dict[str, ContainerImage], odd: dict[str, ContainerImage]
) -> AsyncIterator[Cell]:
    """Give a cell without containers that has the odd images."""
    others = {name: image for name, image in odd.items() if name != "rooted"}
    async with empty_cell(guest_image, {**example_images, **others}, odd["rooted"]) as it:
        yield it


async def test_names_groups_and_variables_are_there(cell: Cell) -> None:
    """Prove what a common program needs: its names, its groups, its variables, and what it sizes itself by."""
    async with cell.running("found", *FOREVER, image="plain") as box:
        told = json.loads(await box.python(LOOKUPS))
        # A C library without /etc/host.conf takes the first line of a name alone.
        assert "127.0.0.1" in told["localhost"]
        assert "127.0.0.1" in told["found"]
        assert told["elsewhere"] == "gaierror"
        assert "::1\tlocalhost" in await box.shell("cat /etc/hosts")
        assert await box.shell("grep -c ^00000000000000000000000000000001 /proc/net/if_inet6") == "1"
        assert await box.shell("cat /etc/hostname; grep -c ^nameserver /etc/resolv.conf || true") == "found\n0"
        for pid in ("1", "self"):
            assert await box.shell(f"grep ^Groups: /proc/{pid}/status") == "Groups:\t44"
        assert await box.shell("tr '\\0' '\\n' </proc/1/environ | grep -c ^V[0-9]=x") == "4"
        assert await box.shell("cat /sys/devices/system/cpu/online")
        assert await box.shell("cat /sys/fs/cgroup/cgroup.controllers")
        assert (await box.run("sh", "-c", "echo x > /sys/x || mkdir /sys/y")).exit_code != 0


async def test_what_the_containers_root_writes_to_its_files_is_bounded_and_its_own(cell: Cell) -> None:
    """Prove that root may add a name, fills no more than its own small file system, and starts afresh."""
    async with cell.running("writer", *FOREVER, image="root") as box:
        await box.shell("echo 127.0.0.1 other >> /etc/hosts && grep -q other /etc/hosts")
        assert (await box.run("sh", "-c", "df -k /etc/hosts | tail -1 | grep -q ' 64 '")).exit_code == 0


async def test_an_image_full_of_links_starts_and_leads_nowhere(cell: Cell) -> None:
    """Prove that links, directories and devices in the way of the agent's files neither lead out nor keep it down."""
    async with cell.running("linked", *FOREVER, image="linked") as box:
        assert await box.shell("id -u; pwd -P") == "77\n/etc"
        assert "localhost linked" in await box.shell("cat /etc/hosts")
        assert "No" not in await box.shell("head -1 /etc/passwd")
        assert await box.shell("grep -c timeout:1 /etc/resolv.conf") == "1"
        assert await box.shell("test -c /dev/ptmx && test -c /dev/null && test -d /dev/pts && echo well") == "well"
        ended = await box.run("tty", tty=True)
        assert ended.stdout.startswith(b"/dev/pts/")
    async with cell.running("etcless", *FOREVER, image="etcless") as box:
        assert await box.shell("id -u") == "0"


async def test_a_user_table_that_is_no_file_keeps_its_container_from_starting_and_no_other(cell: Cell) -> None:
    """Prove that the agent says what is there in place of the table, and goes on."""
    with pytest.raises(MeshError, match="a directory, not a regular file") as error:
        await cell.start("tableless", *FOREVER, image="tableless")
    assert error.value.reason == "CONTAINER_START_FAILED"
    async with cell.running("after", "true"):
        pass


async def test_a_stop_sends_the_images_signal(cell: Cell) -> None:
    """Prove that STOPSIGNAL of the image comes, and not SIGTERM."""
    box = await cell.start("stopped", "sh", "-c", STOPPING, image="plain", stop_grace=timedelta(seconds=100))
    await box.shell("while ! tr '\\0' ' ' </proc/1/cmdline | grep -q trap; do sleep 0.1; done; sleep 1")
    assert (await cell.stop("stopped")).exit_code == 12


@pytest.mark.parametrize(
    ("program", "code"), [("/nope", "127"), ("nope", "127"), ("/etc/passwd", "126"), ("/etc", "126"), ("true/x", "127")]
)
@pytest.mark.parametrize("tty", [False, True])
async def test_a_program_that_cannot_run_is_told_by_its_code(cell: Cell, program: str, code: str, tty: bool) -> None:
    """Prove that what is not there and what is not executable are told apart, as by a shell."""
    box = await cell.start("codes", *FOREVER, image="plain")
    async with ExecStream(cell.it, box.opening(program, tty=tty)) as stream:
        with pytest.raises(MeshError) as error:
            await stream.read()
    assert (error.value.reason, error.value.metadata) == ("EXEC_START_FAILED", {"exit_code": code})
