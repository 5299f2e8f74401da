"""What the command says when it can't do what it was asked, and with which exit code."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command but `exec`, which passes its command's own and uses EXEC_FAILED for ours."""

    OK = 0
    FAILED = 1
    """The answer is bad news: a check failed, a VM is not well, an image has drifted."""
    USAGE = 2
    """The command line, or a value in it, is wrong."""
    NOT_FOUND = 3
    """No such VM, container, image or command."""
    UNAVAILABLE = 4
    """No node answers here, or the guest does not."""
    CONFLICT = 5
    """What is there is in the way: it exists already, or its state does not allow this."""
    EXHAUSTED = 6
    """No room for more."""
    DENIED = 7
    """The node refuses this caller."""
    DEADLINE = 8
    """No answer in time."""
    NOT_REACHED = 9
    """`--wait`: it became something else than was wanted."""
    INTERNAL = 10
    """A fault of the node, or of this command."""
    OUTPUT_LOST = 74
    """Standard output could not be written, such as to a full disk; EX_IOERR of sysexits.h."""
    EXEC_FAILED = 125
    """`exec`: the command could not be run, or was lost."""
    EXEC_NOT_EXECUTABLE = 126
    """`exec`: the program is there and may not be executed, as in a shell."""
    EXEC_NOT_THERE = 127
    """`exec`: there is no such program, as in a shell."""
    INTERRUPTED = 130
    """Ctrl-C."""


class CliError(Exception):
    """Something the person at the terminal has to know: one line what happened, one line what to do."""

    def __init__(self, what: str, fix: str, *, exit_code: ExitCode, reason: str, context: tuple[str, ...] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.exit_code = exit_code
        self.reason = reason
        self.context = context
        """Lines that a person wants to see first, such as the end of a log."""


class UsageError(CliError):
    """A value on the command line is wrong."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix, exit_code=ExitCode.USAGE, reason="USAGE")


class NotFoundError(CliError):
    """What was named is not there."""

    def __init__(self, what: str, fix: str, *, reason: str) -> None:
        super().__init__(what, fix, exit_code=ExitCode.NOT_FOUND, reason=reason)


class NoNodeError(CliError):
    """No node answers on the operator socket."""

    def __init__(self, what: str) -> None:
        super().__init__(
            what, "Start a node with `cellmesh up`.", exit_code=ExitCode.UNAVAILABLE, reason="NODE_NOT_RUNNING"
        )


class NotReachedError(CliError):
    """`--wait` saw the VM or container end up elsewhere."""

    def __init__(self, what: str, fix: str, *, reason: str) -> None:
        super().__init__(what, fix, exit_code=ExitCode.NOT_REACHED, reason=reason)


class ExecLostError(CliError):
    """The stream of a command can't be trusted or resumed."""

    def __init__(self, what: str) -> None:
        fix = "The command may still run; see the container with `cellmesh container show`."
        super().__init__(what, fix, exit_code=ExitCode.EXEC_FAILED, reason="EXEC_LOST")
