"""The sample service as a process, with its contract generated for the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from grpc_tools import protoc

from buf.validate import validate_pb2
from cellmesh.api.common.v1 import page_pb2
from cellmesh.api.options.v1 import method_pb2
from support import contracts

_SAMPLE = contracts.ROOT / "tests" / "sample"
_READY = b"notes.ready"


def generate(directory: Path) -> None:
    """Write the Python modules of the sample's contract into a directory, and let them be imported from there."""
    known = directory / "known.binpb"
    files: dict[str, FileDescriptor] = {}
    for module in (validate_pb2, page_pb2, method_pb2):
        _collect(module.DESCRIPTOR, files)
    described = (descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb) for file in files.values())
    known.write_bytes(descriptor_pb2.FileDescriptorSet(file=described).SerializeToString())
    out = (f"--python_out={directory}", f"--grpc_python_out={directory}")
    assert protoc.main(["protoc", f"-I{_SAMPLE}", f"--descriptor_set_in={known}", *out, "notes.proto"]) == 0
    sys.path.append(str(directory))


def _collect(file: FileDescriptor, files: dict[str, FileDescriptor]) -> None:
    """Add a file after those that it imports."""
    for imported in file.dependencies:
        _collect(imported, files)
    files.setdefault(file.name, file)


@contextmanager
def sample_service(directory: Path, generated: Path, database: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the service, ready, with its socket and state in a directory; kill it at the end."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{contracts.ROOT / 'tests'}:{generated}",
        "CELLMESH_RUN_DIR": str(directory),
        "CELLMESH_STATE_DIR": str(directory),
        "CELLMESH_DATABASE": database,
    }
    log = directory / "log"
    with log.open("ab") as output:
        begun = log.stat().st_size
        command = [sys.executable, "-m", "sample.service"]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        while _READY not in log.read_bytes()[begun:]:
            assert process.poll() is None, log.read_text()
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        yield process
    finally:
        process.kill()
        process.wait()
