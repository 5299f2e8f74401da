"""Programs of a container: what execve takes, and why one could not be started."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from cellmesh.guest.containers import confined
from cellmesh.guest.containers.runtime import StartFailed
from cellmesh.guest.containers.users import User

MAX_TEXT = (128 << 10) - 1
"""Bytes of one argument, or of one variable with its name: the kernel's MAX_ARG_STRLEN less the closing NUL."""
MAX_TEXTS = (2 << 20) - (8 << 10)
"""Bytes of all of them: a quarter of the usual stack limit, less what the kernel puts beside them."""
NOT_EXECUTABLE = 126
NOT_THERE = 127
_POINTER = 8


def check_size(argv: Sequence[str], variables: Sequence[tuple[str, str]]) -> None:
    """Raise StartFailed for arguments and variables that execve would refuse."""
    sizes = {f"argument {number}": len(text.encode()) for number, text in enumerate(argv)}
    sizes |= {f"the variable {name}": len(f"{name}={value}".encode()) for name, value in variables}
    for what, size in sizes.items():
        if size > MAX_TEXT:
            raise StartFailed(f"{what:.100} has {size} bytes: the kernel takes at most {MAX_TEXT} in one")
    total = sum(size + 1 + _POINTER for size in sizes.values())
    if total > MAX_TEXTS:
        raise StartFailed(f"arguments and variables have {total} bytes in all: the kernel takes at most {MAX_TEXTS}")


def explain_failure(
    pid: int, first_id: int, argv: Sequence[str], variables: Mapping[str, str], working_dir: str, user: User
) -> tuple[int, str] | None:
    """Say why a program could not be started in the container of process `pid`: a shell's exit code and a sentence.

    None if the program is there and may be executed, so that the reason is another one. Programs are looked up as the
    process itself would find them; `first_id` is the machine's id of the container's root.
    """
    program = argv[0]
    reason = (NOT_THERE, f"there is no program {program!r:.200} in the container")
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # The container has ended.
    try:
        for path in _candidates(program, variables.get("PATH", ""), working_dir or "/"):
            try:
                with confined.opened(root, path) as found:
                    status = os.fstat(found)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and _may_execute(status, first_id, user):
                return None
            what = "" if stat.S_ISREG(status.st_mode) else f", but {confined.kind_of(status.st_mode)}"
            reason = (NOT_EXECUTABLE, f"{path!r:.200} is no program that user {user.uid} may execute{what}")
    finally:
        os.close(root)
    return reason


def _candidates(program: str, path: str, working_dir: str) -> Iterator[str]:
    if "/" in program:
        yield str(PurePosixPath(working_dir, program))
    else:
        yield from (str(PurePosixPath(working_dir, directory, program)) for directory in path.split(":"))


def _may_execute(status: os.stat_result, first_id: int, user: User) -> bool:
    if user.uid == 0:
        return bool(status.st_mode & 0o111)
    if status.st_uid == first_id + user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid - first_id in {user.gid, *user.groups}:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
