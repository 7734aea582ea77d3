"""Runs the machine's own tools (`ip`, `nft`, `mount`, ...) and reports what they say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from dledger.errors import DLedgerError

# Administrators' folders are often missing from the path of a service account.
_TOOL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class HarnessError(DLedgerError):
    """The harness itself cannot go on: a tool failed, a host did not come up."""

    definite = True


def run_tool(arguments: Sequence[str], *, stdin: str = "", timeout_s: float = 20.0) -> str:
    """Runs a tool to its end; returns its standard output.

    Raises:
        HarnessError: It is missing, failed, or took too long; the text says which and why.
    """
    shown = " ".join(arguments)
    try:
        done = subprocess.run(
            list(arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=tool_environment(),
        )
    except FileNotFoundError as error:
        raise HarnessError(f"{arguments[0]} is not installed") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HarnessError(f"{shown}: {error}") from error
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise HarnessError(f"{shown}: {reason[0] if reason else f'exit {done.returncode}'}")
    return done.stdout


def try_tool(arguments: Sequence[str], *, stdin: str = "", timeout_s: float = 20.0) -> str | None:
    """Runs a tool; returns why it failed, `None` if it did not."""
    try:
        run_tool(arguments, stdin=stdin, timeout_s=timeout_s)
    except HarnessError as error:
        return str(error)
    return None


def tool_environment() -> dict[str, str]:
    """Returns this process's environment with the administrators' tools on the path."""
    environment = dict(os.environ)
    environment["PATH"] = f"{environment.get('PATH', '')}:{_TOOL_PATH}"
    environment["LC_ALL"] = "C"
    return environment
