"""The ways a VM ends: the rungs of the stop ladder, the guest's own end, and kill -9."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from conformance.client import VsockStream, eventually
from conformance.vm import COMMAND_PORT, READY_PORT, Vm

ENDED = ["vm.shutdown", "vm.deleted", "vmm.shutdown"]


def test_shutdown_leaves_the_process(booted: Vm) -> None:
    """vm.shutdown ends the guest at once, not the process, and the same VM boots again."""
    boot_id = booted.command("boot-id")
    assert booted.api.put("vm.shutdown").status == 204
    assert booted.api.get("vm.info").value["state"] == "Created"
    assert not booted.vsock.exists()
    with booted.listening(READY_PORT) as ready:
        assert booted.api.put("vm.boot").status == 204
        ready.accept()[0].close()
    assert booted.command("boot-id") != boot_id


def test_delete_of_a_running_vm_shuts_it_down(booted: Vm) -> None:
    """vm.delete takes the guest and the configuration with it."""
    assert booted.api.put("vm.delete").status == 204
    assert booted.api.get("vm.info").status == 404
    assert not booted.vsock.exists()


def test_vmm_shutdown_exits(booted: Vm) -> None:
    """vmm.shutdown ends everything and leaves no sockets."""
    assert booted.api.put("vmm.shutdown").status == 200
    assert booted.wait_exit() == 0
    assert not booted.api.path.exists()
    assert not booted.vsock.exists()
    assert booted.events() == ["vmm.starting", "vm.booting", "vm.booted", *ENDED]


def test_power_button_lets_the_guest_end_the_process(booted: Vm) -> None:
    """The button powers the guest off, and with it goes the process."""
    assert booted.api.put("vm.power-button").status == 204
    assert booted.wait_exit() == 0
    assert booted.events()[-3:] == ENDED


def test_guest_power_off_ends_the_process(booted: Vm) -> None:
    """A guest that powers itself off ends its process with status 0."""
    booted.command("poweroff")
    assert booted.wait_exit() == 0
    assert not booted.api.path.exists()


@pytest.mark.parametrize("how", ["reboot", "panic"])
def test_guest_reset_is_another_boot(booted: Vm, how: str) -> None:
    """A reset, or a panic with panic=-1, boots anew in the same process: connections end, the boot id is new."""
    boot_id = booted.command("boot-id")
    with booted.listening(READY_PORT) as ready, VsockStream.connect(booted.vsock, COMMAND_PORT) as held:
        booted.command(how)
        assert held.read_all() == b""
        ready.accept()[0].close()
    assert booted.command("boot-id") != boot_id
    assert booted.process is not None
    assert booted.process.poll() is None
    # The guest's ports may be open before the process has noted that it runs.
    boots = ["vmm.starting", "vm.booting", "vm.booted", "vm.rebooting", "vm.rebooted"]
    eventually(lambda: len(booted.events()) >= len(boots))
    assert booted.events() == boots


def test_sigterm_ends_in_order(booted: Vm) -> None:
    """SIGTERM shuts the VM down, removes the sockets and exits with 0."""
    assert booted.process is not None
    booted.process.send_signal(signal.SIGTERM)
    assert booted.wait_exit() == 0
    assert not booted.vsock.exists()
    assert booted.events()[-3:] == ENDED


def test_kill_takes_everything_and_leaves_stale_sockets(booted: Vm) -> None:
    """A kill ends the guest, every child process and every connection; the files stay and do not stop a restart."""
    assert booted.process is not None
    children = psutil.Process(booted.process.pid).children(recursive=True)
    with VsockStream.connect(booted.vsock, COMMAND_PORT) as held:
        booted.process.kill()
        assert booted.wait_exit() == -signal.SIGKILL
        assert held.read_all() == b""
    eventually(lambda: not any(_lives(child) for child in children))
    eventually(lambda: _refused(booted.api.path))
    assert booted.vsock.exists()
    booted.end()
    booted.start()
    booted.vsock.unlink()
    booted.boot()
    assert booted.command("boot-id")


def test_socket_in_use_is_not_taken(vm: Vm) -> None:
    """A second process on the same API socket gives up; the first goes on."""
    line: list[str | Path] = [vm.binary, "--api-socket", f"path={vm.api.path}"]
    done = subprocess.run(line, capture_output=True, text=True, env={}, check=False)
    assert done.returncode == 1
    assert "already in use by another running instance" in done.stderr
    assert vm.process is not None
    assert vm.api.get("vmm.ping").value["pid"] == vm.process.pid


def test_unknown_argument_is_refused(vm: Vm) -> None:
    """The command line is not guessed at."""
    done = subprocess.run([vm.binary, "--nonsense"], capture_output=True, text=True, env={}, check=False)
    assert done.returncode == 2
    assert "unexpected argument '--nonsense' found" in done.stderr


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _refused(path: Path) -> bool:
    try:
        VsockStream(path).end.close()
    except ConnectionRefusedError:
        return True
    return False
