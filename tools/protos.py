"""Generate and check the contracts: the one place that runs protoc and buf.

python tools/protos.py gen        write gen/ from protos/
python tools/protos.py check      gen/ is fresh byte for byte, lint, format, nothing breaks the accepted surface
python tools/protos.py accept     take today's contracts as the accepted surface (protos/contracts.txtpb)
python tools/protos.py fmt        rewrite protos/ as `buf format` has it
"""

from __future__ import annotations

import filecmp
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    struct_pb2,
    text_format,
    timestamp_pb2,
    wrappers_pb2,
)
from google.rpc import status_pb2  # type: ignore[import-untyped]  # ships no types
from grpc_tools import protoc  # type: ignore[import-untyped]  # ships no types

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"
ACCEPTED = PROTOS / "contracts.txtpb"
OURS = "cellmesh/"
BUF_VALIDATE = "buf/validate/validate.proto"


def main(argv: list[str]) -> int:
    """Run one verb; return the exit code."""
    verbs = {"gen": gen, "check": check, "accept": accept, "fmt": fmt}
    if len(argv) != 1 or argv[0] not in verbs:
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        return verbs[argv[0]](Path(scratch))


def gen(scratch: Path) -> int:
    """Write gen/ and drop generated files whose contract is gone."""
    _generate(GEN, scratch)
    fresh = scratch / "fresh"
    _generate(fresh, scratch)
    for path in set(_generated_files(GEN)) - set(_generated_files(fresh)):
        (GEN / path).unlink()
    return 0


def check(scratch: Path) -> int:
    """Name every fault, then answer for all of them at once."""
    fresh = scratch / "fresh"
    _generate(fresh, scratch)
    expected, actual = _generated_files(fresh), _generated_files(GEN)
    stale = sorted(set(expected) ^ set(actual))
    _, differ, _ = filecmp.cmpfiles(fresh, GEN, sorted(set(expected) & set(actual)), shallow=False)
    faults = [f"gen/{path} is not what `make gen` writes" for path in stale + differ]

    image = scratch / "image.binpb"
    image.write_bytes(_image(scratch).SerializeToString())
    for what, command in {
        "buf lint": ["buf", "lint", str(image), "--config", str(PROTOS / "buf.yaml")],
        "buf format": ["buf", "format", str(PROTOS), "--diff", "--exit-code"],
        "buf breaking": _breaking(image, scratch),
    }.items():
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            faults.append(f"{what}:\n{result.stdout}{result.stderr}")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"contracts: {len(expected)} generated files, {len(faults)} faults")
    return 1 if faults else 0


def accept(scratch: Path) -> int:
    """Store our own descriptors as text; imports come back from the wheels when they are compared."""
    ours = descriptor_pb2.FileDescriptorSet()
    for file in _image(scratch).file:
        if file.name.startswith(OURS):
            file.ClearField("source_code_info")
            ours.file.append(file)
    ACCEPTED.write_text(text_format.MessageToString(ours))
    return 0


def fmt(_: Path) -> int:
    """Rewrite the contracts in place."""
    return subprocess.run(["buf", "format", str(PROTOS), "-w"], check=False).returncode


def _breaking(image: Path, scratch: Path) -> list[str]:
    """Compare with the accepted surface; buf refuses an image whose imports are missing, so they are put back."""
    against = _image(scratch)
    accepted = text_format.Parse(
        ACCEPTED.read_text(), descriptor_pb2.FileDescriptorSet(), descriptor_pool=_pool(against)
    )
    merged = descriptor_pb2.FileDescriptorSet()
    merged.file.extend(f for f in against.file if not f.name.startswith(OURS))
    merged.file.extend(accepted.file)
    path = scratch / "accepted.binpb"
    path.write_bytes(merged.SerializeToString())
    return ["buf", "breaking", str(image), "--against", str(path), "--config", str(PROTOS / "buf.yaml")]


def _pool(files: descriptor_pb2.FileDescriptorSet) -> descriptor_pool.DescriptorPool:
    """Know our option extensions while the text is read."""
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return pool


def _protos() -> list[str]:
    return sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


def _generated_files(base: Path) -> list[str]:
    return sorted(str(path.relative_to(base)) for path in base.rglob("*_pb2*.py*") if path.suffix in {".py", ".pyi"})


def _protoc(scratch: Path, *arguments: str) -> None:
    """Run protoc with the well-known types and, as a descriptor, buf/validate: no wheel carries its source."""
    deps = scratch / "deps.binpb"
    validate = importlib.import_module("protovalidate._gen.buf.validate.validate_pb")
    source = validate._DESC.proto.to_binary()  # noqa: SLF001  # the only descriptor of it in any wheel
    file = descriptor_pb2.FileDescriptorProto.FromString(source)
    known = [
        module.DESCRIPTOR
        for module in (
            any_pb2,
            descriptor_pb2,
            duration_pb2,
            field_mask_pb2,
            struct_pb2,
            timestamp_pb2,
            wrappers_pb2,
            status_pb2,
        )
    ]
    deps.write_bytes(
        descriptor_pb2.FileDescriptorSet(
            file=[*(descriptor_pb2.FileDescriptorProto.FromString(f.serialized_pb) for f in known), file]
        ).SerializeToString()
    )
    command = ["protoc", f"-I{PROTOS}", f"--descriptor_set_in={deps}", *arguments, *_protos(), BUF_VALIDATE]
    if protoc.main(command):
        raise SystemExit("protoc failed; its words are above")


def _generate(target: Path, scratch: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _protoc(
        scratch,
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=quiet:{target}",
    )
    for path in target.rglob("*_pb2_grpc.py*"):
        # A contract without services gets an empty stub; validate.proto is only ever a message.
        if "Stub:" not in (text := path.read_text()) and "Stub(" not in text:
            path.unlink()


def _image(scratch: Path) -> descriptor_pb2.FileDescriptorSet:
    path = scratch / "all.binpb"
    _protoc(scratch, "--include_imports", "--include_source_info", f"--descriptor_set_out={path}")
    return descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
