"""The state machine behind the API: what v53 does with each action in each state.

The oddities are the real one's: `vm.delete` of nothing succeeds, `vm.info` says Created again after `vm.shutdown`, and
a machine whose boot failed stays until it is shut down or deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from chv53 import answers
from chv53.answers import Answer, ApiError
from chv53.config import (
    BadConfigError,
    Json,
    memory_bytes,
    parse_disk,
    parse_vm,
    why_invalid,
)
from chv53.events import EventLog
from chv53.machine import Exit, Machine, MachineError
from chv53.rest import Request

_ROOT = "/api/v1/"


class Vmm:
    """One cloud-hypervisor process: at most one configuration and at most one machine."""

    def __init__(
        self, *, make_machine: Callable[[Json], Machine], events: EventLog, build_version: str, pid: int | None = None
    ) -> None:
        self._make_machine = make_machine
        self._events = events
        self._build_version = build_version
        self._pid = os.getpid() if pid is None else pid
        self._config: Json | None = None
        self._machine: Machine | None = None
        self._state = "Created"
        self._devices = 0
        self._turn = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self.exited = asyncio.Event()
        self._routes: dict[tuple[str, str], Callable[[bytes], Awaitable[Answer]]] = {
            ("GET", "vmm.ping"): self._ping,
            ("GET", "vm.info"): self._info,
            ("GET", "vm.counters"): self._counters,
            ("PUT", "vm.create"): self._create,
            ("PUT", "vm.boot"): self._without_body(self._boot),
            ("PUT", "vm.shutdown"): self._without_body(self._shutdown),
            ("PUT", "vm.delete"): self._without_body(self._delete),
            ("PUT", "vm.reboot"): self._without_body(self._reboot),
            ("PUT", "vm.pause"): self._without_body(self._pause),
            ("PUT", "vm.resume"): self._without_body(self._resume),
            ("PUT", "vm.power-button"): self._without_body(self._power_button),
            ("PUT", "vm.add-disk"): self._add_disk,
            ("PUT", "vm.remove-device"): self._remove_device,
            ("PUT", "vmm.shutdown"): self._vmm_shutdown,
        }
        events.write("vmm", "starting")

    async def handle(self, request: Request) -> Answer:
        """Do what one request asks; requests are done one after another, as the real one's loop does."""
        name = request.path.removeprefix(_ROOT)
        known = {path for _method, path in self._routes}
        if not request.path.startswith(_ROOT) or name not in known:
            return answers.NOT_FOUND
        if request.method == "PATCH":
            return answers.EMPTY_BAD_REQUEST
        route = self._routes.get((request.method, name))
        if route is None:
            return answers.BAD_REQUEST
        async with self._turn:
            try:
                return await route(request.body)
            except ApiError as error:
                return error.answer
            except MachineError as error:
                return answers.errors(500, "Error from API", *error.causes)

    async def stop(self) -> None:
        """End as on SIGTERM: the machine is shut down, the configuration forgotten."""
        async with self._turn:
            await self._forget_vm()
            self._events.write("vmm", "shutdown")
            self.exited.set()

    async def abandon(self) -> None:
        """Forget the machine as a killed process does: nothing is shut down, nothing written."""
        await self._end_watch()

    def _without_body(self, action: Callable[[], Awaitable[None]]) -> Callable[[bytes], Awaitable[Answer]]:
        async def route(body: bytes) -> Answer:
            if body:
                return answers.BAD_REQUEST
            await action()
            return answers.NO_CONTENT

        return route

    async def _ping(self, _body: bytes) -> Answer:
        return answers.ok(
            {"build_version": self._build_version, "version": "53.0.0", "pid": self._pid, "features": ["kvm"]}
        )

    async def _info(self, _body: bytes) -> Answer:
        if self._config is None:
            raise ApiError("The VM info is not available", answers.NOT_CREATED)
        info = {"config": self._config, "state": self._state, "memory_actual_size": memory_bytes(self._config)}
        if self._machine is not None:
            info["device_tree"] = _device_tree(self._machine.devices)
        return answers.ok(info)

    async def _counters(self, _body: bytes) -> Answer:
        return answers.ok(self._running("The VM info is not available").counters())

    async def _create(self, body: bytes) -> Answer:
        if not body:
            return answers.EMPTY_BAD_REQUEST
        try:
            config = parse_vm(_decode(body))
        except BadConfigError as error:
            return answers.errors(400, "Failed to deserialize JSON", str(error))
        if self._config is not None:
            raise ApiError("The VM could not be created", answers.ALREADY_CREATED)
        self._config, self._state, self._devices = config, "Created", 0
        return answers.NO_CONTENT

    async def _boot(self) -> None:
        failed = "The VM could not boot"
        if self._machine is not None:
            raise ApiError(failed, answers.ALREADY_CREATED)
        self._events.write("vm", "booting")
        if self._config is None:
            raise ApiError(failed, answers.MISSING_CONFIG)
        problem = why_invalid(self._config)
        if problem is not None:
            raise ApiError(failed, *problem)
        self._name_devices(self._config)
        await self._start(failed)
        self._events.write("vm", "booted")

    async def _start(self, failed: str) -> None:
        assert self._config is not None
        machine = self._make_machine(self._config)
        try:
            await machine.boot()
        except MachineError as error:
            if error.partial:
                self._machine = machine
            raise ApiError(failed, *error.causes) from error
        self._machine, self._state = machine, "Running"
        self._watcher = asyncio.create_task(self._watch(machine))

    def _name_devices(self, config: Json) -> None:
        named = [*config.get("disks", []), *([config["vsock"]] if "vsock" in config else [])]
        for device in named:
            if "id" not in device:
                device["id"] = f"_{'vsock' if 'cid' in device else 'disk'}{self._devices}"
                self._devices += 1

    async def _watch(self, machine: Machine) -> None:
        """Follow a machine that ends on its own: a reset boots it anew, a power-off ends the process."""
        reason = await machine.wait()
        async with self._turn:
            if self._machine is not machine:
                return
            self._watcher = None
            if reason is Exit.RESET:
                with contextlib.suppress(ApiError):  # what cannot boot again ends the process, below
                    await self._reboot()
                    return
            await self._forget_vm()
            self._events.write("vmm", "shutdown")
            self.exited.set()

    async def _shutdown(self) -> None:
        machine = self._running("The VM could not shutdown")
        self._machine, self._state = None, "Created"
        await self._end_watch()
        await machine.shutdown()
        self._events.write("vm", "shutdown")

    async def _end_watch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None

    async def _delete(self) -> None:
        await self._forget_vm()

    async def _forget_vm(self) -> None:
        if self._config is None:
            return
        if self._machine is not None:
            await self._shutdown()
        self._config = None
        self._events.write("vm", "deleted")

    async def _reboot(self) -> None:
        self._events.write("vm", "rebooting")
        machine = self._machine
        if machine is None:
            raise ApiError("The VM could not reboot", answers.NOT_CREATED)
        self._machine, self._state = None, "Created"
        await self._end_watch()
        await machine.shutdown()
        await self._start("The VM could not reboot")
        self._events.write("vm", "rebooted")

    async def _pause(self) -> None:
        machine = self._running("The VM could not be paused")
        self._events.write("vm", "pausing")
        if self._state == "Paused":
            raise ApiError("The VM could not be paused", *_same_state("pause", "Paused"))
        await machine.pause()
        self._state = "Paused"
        self._events.write("vm", "paused")

    async def _resume(self) -> None:
        machine = self._running("The VM could not resume")
        self._events.write("vm", "resuming")
        if self._state == "Running":
            raise ApiError("The VM could not resume", *_same_state("resume", "Running"))
        await machine.resume()
        self._state = "Running"
        self._events.write("vm", "resumed")

    async def _power_button(self) -> None:
        await self._running("Error triggering power button").power_button()

    async def _add_disk(self, body: bytes) -> Answer:
        failed = "The disk could not be added to the VM"
        try:
            disk = parse_disk(_decode(body))
        except BadConfigError as error:
            return answers.errors(400, "Failed to deserialize JSON", str(error))
        if self._config is None:
            raise ApiError(failed, answers.NOT_CREATED)
        disks = self._config.setdefault("disks", [])
        problem = why_invalid({**self._config, "disks": [*disks, disk]})
        if problem is not None:
            raise ApiError(failed, *problem)
        if self._machine is None:
            disks.append(disk)
            return answers.NO_CONTENT
        self._name_devices({"disks": [disk]})
        try:
            slot = await self._machine.add_disk(disk)
        except MachineError as error:
            raise ApiError(failed, *error.causes) from error
        disks.append(disk)
        return answers.ok({"id": disk["id"], "bdf": f"0000:00:{slot:02x}.0"})

    async def _remove_device(self, body: bytes) -> Answer:
        failed = "The device could not be removed from the VM"
        try:
            given = _decode(body)
        except BadConfigError as error:
            return answers.errors(400, "Failed to deserialize JSON", str(error))
        if self._config is None:
            raise ApiError(failed, answers.NOT_CREATED)
        device = given.get("id")
        if not isinstance(device, str):
            return answers.errors(400, "Failed to deserialize JSON", "missing field `id`")
        disks = self._config.get("disks", [])
        # A running machine still knows a device that the guest has not ejected; the configuration has dropped it.
        configured = (disk.get("id") for disk in disks)
        if device not in (configured if self._machine is None else self._machine.devices):
            raise ApiError(failed, *_unknown_device(device, running=self._machine is not None))
        if self._machine is not None:
            await self._machine.remove_device(device)
        self._config["disks"] = [disk for disk in disks if disk.get("id") != device]
        return answers.NO_CONTENT

    async def _vmm_shutdown(self, _body: bytes) -> Answer:
        await self._forget_vm()
        self._events.write("vmm", "shutdown")
        self.exited.set()
        return answers.EMPTY_OK

    def _running(self, failed: str) -> Machine:
        if self._machine is None:
            raise ApiError(failed, answers.NOT_RUNNING)
        return self._machine


def _same_state(action: str, state: str) -> tuple[str, ...]:
    return (
        f"Cannot {action} VM",
        f"Failed to {action} migratable component",
        f"Invalid transition: InvalidStateTransition({state}, {state})",
    )


def _device_tree(devices: Iterable[str]) -> Json:
    tree: Json = {}
    for device in devices:
        above = f"_virtio-pci-{device}"
        tree[above] = {"id": above, "resources": [], "children": [device]}
        tree[device] = {"id": device, "resources": [], "children": []}
    return tree


def _unknown_device(device: str, *, running: bool) -> tuple[str, ...]:
    if running:
        return "Error from device manager", f"Failed to find device corresponding to the given identifier: {device}"
    return (f'No device with id "{device}" to remove',)


def _decode(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise BadConfigError(str(error)) from error
    if not isinstance(value, dict):
        raise BadConfigError("invalid type, expected a map")
    return value
