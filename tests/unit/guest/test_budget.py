"""What the agent may cost before it does anything."""

from __future__ import annotations

import json
import subprocess
import sys

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
rss = int(open("/proc/self/statm").read().split()[1]) * 4096
print(json.dumps([sorted(set(sys.modules) - before), rss]))
"""


def test_the_agent_imports_little() -> None:
    """Modules and memory after all imports stay within the budget, and what a guest has no use for is not there."""
    paths = [entry for entry in sys.path if entry]
    out = subprocess.run([sys.executable, "-I", "-S", "-c", _PROBE, json.dumps(paths)], check=True, capture_output=True)
    modules, rss = json.loads(out.stdout)
    assert len(modules) <= _MODULES
    assert rss <= _RSS_BYTES
    loaded = [name for name in modules if any(name == bad or name.startswith(f"{bad}.") for bad in _UNWANTED)]
    assert loaded == []
