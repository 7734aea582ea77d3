"""The client processes of a run, as the harness sees them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO, Protocol

from cli.supervisor import server_environment
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.workloads.plan import WorkerPlan, save_plan
from jepsen_tests.workloads.registry import Stage, stage_of

_READY_S = 20.0


class WorkerProcess:
    """One client process; its counters are read by a thread of their own."""

    def __init__(self, plan: WorkerPlan, prefix: tuple[str, ...], directory: Path) -> None:
        """Starts it.

        Args:
            plan: What it shall do.
            prefix: Puts it on its host.
            directory: For its plan and its log.
        """
        self.plan = plan
        self.counts: Counter[str] = Counter()
        self.is_replaced = False
        self._ready = threading.Event()
        stem = f"worker-{plan.index}-{plan.kind}"
        path = directory / f"{stem}.json"
        save_plan(plan, path)
        self._log = directory / f"{stem}.log"
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [*prefix, sys.executable, "-P", "-m", "jepsen_tests.workloads.worker", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=server_environment(),
                start_new_session=True,
            )
        output = self._child.stdout
        if output is None:
            raise HarnessError("a worker has no output")
        threading.Thread(target=self._read, args=(output,), daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def wait_ready(self, timeout_s: float = _READY_S) -> None:
        """Waits until it has started.

        Raises:
            HarnessError: It ended or takes too long.
        """
        deadline = time.monotonic() + timeout_s
        while not self._ready.wait(0.05):
            if self._child.poll() is not None or time.monotonic() >= deadline:
                raise HarnessError(f"{self._log.stem} did not start: {self.tail()}")

    def ask_stop(self) -> None:
        """Tells it to end after the operations under way."""
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()

    def wait_done(self, timeout_s: float) -> int:
        """Waits for its end; kills it if that takes too long; returns the exit code."""
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait(5.0)

    def kill(self) -> None:
        """Ends it at once, if it still runs."""
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait(5.0)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def tail(self) -> str:
        """Returns the last line of its log."""
        text = self._log.read_text(encoding="utf-8", errors="replace").strip()
        return text.splitlines()[-1] if text else "no message"

    def _read(self, output: IO[bytes]) -> None:
        for line in output:
            if line.strip() == b"ready":
                self._ready.set()
                continue
            with contextlib.suppress(ValueError):
                self.counts = Counter(json.loads(line))
        self._ready.set()


class CommandHosts(Protocol):
    """Where commands can be run."""

    def command_prefix(self, host: str) -> tuple[str, ...]:
        """Returns what stands before a command so that it runs on the host."""
        ...


class WorkerPool:
    """All client processes of a run."""

    def __init__(self, network: CommandHosts, directory: Path) -> None:
        self._network = network
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.workers: list[WorkerProcess] = []

    def start(self, *plans: WorkerPlan) -> list[WorkerProcess]:
        """Starts client processes, all at once, and waits until they work.

        Raises:
            HarnessError: One ended or takes too long.
        """
        started = [
            WorkerProcess(plan, self._network.command_prefix(plan.host), self._directory)
            for plan in plans
        ]
        self.workers += started
        for worker in started:
            worker.wait_ready()
        return started

    def replace(self, old: WorkerProcess, plan: WorkerPlan) -> WorkerProcess:
        """Starts a client process in place of one that was killed; does not wait for it."""
        old.is_replaced = True
        worker = WorkerProcess(plan, self._network.command_prefix(plan.host), self._directory)
        self.workers.append(worker)
        return worker

    def run(self, plan: WorkerPlan, timeout_s: float) -> None:
        """Runs a client process to its end.

        Raises:
            HarnessError: It failed.
        """
        [worker] = self.start(plan)
        code = worker.wait_done(timeout_s)
        if code:
            raise HarnessError(f"{plan.kind} failed ({code}): {worker.tail()}")

    def pids(self) -> dict[str, int]:
        """Returns the pid of the process that runs on each host."""
        return {worker.plan.host: worker.pid for worker in self.workers if worker.is_running}

    def counts(self) -> Counter[str]:
        """Returns the sum of all counters."""
        total: Counter[str] = Counter()
        for worker in self.workers:
            total.update(worker.counts)
        return total

    def stop(self, timeout_s: float, stage: Stage) -> dict[str, str]:
        """Ends workers in order; returns those that did not end well.

        Args:
            timeout_s: Those that take longer are killed.
            stage: The workers that end in it.
        """
        running = [
            worker
            for worker in self.workers
            if worker.is_running and stage_of(worker.plan.kind) is stage
        ]
        for worker in running:
            worker.ask_stop()
        deadline = time.monotonic() + timeout_s
        bad: dict[str, str] = {}
        for worker in running:
            code = worker.wait_done(max(0.1, deadline - time.monotonic()))
            if code:
                name = f"worker {worker.plan.index} ({worker.plan.kind})"
                bad[name] = f"exit code {code}: {worker.tail()}"
        return bad

    def failed(self) -> str:
        """Returns what is wrong with a worker that ended too early; empty if none did."""
        for worker in self.workers:
            if worker.is_replaced or worker.plan.kind in ("setup", "final"):
                continue
            if not worker.is_running:
                return f"worker {worker.plan.index} ({worker.plan.kind}) ended: {worker.tail()}"
        return ""

    def kill(self) -> None:
        """Ends all at once."""
        for worker in self.workers:
            worker.kill()
