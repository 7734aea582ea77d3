"""Workloads and checkers on a cluster that is not ours: it is not started, broken or ended.

Works against any cluster that speaks RocketMQ's protocol. The topic `jepsen-<run>` is created there
and left there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli import probe
from dledger.client.config import nameserver_addresses
from jepsen_tests.history import Meta
from jepsen_tests.hosts.cleanup import CleanUp
from jepsen_tests.hosts.cluster import new_run_id
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.mortality import Mortality
from jepsen_tests.options import RunOptions
from jepsen_tests.run_log import RunLog, merge_histories
from jepsen_tests.worker_pool import WorkerPool
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.registry import Stage, Workload

_FINAL_INDEX = 90
_PROGRESS_S = 1.0
_ENDS = ((15.0, Stage.LOAD), (120.0, Stage.SETTLE), (100.0, Stage.DRAIN))
_FINAL_S = 120.0


class Here:
    """The host that we are on."""

    def command_prefix(self, host: str) -> tuple[str, ...]:
        """Returns nothing: commands run right here."""
        return ()


class ForeignRun:
    """One run against somebody's cluster."""

    def __init__(
        self, options: RunOptions, workload: Workload, folder: Path, say: Callable[[str], None]
    ) -> None:
        self.options = options
        self.workload = workload
        self.folder = folder
        self._say = say
        self.topic = f"jepsen-{new_run_id()}"
        self.log = RunLog(folder / "faults.jsonl")
        self.problems: list[str] = []
        self.figures: dict[str, Any] = {}
        self.masters = self._find_masters()
        self.pool = WorkerPool(Here(), folder / "workers")

    def _find_masters(self) -> dict[str, str]:
        for address in nameserver_addresses(self.options.nameserver):
            found = probe.cluster_addresses(address, timeout_s=3.0)
            if found:
                masters = {f"{name}-0": ids[0] for name, ids in found.items() if 0 in ids}
                if masters:
                    return masters
        raise HarnessError(f"no nameserver of {self.options.nameserver} knows a broker that leads")

    def execute(self) -> None:
        """Loads, stops, reads everything."""
        with CleanUp() as clean_up:
            clean_up.add("workers", self.pool.kill)
            self.pool.run(self._plan("setup", 0), 30.0)
            begin_ns = self.log.phase("load")
            kinds = self.workload.workers if self.workload.foreign else ("log-client",)
            self.pool.start(*(self._plan(kind, number) for number, kind in enumerate(kinds, 1)))
            deaths = random.Random(f"{self.options.seed}-deaths")
            mortality = Mortality(
                self.pool,
                self.log,
                self.workload.mortal,
                deaths,
                lambda kind, index, _host: self._plan(kind, index),
            )
            self._wait(time.monotonic() + self.options.time_s, mortality)
            end_ns = self.log.phase("heal")
            self.figures["loadSeconds"] = round((end_ns - begin_ns) / 1e9, 3)
            for timeout_s, stage in _ENDS:
                bad = self.pool.stop(timeout_s, stage)
                self.problems += [f"{name}: {reason}" for name, reason in bad.items()]
            self.log.phase("final")
            self.pool.run(self._plan("final", _FINAL_INDEX), _FINAL_S)
            self.log.phase("end")
        counts = self.pool.counts()
        total = sum(n for name, n in counts.items() if not name.startswith("final"))
        self.figures["operations"] = total
        self.figures["operationsPerSecond"] = round(total / self.figures["loadSeconds"], 1)

    def judge(self, versions: dict[str, str]) -> Path:
        """Puts the history together; returns its path."""
        self.log.close()
        parts = [self.log.path, *sorted((self.folder / "workers").glob("history-*.jsonl"))]
        meta = Meta(
            workload=self.workload.name,
            seed=self.options.seed,
            versions=versions,
            started_unix_ms=int(time.time() * 1000),
            acks_min=int(self.workload.acks_min_per_s * self.options.time_s),
            details={"nameserver": self.options.nameserver, "topic": self.topic},
        )
        history = self.folder / "history.jsonl"
        merge_histories(history, meta, parts)
        for part in parts:
            part.unlink(missing_ok=True)
        return history

    def _plan(self, kind: str, index: int) -> WorkerPlan:
        return WorkerPlan(
            kind=kind,
            index=index,
            host="here",
            history=str(self.folder / "workers" / f"history-{index}-{kind}.jsonl"),
            nameserver=self.options.nameserver,
            topic=self.topic,
            queue_count=self.workload.queue_count,
            replicas=self.masters,
            seed=self.options.seed * 1000 + index,
            rate=min(self.options.rate or 1e9, self.workload.rate_max) / len(self.workload.workers),
            consumers=f"{self.topic}-group",
            retry_max=self.workload.retry_max,
        )

    def _wait(self, until: float, mortality: Mortality) -> None:
        begin = time.monotonic()
        while (now := time.monotonic()) < until:
            reason = self.pool.failed()
            if reason:
                raise HarnessError(reason)
            mortality.tick()
            counts = self.pool.counts()
            done = sum(n for name, n in counts.items() if name.endswith("-ok"))
            self._say(f"[{now - begin:6.1f} s] {done:,} ok")
            time.sleep(min(_PROGRESS_S, until - now))
