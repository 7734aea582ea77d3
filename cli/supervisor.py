"""Starts, recognises, signals and stops the processes of a local cluster.

A process is known by the pid in its file *and* by its command line: a pid alone may by now belong
to somebody else, and we never signal a process that we cannot prove to be ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.errors import CommandError
from dledger.clock import Clock

LOG_BYTES_MAX = 16 * 1024 * 1024
LOG_TAIL_BYTES = 8 * 1024
_POLL_S = 0.01


@dataclass(frozen=True, kw_only=True)
class ProcessPlan:
    """How one process is started and recognised.

    Attributes:
        name: For people: a replica id or `nameserver-0`.
        module: Package that is run with `python -P -m`.
        arguments: Its arguments; `marker` is one of them.
        marker: Absolute path that only this process has on its command line.
        directory: Holds its `pid` file and its log.
        prefix: Stands before the command, e.g. to run it in a namespace; must replace itself by
            the command (exec), so that the pid stays.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    marker: str
    directory: Path
    prefix: tuple[str, ...] = ()

    @property
    def pid_path(self) -> Path:
        """The file with the process id."""
        return self.directory / "pid"

    @property
    def log_path(self) -> Path:
        """Where standard output and error go."""
        return self.directory / f"{self.module.rpartition('.')[2]}.log"


class Supervisor:
    """Starts processes and looks after those it started. One thread at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, plan: ProcessPlan) -> int:
        """Starts a process in a session of its own; returns its pid.

        A session of its own keeps Ctrl-C on the terminal from reaching it: the foreground command
        stops its processes in order instead.

        Raises:
            CommandError: Its files cannot be written or it cannot be started.
        """
        command = [*plan.prefix, sys.executable, "-P", "-m", plan.module, *plan.arguments]
        try:
            plan.directory.mkdir(parents=True, exist_ok=True)
            _rotate(plan.log_path)
            with plan.log_path.open("ab") as log:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=plan.directory,
                    env=server_environment(),
                    start_new_session=True,
                )
            self._wait_command_line(plan, child)
            plan.pid_path.write_text(f"{child.pid}\n", encoding="ascii")
        except OSError as error:
            raise CommandError(f"cannot start {plan.name}: {error}") from error
        self._children[child.pid] = child
        return child.pid

    def _wait_command_line(self, plan: ProcessPlan, child: subprocess.Popen[bytes]) -> None:
        """Waits until others can recognise a new process.

        Its command line is empty for a moment after the start, while the kernel sets it up.
        """
        deadline = self._clock.monotonic() + 1.0
        while not is_ours(plan, command_line(child.pid)):
            if child.poll() is not None or self._clock.monotonic() >= deadline:
                return
            time.sleep(0.001)

    def running_pid(self, plan: ProcessPlan) -> int | None:
        """Returns the pid of a process that runs and is provably the planned one."""
        pid = read_pid(plan)
        return pid if pid is not None and self.is_running(plan, pid) else None

    def is_running(self, plan: ProcessPlan, pid: int) -> bool:
        """Returns whether this pid is the planned process and has not ended."""
        child = self._children.get(pid)
        if child is not None:
            # Nobody else can have its pid before we have waited for it.
            return child.poll() is None
        return is_ours(plan, command_line(pid))

    def last_pid(self, plan: ProcessPlan) -> int | None:
        """Returns the recorded pid, whether or not that process still runs."""
        return read_pid(plan)

    def exit_code(self, pid: int) -> int | None:
        """Returns how a process started here ended (negative: by a signal), `None` if not."""
        child = self._children.get(pid)
        return child.poll() if child is not None else None

    def signal(self, plan: ProcessPlan, number: signal.Signals) -> int | None:
        """Sends a signal to the planned process; returns its pid, `None` if it does not run."""
        pid = self.running_pid(plan)
        if pid is None:
            return None
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return None
        except PermissionError as error:
            raise CommandError(f"not allowed to signal {plan.name} (pid {pid})") from error
        return pid

    def wait_gone(self, plan: ProcessPlan, pid: int, timeout_s: float) -> bool:
        """Waits until a process has ended; returns whether it has."""
        deadline = self._clock.monotonic() + timeout_s
        while self.is_running(plan, pid):
            if self._clock.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def stop_all(self, plans: Sequence[ProcessPlan], grace_s: float) -> list[StopResult]:
        """Stops processes: SIGTERM to all, then SIGKILL to those that stay beyond the grace.

        Returns:
            One result for each process that ran.
        """
        asked: list[tuple[ProcessPlan, int]] = []
        for plan in plans:
            pid = self.signal(plan, signal.SIGTERM)
            if pid is not None:
                asked.append((plan, pid))
                # A stopped (SIGSTOP) process acts on SIGTERM only when it goes on.
                self.signal(plan, signal.SIGCONT)
        deadline = self._clock.monotonic() + grace_s
        results: list[StopResult] = []
        for plan, pid in asked:
            left = max(0.0, deadline - self._clock.monotonic())
            clean = self.wait_gone(plan, pid, left)
            if not clean:
                self.signal(plan, signal.SIGKILL)
                if not self.wait_gone(plan, pid, 5.0):
                    raise CommandError(f"{plan.name} (pid {pid}) does not end even by SIGKILL")
            with contextlib.suppress(OSError):
                plan.pid_path.unlink()
            results.append(StopResult(name=plan.name, pid=pid, killed=not clean))
        return results


@dataclass(frozen=True, kw_only=True)
class StopResult:
    """How a process was stopped; `killed` if SIGKILL was needed."""

    name: str
    pid: int
    killed: bool


def read_pid(plan: ProcessPlan) -> int | None:
    """Returns the recorded process id, `None` if there is none that makes sense."""
    try:
        text = plan.pid_path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() and 1 < int(text) < 2**31 else None


def command_line(pid: int) -> list[str]:
    """Returns a process's arguments; none if it has ended (as a zombie has) or is unreadable."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        return [os.fsdecode(part) for part in raw.split(b"\0") if part]
    except OSError:
        if Path("/proc/self/cmdline").exists():
            return []
    done = subprocess.run(
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False
    )
    return os.fsdecode(done.stdout).split()


def is_ours(plan: ProcessPlan, arguments: Sequence[str]) -> bool:
    """Returns whether a command line is that of the planned process."""
    return plan.module in arguments and plan.marker in arguments


def log_tail(plan: ProcessPlan, lines_max: int = 3) -> str:
    """Returns the last lines of a process's log, for an error message."""
    try:
        with plan.log_path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            text = file.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-lines_max:])


def _rotate(path: Path) -> None:
    """Keeps one older log, so that a process restarted for years does not fill the disk."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))


def server_environment() -> dict[str, str]:
    """The environment of a server process: it finds our packages whatever the folder it is in."""
    environment = dict(os.environ)
    environment["PYTHONSAFEPATH"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    root = Path(__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        # A checkout that may not be installed. Never done for site-packages: that would put it
        # before the standard library.
        others = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{others}" if others else str(root)
    return environment
