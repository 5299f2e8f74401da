"""What can be imported can be started: the agent reads all that the import of images lets through."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from cellmesh.guest.containers import image as agent
from cellmesh.guest.containers import users
from cellmesh.image import config, limits

AGENT_LIMITS = {"MAX_CONFIG": agent._CONFIG_LIMIT, "MAX_ID": users._MAX_ID}  # they have no other name


def test_the_agents_limits_are_those_of_the_import() -> None:
    """The agent does not depend on the package that imports, so the numbers stand twice."""
    assert {name: getattr(limits, name) for name in AGENT_LIMITS} == AGENT_LIMITS


def test_the_largest_environment_reaches_the_agent(tmp_path: Path) -> None:
    """The agent reads an environment of the largest size that can be imported, each variable as it was."""
    count = limits.MAX_STRINGS // 65536
    variables = [f"V{number:02}=".ljust(65536 - 1 - limits.POINTER, "x") for number in range(count)]
    wanted = config.read_config({"config": {"Env": variables, "StopSignal": "SIGQUIT", "User": f"{limits.MAX_ID}"}})
    (tmp_path / ".cellmesh").mkdir()
    (tmp_path / "rootfs").mkdir()
    (tmp_path / ".cellmesh/config.json").write_bytes(config.about(wanted))
    read = agent.read_image(tmp_path)
    assert [f"{name}={value}" for name, value in read.environment] == variables
    assert read.user.uid == limits.MAX_ID


def test_the_agents_document_is_the_configuration() -> None:
    """The document has every field under its own name; the agent relies on these keys."""
    assert json.loads(config.about(config.read_config({}))) == {
        **{key: [] for key in ("entrypoint", "cmd", "env", "exposed_ports")},
        "working_dir": "/",
        "user": "",
        "stop_signal": 15,
    }
    assert set(asdict(config.read_config({}))) == set(json.loads(config.about(config.read_config({}))))
