"""Runs many seeds, each in a process whose hashes are fixed, and gathers what they found."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jepsen_tests.history import HistoryWriter, Meta
from jepsen_tests.sim.controls import CONTROLS
from jepsen_tests.sim.plan import aim, make_plan
from jepsen_tests.sim.scenario import Layer, Result, Settings, run_plan

# Chunks and seeds in each on their way to the workers: enough to keep them busy, few enough to
# stop soon.
CHUNK = 2
AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run."""

    first: int = 0
    seeds: int = 100
    layer: Layer = "broker"
    replicas: int | None = None
    seconds: float | None = None
    jobs: int = 1
    out: Path | None = None  # violating runs leave history and trace here
    control: str | None = None
    stop_at_violation: bool = False

    def replay_command(self, seed: int) -> str:
        """Returns what a person types to see one of the seeds again."""
        words = ["dledger jepsen sim --layer", self.layer, "--first", str(seed)]
        if self.replicas is not None:
            words += ["--replicas", str(self.replicas)]
        if self.seconds is not None:
            words += ["--seconds", f"{self.seconds:g}"]
        if self.control is not None:
            words += ["--control", self.control]
        return " ".join([*words, "--trace"])


@dataclass(kw_only=True)
class Summary:
    """What all seeds together came to."""

    seeds: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    acknowledged: int = 0
    operations: int = 0
    elections: int = 0
    installations: int = 0
    held_back: int = 0
    leader_s_max: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    violating: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Counts one run."""
        self.seeds += 1
        self.virtual_s += result.virtual_s
        self.cpu_s += result.real_s
        self.acknowledged += result.acknowledged
        self.operations += result.operations
        self.elections += result.elections
        self.installations += result.installations
        self.held_back += result.held_back
        self.leader_s_max = max(self.leader_s_max, result.leader_s)
        for name, count in result.faults.items():
            self.faults[name] = self.faults.get(name, 0) + count
        if not result.is_valid:
            self.violating.append(result)

    def to_dict(self, job: Job) -> dict[str, Any]:
        """Returns the summary for programs."""
        return {
            "seeds": self.seeds,
            "violatingSeeds": len(self.violating),
            "virtualSeconds": round(self.virtual_s, 1),
            "cpuSeconds": round(self.cpu_s, 1),
            "wallSeconds": round(self.wall_s, 1),
            "virtualPerCpuSecond": round(self.virtual_s / max(self.cpu_s, 1e-9), 1),
            "seedsPerHour": round(self.seeds / max(self.wall_s, 1e-9) * 3600),
            "acknowledged": self.acknowledged,
            "operations": self.operations,
            "elections": self.elections,
            "snapshotsInstalled": self.installations,
            "heldBack": self.held_back,
            "longestWithoutLeaderSeconds": round(self.leader_s_max, 3),
            "faults": dict(sorted(self.faults.items())),
            "violations": [
                {
                    "seed": result.seed,
                    "digest": result.digest,
                    "replay": job.replay_command(result.seed),
                    "violations": [
                        {"rule": found.rule, "atSeconds": found.at_s, "text": found.text}
                        for found in result.violations
                    ],
                }
                for result in self.violating
            ],
        }


class Interrupted(Exception):
    """Somebody ended the exploration. `summary` tells what was done until then."""

    def __init__(self, summary: Summary) -> None:
        super().__init__(f"interrupted after {summary.seeds} seeds")
        self.summary = summary


def explore(job: Job, on_result: Callable[[Result], None] | None = None) -> Summary:
    """Runs seeds `first` to `first + seeds - 1` in `jobs` processes.

    SIGINT and SIGTERM end it soon and in order: no process is left, and what was found is told.

    Raises:
        Interrupted: It was ended from outside.
    """
    summary = Summary()
    begin = time.monotonic()
    end = job.first + job.seeds
    starts = iter(range(job.first, end, CHUNK))
    with _fixed_hashes():
        context = multiprocessing.get_context("spawn")
        # The terminal sends SIGINT to every process; only the one that gave the work decides.
        pool = ProcessPoolExecutor(
            job.jobs,
            mp_context=context,
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )
    interrupted = False
    with pool, _terminable():
        pending: set[Future[list[Result]]] = set()
        wanted = job.jobs * AHEAD
        while True:
            try:
                while len(pending) < wanted and (start := next(starts, None)) is not None:
                    with _fixed_hashes():  # workers start at the first submissions
                        pending.add(pool.submit(run_seeds, job, start, min(start + CHUNK, end)))
                if not pending:
                    break
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    pending.discard(future)
                    if not future.cancelled():
                        _take(future, summary, on_result)
            except KeyboardInterrupt:
                interrupted = True
            if interrupted or (job.stop_at_violation and summary.violating):
                wanted = 0
                for future in pending:
                    future.cancel()
    summary.violating.sort(key=lambda result: result.seed)
    summary.wall_s = time.monotonic() - begin
    if interrupted:
        raise Interrupted(summary)
    return summary


def _take(
    future: Future[list[Result]], summary: Summary, on_result: Callable[[Result], None] | None
) -> None:
    for result in future.result():
        summary.add(result)
        if on_result is not None:
            on_result(result)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the exploration as SIGINT does, where signals can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_seeds(job: Job, start: int, stop: int) -> list[Result]:
    """Runs some seeds, in a worker."""
    results = []
    for seed in range(start, stop):
        result = run_seed(job, seed)
        if not result.is_valid and job.out is not None:
            save(job, result)
        result.history = []
        results.append(result)
        if job.stop_at_violation and not result.is_valid:
            break
    return results


def run_seed(job: Job, seed: int, write_trace: Callable[[str], None] | None = None) -> Result:
    """Runs one seed."""
    settings = Settings(layer=job.layer, write_trace=write_trace)
    if job.control is not None:
        CONTROLS[job.control].plant(settings)
    plan = make_plan(seed, replicas=job.replicas, seconds=job.seconds)
    if job.layer == "raft":
        plan = aim(plan)
    if job.control is not None:
        plan = replace(plan, changes_gap_s=0.0)  # what finds them is stated for these plans
    return run_plan(plan, settings)


def replay(job: Job, seed: int) -> Result:
    """Runs one seed again, in a fresh process, and prints its trace there."""
    with _fixed_hashes():
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_replay, job, seed).result()


def _replay(job: Job, seed: int) -> Result:
    result = run_seed(job, seed, write_trace=_print)
    result.history = []
    return result


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the trace is what was asked for


def save(job: Job, result: Result) -> None:
    """Writes history and trace of a violating run."""
    if job.out is None:
        return
    folder = job.out / f"{job.layer}-seed-{result.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with HistoryWriter(folder / "history.jsonl") as writer:
        writer.write(Meta(workload="sim", seed=result.seed))
        for record in result.history:
            writer.write(record)
    with (folder / "trace.txt").open("w") as file:
        run_seed(job, result.seed, write_trace=lambda line: _write(file, line))


def _write(file: Any, line: str) -> None:
    file.write(line + "\n")


@contextmanager
def _fixed_hashes() -> Iterator[None]:
    """Children started here hash texts alike, so that sets have one order."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before
