"""The subjects of the suite: the simulator always, the emulator as a guest test, the real binary if it is named."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance import subjects
from conformance.payload import Payload, payload
from conformance.vm import Vm

_MARKS = {
    "simulator": (),
    "emulator": (pytest.mark.guest,),
    "real": (
        pytest.mark.guest,
        pytest.mark.skipif("CELLMESH_VMM" not in os.environ, reason="CELLMESH_VMM names no cloud-hypervisor"),
    ),
}


@pytest.fixture(scope="session", params=[pytest.param(name, marks=_MARKS[name]) for name in subjects.NAMES])
def subject(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """Give the name of a subject and its binary."""
    name: str = request.param
    directory = Path(tempfile.mkdtemp(prefix="conformance-"))
    directory.chmod(0o755)
    with subjects.binary(name, directory) as path:
        yield name, path
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def guest_payload() -> Payload:
    """Give the conformance guest, built when it is first needed."""
    return payload()


@pytest.fixture
def vm(subject: tuple[str, Path], guest_payload: Payload) -> Iterator[Vm]:
    """Give a VM whose process runs and that is not created yet."""
    with tempfile.TemporaryDirectory(prefix="vm-") as name:
        machine = Vm(subject[1], Path(name), guest_payload)
        try:
            machine.start()
            yield machine
        finally:
            machine.end()


@pytest.fixture
def booted(vm: Vm) -> Vm:
    """Give a VM whose guest's ports are open."""
    vm.boot()
    return vm
