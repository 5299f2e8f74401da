"""What the agent may cost before it does anything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cellmesh.guest import imports

_MODULES = 280
_RSS_BYTES = 48 << 20
_UNWANTED = (
    "ssl",
    "http",
    "email",
    "logging.config",
    "google.protobuf.text_format",
    "opentelemetry",
    "google.rpc",
    "pydantic",
)
_PROBE = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from cellmesh.guest.imports import spare
spare()
before = set(sys.modules)
import cellmesh.guest.agent, cellmesh.guest.__main__
from cellmesh.guest import imports, late
waiting = late.waiting()
for name in imports.OF_CONTAINERS:
    late.run(name)
rss = int(open("/proc/self/statm").read().split()[1]) * 4096
print(json.dumps([sorted(set(sys.modules) - before), rss, waiting]))
"""


@pytest.fixture(scope="module")
def cost() -> tuple[list[str], int, list[str]]:
    """Give the modules and the memory of an agent that has run all of itself, and what it had left for later."""
    paths = [entry for entry in sys.path if entry]
    out = subprocess.run([sys.executable, "-I", "-S", "-c", _PROBE, json.dumps(paths)], check=True, capture_output=True)
    modules, rss, waiting = json.loads(out.stdout)
    return modules, rss, waiting


def test_the_agent_imports_little(cost: tuple[list[str], int, list[str]]) -> None:
    """Modules and memory after all imports stay within the budget, and what a guest has no use for is not there."""
    modules, rss, _ = cost
    assert len(modules) <= _MODULES
    assert rss <= _RSS_BYTES
    loaded = [name for name in modules if any(name == bad or name.startswith(f"{bad}.") for bad in _UNWANTED)]
    assert loaded == []


def test_what_only_containers_need_is_not_run_before_hello(cost: tuple[list[str], int, list[str]]) -> None:
    """An agent that is ready to say Hello has run no module that is for containers and commands."""
    _, _, waiting = cost
    assert set(imports.OF_CONTAINERS) <= set(waiting)
