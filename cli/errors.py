"""What ends a command: exit codes and the error that carries one."""

from __future__ import annotations

from enum import IntEnum

from dledger.errors import DLedgerError


class ExitCode(IntEnum):
    """What a command's exit code tells a program."""

    DONE = 0
    FAILED = 1  # and certainly not done
    USAGE = 2
    UNKNOWN = 3  # may or may not have taken effect
    VIOLATION = 4  # a check found that a promise was broken
    UNDECIDED = 5  # a check could not decide: too little happened, or it was not looked at


class CommandError(DLedgerError):
    """A command cannot go on; its text is one line for a person."""

    definite = True

    def __init__(self, text: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class UsageError(CommandError):
    """The command was called wrongly; nothing was done."""

    def __init__(self, text: str) -> None:
        super().__init__(text, ExitCode.USAGE)


class PortTakenError(CommandError):
    """A port that a process of the cluster needs is in use."""

    def __init__(self, address: str, what: str) -> None:
        super().__init__(
            f"port {address.rpartition(':')[2]} ({what}) is in use by another process; "
            "stop that process or choose other ports with --port-base"
        )
        self.address = address


class StartError(CommandError):
    """A process of the cluster did not come up."""
