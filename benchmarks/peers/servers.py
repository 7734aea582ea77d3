"""Servers of a peer as child processes on loopback, ended by their ids."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

READY_S = 90.0
_PR_SET_PDEATHSIG = 1


class StartError(Exception):
    """A server did not come up; the text has the end of its output."""


class Servers:
    """The processes of one peer and the directory in which they work."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, command: list[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Starts a process; its output goes to NAME.out in the directory."""
        library = ctypes.CDLL(None)

        def die_with_parent() -> None:
            # However this program ends, no server stays behind.
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        with (self.directory / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=self.directory,
                env=None if environment is None else {**_plain_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the harness, which then ends them in order
                preexec_fn=die_with_parent,
            )

    def wait(self, name: str, ready: Callable[[], bool], timeout_s: float = READY_S) -> None:
        """Waits until a server is ready.

        Raises:
            StartError: It ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._processes[name].poll() is not None:
                raise StartError(f"{name} ended:\n{self.output(name)[-1500:]}")
            if time.monotonic() > deadline:
                text = f"{name} is not ready after {timeout_s:g} s:\n{self.output(name)[-1500:]}"
                raise StartError(text)
            time.sleep(0.03)

    def wait_port(self, name: str, port: int) -> None:
        """Waits until a server listens on its port."""
        self.wait(name, lambda: listens(port))

    def output(self, name: str) -> str:
        """Returns what a server has printed."""
        return (self.directory / f"{name}.out").read_text(errors="replace")

    def pid(self, name: str) -> int:
        """Returns the id of a process that was started."""
        return self._processes[name].pid

    def ended(self) -> list[str]:
        """Returns the names of those that run no more."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def kill(self, name: str) -> None:
        """kill -9; returns when the process is gone."""
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self) -> None:
        """Ends all that run, at once: nobody needs their data any more."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()


def _plain_environment() -> dict[str, str]:
    """Returns this process's environment without what is meant for Python or other servers."""
    kept = ("PATH", "LANG", "LC_ALL", "JAVA_HOME", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


def listens(port: int) -> bool:
    """Returns whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def memory_mb(pid: int, *, peak: bool = False) -> float:
    """Returns the resident memory of a process, or the most it ever had, in MB (10^6 bytes)."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(pid)
