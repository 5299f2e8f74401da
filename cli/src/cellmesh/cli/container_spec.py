"""Reads what a container is made of from the options of `container start`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from cellmesh.api.common.v1 import container_pb2
from cellmesh.cli import units
from cellmesh.cli.errors import NotFoundError, UsageError
from cellmesh.cli.settings import Settings

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST_START = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")
_HTTP_PROBE = re.compile(r"(\d+)(/.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits as written on the command line."""

    memory: str
    cpus: float
    pids: int
    io_weight: int

    def resources(self) -> container_pb2.ContainerResources:
        """Return the limits of the contracts."""
        return container_pb2.ContainerResources(
            memory_bytes=units.parse_size(self.memory),
            cpu_millis=round(self.cpus * 1000),
            pids=self.pids,
            io_weight=self.io_weight,
        )


def parse_environment(pairs: Sequence[str]) -> list[container_pb2.EnvironmentVariable]:
    """Return the variables of `NAME=VALUE` texts."""
    variables = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair!r} is not a variable.", "Write NAME=VALUE.")
        variables.append(container_pb2.EnvironmentVariable(name=name, value=value))
    return variables


def parse_probe(http: str | None, tcp: int | None, command: str | None) -> container_pb2.HealthProbe | None:
    """Return the probe that one of the three options asks for, or None for none."""
    if sum(option is not None for option in (http, tcp, command)) > 1:
        raise UsageError("A container has one probe.", "Give only one of --probe-http, --probe-tcp and --probe-exec.")
    if http is not None:
        match = _HTTP_PROBE.fullmatch(http)
        if match is None:
            raise UsageError(f"{http!r} is not a port and a path.", "Write it like 8080/healthz.")
        return container_pb2.HealthProbe(http=container_pb2.HttpProbe(port=int(match[1]), path=match[2] or "/"))
    if tcp is not None:
        return container_pb2.HealthProbe(tcp=container_pb2.TcpProbe(port=tcp))
    if command is not None:
        return container_pb2.HealthProbe(exec=container_pb2.ExecProbe(argv=["/bin/sh", "-c", command]))
    return None


def parse_grace(text: str | None) -> Duration | None:
    """Return the time between the stop signal and SIGKILL, or None for the default."""
    if text is None:
        return None
    grace = Duration()
    grace.FromTimedelta(units.parse_duration(text))
    return grace


def find_image(settings: Settings, name: str) -> str:
    """Return the digest of an image named by its digest, or by the unique start of it in this node's store."""
    if _DIGEST.fullmatch(name):
        return name
    match = _DIGEST_START.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is not an image's digest.", "List the images with `cellmesh image ls`.")
    from cellmesh.image import ImageStore

    found = [image.digest for image in ImageStore(settings.images_dir).list() if image.digest[7:].startswith(match[1])]
    if not found:
        raise NotFoundError(
            f"No image in {settings.images_dir} has a digest that starts with {name!r}.",
            "List the images with `cellmesh image ls`; import one with `cellmesh image import PATH`.",
            reason="IMAGE_NOT_FOUND",
        )
    if len(found) > 1:
        raise UsageError(f"{len(found)} images have a digest that starts with {name!r}.", f"Write more: {found[0]}")
    return found[0]
