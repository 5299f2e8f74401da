"""Run the programs a build needs."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from cellmesh.image.errors import BuildFailed, ToolMissing

MAX_REPORT = 2000


def run(
    argv: Sequence[str | Path],
    *,
    package: str,
    step: str,
    env: Mapping[str, str] | None = None,
    stdout: IO[bytes] | int = subprocess.PIPE,
) -> bytes:
    """Run `argv` to its end and return its output; raises BuildFailed with the last lines it wrote to stderr."""
    try:
        done = subprocess.run(
            argv, check=True, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise ToolMissing(str(argv[0]), package) from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-MAX_REPORT:]
        raise BuildFailed(step, f"{argv[0]} ended with {error.returncode}: {said}") from error
    return done.stdout or b""
