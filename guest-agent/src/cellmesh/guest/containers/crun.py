"""Running containers with crun: detached, so that their processes are our own children and no monitor stays behind."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cellmesh.guest import boot, kernel
from cellmesh.guest.containers import bundle, etc_files, guard, programs, rootfs
from cellmesh.guest.containers.cgroup import Cgroup
from cellmesh.guest.containers.datagrams import bound_datagrams
from cellmesh.guest.containers.discarded import Discarded
from cellmesh.guest.containers.image import BadImage, ImageConfig, read_image
from cellmesh.guest.containers.memory_watch import MemoryWatch
from cellmesh.guest.containers.model import ContainerSpec
from cellmesh.guest.containers.netlink import NetlinkBound
from cellmesh.guest.containers.runtime import Command, KeyFound, NoRoom, StartFailed, Stdio
from cellmesh.guest.errors import ungrouped
from cellmesh.guest.netns import NetworkNamespace
from cellmesh.guest.reaper import Process, Reaper

_CRUN = ("crun", "--root=/run/crun", "--cgroup-manager=cgroupfs")
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_SECCOMP_SOCKET = Path(boot.RUN, "seccomp.sock")  # In no container's mounts.
_START_TIMEOUT = 60.0
_MESSAGE_LIMIT = 512


class Crun:
    """Starts containers from image disks."""

    def __init__(self, reaper: Reaper, places: rootfs.Places, memory: MemoryWatch, discarded: Discarded) -> None:
        self._reaper = reaper
        self._discarded = discarded
        self._memory = memory
        self._places = places
        self._mounting = asyncio.Lock()
        self._netlink = NetlinkBound()
        self._networks: dict[str, NetworkNamespace] = {}

    async def start(self, name: str, slot: int, spec: ContainerSpec, stdio: Stdio) -> "CrunContainer":
        """Start a container; raises StartFailed, ImageMissing, KeyFound and NoRoom."""
        try:
            async with self._mounting:  # One disk may carry the image of several containers.
                mounted = await asyncio.to_thread(rootfs.mount_image, self._places, spec.image_serial)
            image = read_image(mounted)
            _refuse_keys(spec, image)
            argv = bundle.command_line(spec, image)
            if not argv:
                raise StartFailed("neither the specification nor the image names a program: set argv")
            programs.check_size(argv, bundle.environment(spec, image, name))
            return await self._start(name, slot, spec, image, stdio)
        except BadImage as error:
            raise StartFailed(f"{error}; import the image again") from error
        except OSError as error:
            raise StartFailed(f"the kernel refused: {error}") from error

    async def release_image(self, serial: str) -> None:
        """Let go of the disk with this serial; one that is not in use is fine. Raises ImageBusy and OSError."""
        async with self._mounting:
            await asyncio.to_thread(rootfs.release_image, self._places, serial)

    async def remove(self, name: str, *, persistent: bool) -> bool:
        """Put the files of a stopped container out of use; returns True if none of its files is left in use.

        Lasting directories stay unless `persistent`. Raises OSError.
        """
        empty = await asyncio.to_thread(rootfs.discard_container, self._places, name, persistent=persistent)
        self._discarded.wake()
        network = self._networks.pop(name, None)
        if network is not None:
            network.close()
        return empty

    async def _start(
        self, name: str, slot: int, spec: ContainerSpec, image: ImageConfig, stdio: Stdio
    ) -> "CrunContainer":
        root = await asyncio.to_thread(rootfs.mount_root, self._places, name, spec.image_serial, slot)
        self._discarded.wake()  # There may have been a layer over another image.
        lasting = [
            (rootfs.prepare_persistent(self._places, name, path, slot, image.user), path)
            for path in spec.persistent_paths
        ]
        home = self._places.run / name
        etc = await asyncio.to_thread(etc_files.prepare, home, root, name, bundle.first_id(slot), lasting)
        if name not in self._networks:
            self._networks[name] = NetworkNamespace.create()
        network = self._networks[name]
        cgroup = Cgroup(Path(boot.CONTAINER_CGROUPS, name))
        for missing in (*cgroup.create(spec.resources), *bound_datagrams(cgroup.path)):
            boot.say(f"container {name}: {missing}")
        self._memory.add(cgroup.path)
        self._netlink.listen(_SECCOMP_SOCKET)
        parts = bundle.Bundle(
            name=name,
            slot=slot,
            spec=spec,
            image=image,
            rootfs=root,
            persistent=lasting,
            etc_files=etc,
            network_namespace=network.path,
            cgroup=f"/containers/{name}",
            seccomp_listener=str(_SECCOMP_SOCKET),
        )
        (home / "config.json").write_text(json.dumps(bundle.oci_configuration(parts)))
        launch = _Launch(self._reaper, home, "container")
        try:
            process = await launch.run(["run", "--detach", f"--bundle={home}"], name, stdio)
        except (StartFailed, NoRoom):
            await _delete(self._reaper, name)  # What is left of it would keep the next one from starting.
            raise
        return CrunContainer(self._reaper, home, parts, process, cgroup, network)


class CrunContainer:
    """A container crun started."""

    def __init__(
        self,
        reaper: Reaper,
        home: Path,
        parts: bundle.Bundle,
        process: Process,
        cgroup: Cgroup,
        network: NetworkNamespace,
    ) -> None:
        self._reaper = reaper
        self._home = home
        self._parts = parts
        self._commands = 0
        self.process = process
        self.cgroup = cgroup
        self.network = network
        self.stop_signal = parts.image.stop_signal

    async def execute(self, command: Command, stdio: Stdio) -> Process:
        """Run a command in it; raises StartFailed."""
        try:
            launch = self._describe(command)
        except OSError as error:
            raise StartFailed(f"its description cannot be written: {error}") from error
        flags = ["exec", "--detach", f"--process={launch.description}"]
        with self._failures_explained(command):
            return await launch.run(flags, self._parts.name, stdio)

    async def execute_on_terminal(self, command: Command, rows: int, columns: int) -> tuple[Process, int]:
        """Run a command on a terminal of its own; returns it and the terminal's other end. Raises StartFailed."""
        # crun sets the size beside the process it has let go already: until crun is done, no program may start to look.
        try:
            with self._programs_held(), self._failures_explained(command):
                launch = self._describe(command, {"height": rows, "width": columns})
                return await self._launch_on_terminal(launch)
        except OSError as error:
            raise StartFailed(f"the kernel refused: {error}") from error

    @contextlib.contextmanager
    def _programs_held(self) -> Iterator[None]:
        places = (self._parts.rootfs, *(source for source, _ in self._parts.persistent))
        gate = kernel.hold_programs(str(place) for place in places)
        try:
            yield
        finally:
            os.close(gate)

    @contextlib.contextmanager
    def _failures_explained(self, command: Command) -> Iterator[None]:
        try:
            yield
        except StartFailed as error:
            parts = self._parts
            reason = programs.explain_failure(
                self.process.pid,
                bundle.first_id(parts.slot),
                command.argv,
                dict(self._variables(command)),
                self._working_dir(command),
                parts.image.user,
            )
            if reason is None:
                raise
            raise StartFailed(reason[1], exit_code=reason[0]) from error

    async def _launch_on_terminal(self, launch: "_Launch") -> tuple[Process, int]:
        path = launch.description.with_suffix(".tty")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(0)
            flags = ["exec", "--detach", "--tty", f"--console-socket={path}", f"--process={launch.description}"]
            try:
                with ungrouped(StartFailed):
                    async with asyncio.TaskGroup() as group:
                        terminal = group.create_task(_receive_terminal(listener))
                        try:
                            process = await launch.run(flags, self._parts.name, None)
                        except BaseException:
                            if not terminal.cancel() and not terminal.cancelled() and terminal.exception() is None:
                                os.close(terminal.result())  # It was handed over before crun failed.
                            raise
            finally:
                path.unlink(missing_ok=True)
        return process, terminal.result()

    async def remove(self) -> None:
        """Kill what is left of it and let go of all it used, except its files."""
        self.cgroup.kill()
        await asyncio.shield(self.process.exited)
        await _delete(self._reaper, self._parts.name)
        await asyncio.to_thread(rootfs.unmount_root, rootfs.Places(run=self._home.parent), self._parts.name)
        etc_files.remove(self._home)
        with contextlib.suppress(OSError):
            self.cgroup.remove()  # crun has removed it already, unless it could not.

    def _variables(self, command: Command, *, tty: bool = False) -> tuple[tuple[str, str], ...]:
        spec, image = self._parts.spec, self._parts.image
        variables = dict(bundle.environment(spec, image, self._parts.name)) | dict(command.environment)
        if tty:
            variables.setdefault("TERM", "xterm")
        return tuple(variables.items())

    def _working_dir(self, command: Command) -> str:
        return command.working_dir or self._parts.spec.working_dir or self._parts.image.working_dir

    def _describe(self, command: Command, console: Mapping[str, int] | None = None) -> "_Launch":
        variables = self._variables(command, tty=console is not None)
        programs.check_size(command.argv, variables)
        self._commands += 1
        launch = _Launch(self._reaper, self._home, f"exec-{self._commands}")
        description = bundle.process(
            argv=command.argv,
            variables=variables,
            working_dir=self._working_dir(command),
            user=self._parts.image.user,
            tty=console is not None,
        )
        if console:
            description["consoleSize"] = console
        launch.description.write_text(json.dumps(description))
        return launch


class _Launch:
    """One run of crun that leaves a process behind, with the files it needs."""

    def __init__(self, reaper: Reaper, home: Path, label: str) -> None:
        self._reaper = reaper
        self.description = home / f"{label}.json"
        self._pid_file = home / f"{label}.pid"
        self._log = home / f"{label}.log"

    async def run(self, arguments: Sequence[str], name: str, stdio: Stdio | None) -> Process:
        """Run crun, with its own /dev/null where a terminal takes its place; returns the process left behind.

        Raises StartFailed.
        """
        argv = [*_CRUN, f"--log={self._log}", arguments[0], f"--pid-file={self._pid_file}", *arguments[1:], name]
        try:
            with self._reaper.adopting():
                descriptors = (stdio.stdin, stdio.stdout, stdio.stderr) if stdio else (None, None, None)
                with _without_protection():
                    crun = self._reaper.spawn(argv, *descriptors)
                code = await _finish(crun)
                if code != 0:
                    raise _failure(self._reason(code))
                return self._reaper.adopt(int(self._pid_file.read_text()))
        except (OSError, ValueError) as error:
            raise StartFailed(f"crun left no process behind: {error}") from error
        finally:
            for file in (self.description, self._pid_file, self._log):
                file.unlink(missing_ok=True)

    def _reason(self, code: int) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1][-_MESSAGE_LIMIT:]
        return f"crun ended with code {code} and said nothing"


def _failure(reason: str) -> StartFailed | NoRoom:
    full = any(os.strerror(number) in reason for number in (errno.ENOSPC, errno.EDQUOT))
    return NoRoom(rootfs.NO_ROOM) if full else StartFailed(reason)


@contextlib.contextmanager
def _without_protection() -> Iterator[None]:
    # The kernel spares the agent when memory runs out. A command would inherit that: `crun exec` ignores oomScoreAdj.
    protection = _OOM_SCORE.read_text()
    _OOM_SCORE.write_text("0")
    try:
        yield
    finally:
        _OOM_SCORE.write_text(protection)


async def _delete(reaper: Reaper, name: str) -> None:
    deletion = reaper.spawn([*_CRUN, "delete", "--force", name])
    await asyncio.shield(deletion.exited)


async def _finish(crun: Process) -> int:
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            return await asyncio.shield(crun.exited)
    except TimeoutError:
        crun.send_signal(signal.SIGKILL)
        raise StartFailed(
            f"crun was not done within {_START_TIMEOUT:.0f} s; try again when the VM is less busy"
        ) from None


async def _receive_terminal(listener: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            connection, _ = await loop.sock_accept(listener)
            with connection:
                # crun connects a moment before it sends; in a busy guest nobody else is to wait for it meanwhile.
                await _readable(connection)
                _, descriptors, _, _ = socket.recv_fds(connection, 256, 1)
    except TimeoutError:
        raise StartFailed(
            f"crun gave no terminal within {_START_TIMEOUT:.0f} s; try again when the VM is less busy"
        ) from None
    if not descriptors:
        raise StartFailed("crun ended before it gave the command its terminal")
    return descriptors[0]


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, ready.set_result, None)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _refuse_keys(spec: ContainerSpec, image: ImageConfig) -> None:
    found = guard.find_provider_key((*spec.environment, *image.environment))
    if found is not None:
        raise KeyFound(
            f"the variable {found} looks like a provider key: remove it, the gateway adds keys outside the VM"
        )
    if guard.find_key_in_arguments(bundle.command_line(spec, image)):
        raise KeyFound("an argument looks like a provider key: remove it, the gateway adds keys outside the VM")
