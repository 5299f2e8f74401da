"""The subjects of the suite: the simulator always, the emulator as a guest test, the real binary if it is named."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conformance import subjects
from conformance.payload import Payload, payload
from conformance.vm import Vm

_SUBJECTS = [
    pytest.param("simulator"),
    pytest.param("emulator", marks=pytest.mark.guest),
    *([pytest.param("real", marks=pytest.mark.guest)] if "CELLMESH_VMM" in os.environ else []),
]


@pytest.fixture(scope="session", params=_SUBJECTS)
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
    with _started(subject, guest_payload) as machine:
        yield machine


@pytest.fixture
def booted(vm: Vm) -> Vm:
    """Give a VM whose guest's ports are open."""
    vm.boot()
    return vm


@pytest.fixture(scope="module")
def lasting(subject: tuple[str, Path], guest_payload: Payload) -> Iterator[Vm]:
    """Give a VM whose guest's ports are open, one for a file of tests that leave it as they found it."""
    with _started(subject, guest_payload) as machine:
        machine.boot()
        yield machine


@contextmanager
def _started(subject: tuple[str, Path], guest_payload: Payload) -> Iterator[Vm]:
    with tempfile.TemporaryDirectory(prefix="vm-") as name:
        machine = Vm(subject[1], Path(name), guest_payload)
        try:
            machine.start()
            yield machine
        finally:
            machine.end()
