"""Runs one workload under faults on a cluster of real processes, and judges what happened."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dledger.errors import DLedgerError
from jepsen_tests.checkers import Outcome, Verdict, judge_file
from jepsen_tests.foreign import ForeignRun
from jepsen_tests.history import Fault, Meta
from jepsen_tests.hosts.addressing import Addressing, HostAddressing, ProxyAddressing
from jepsen_tests.hosts.capabilities import (
    Backend,
    Capabilities,
    probe_capabilities,
    tool_versions,
)
from jepsen_tests.hosts.cleanup import CleanUp, RunStoppedError
from jepsen_tests.hosts.cluster import ClusterPlan, ClusterUnderTest, new_run_id
from jepsen_tests.hosts.network import NamespaceNetwork, Network
from jepsen_tests.hosts.proxies import ProxyNetwork
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.hosts.volumes import FolderVolumes, ImageVolumes, Volumes, remove_tree
from jepsen_tests.mortality import Mortality
from jepsen_tests.nemeses.base import Bench, Nemesis
from jepsen_tests.nemeses.limits import remove_groups
from jepsen_tests.nemeses.monitor import Monitor
from jepsen_tests.nemeses.partitions import ToothlessNemesis
from jepsen_tests.nemeses.registry import make_nemeses
from jepsen_tests.options import RunOptions
from jepsen_tests.planted.parts import PLANTS
from jepsen_tests.report.writer import write_report
from jepsen_tests.run_log import RunLog, merge_histories
from jepsen_tests.schedule import Schedule
from jepsen_tests.worker_pool import WorkerPool
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.registry import Stage, Workload, find_workload

FINAL_INDEX = 90
CLOCK_SKEW_MS_MAX = 600_000
_STOP_S = 15.0
_SETTLE_S = 75.0
_HEALTHY_S = 60.0
_PLANTED_HEALTHY_S = 8.0  # a broken replica may well never come back
_DRAIN_S = 100.0
_FINAL_S = 120.0
_PROGRESS_S = 1.0
_HARNESS_BROKER = "jepsen_tests.hosts.broker"
_SETTINGS: dict[str, Any] = {"store": {"segment_bytes": 16 * 1024 * 1024}}

Say = Callable[[str], None]


@dataclass
class RunResult:
    """What came out.

    Attributes:
        outcome: `valid`, `violated` or `unknown`.
        reasons: Why it is unknown, in words; those of the harness before those of the checkers.
        skipped: Faults asked for that could not be done, with the reason.
        figures: Operations, rates, leader changes and the like.
    """

    folder: Path
    outcome: Outcome
    verdict: Verdict | None = None
    reasons: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the result for programs."""
        return {
            **(self.verdict.to_dict() if self.verdict is not None else {}),
            "verdict": self.outcome.value,
            "unknownBecause": self.reasons,
            "skippedFaults": self.skipped,
            "figures": self.figures,
            "folder": str(self.folder),
        }


def run(options: RunOptions, say: Say, *, capabilities: Capabilities | None = None) -> RunResult:
    """Does one run.

    Args:
        options: What to do.
        say: Shows a line of progress.
        capabilities: What this machine lets us do; found out if not given.

    Raises:
        HarnessError: The run could not be done, so there is nothing to judge.
        RunStoppedError: A signal ended it. Everything was cleaned up.
    """
    workload = find_workload(options.workload)
    folder = _make_folder(options)
    able = capabilities or probe_capabilities()
    if options.nameserver:
        return _run_foreign(ForeignRun(options, workload, folder, say), able)
    nemeses, skipped = make_nemeses(options.nemeses, able)
    if options.plant == "K19":
        nemeses = [ToothlessNemesis()]
    if options.nemeses and not nemeses:
        result = _not_available(folder, options, "none of the faults can be done")
        result.skipped = skipped
        return result
    with CleanUp() as clean_up:
        one = _Run(options, workload, nemeses, folder, able, say, clean_up)
        one.execute()
    return one.conclude(skipped)


@dataclass(frozen=True)
class Attempt:
    """One of many runs: what came out, or why it could not be done."""

    seconds: float
    result: RunResult | None = None
    problem: str = ""


def attempt(work: Callable[[], RunResult]) -> Attempt:
    """Does a run whose failure shall not end those after it.

    Raises:
        RunStoppedError: A signal ended it.
    """
    begin = time.monotonic()
    try:
        result = work()
    except RunStoppedError:
        raise
    except DLedgerError as error:
        return Attempt(time.monotonic() - begin, None, f"the run could not be done: {error}")
    return Attempt(time.monotonic() - begin, result)


def _run_foreign(one: ForeignRun, able: Capabilities) -> RunResult:
    one.execute()
    history = one.judge(versions())
    verdict = judge_file(history)
    result = RunResult(
        folder=one.folder,
        outcome=verdict.outcome,
        verdict=verdict,
        reasons=[*one.problems, *(f"{r.code}: {r.text}" for r in verdict.reasons)],
        figures=one.figures,
    )
    if one.problems and result.outcome is Outcome.VALID:
        result.outcome = Outcome.UNKNOWN
    write_report(result, one.options, able, one.log, history, sorted(one.masters), versions())
    return result


class _Run:
    """The state of one run."""

    def __init__(
        self,
        options: RunOptions,
        workload: Workload,
        nemeses: list[Nemesis],
        folder: Path,
        able: Capabilities,
        say: Say,
        clean_up: CleanUp,
    ) -> None:
        self.options = options
        self.workload = workload
        self.nemeses = nemeses
        self.folder = folder
        self.able = able
        self.clean_up = clean_up
        self._say_line = say
        self.run_id = new_run_id()
        self.log = RunLog(folder / "faults.jsonl")
        self.problems: list[str] = []
        self.figures: dict[str, Any] = {}
        self._begin_ns = time.monotonic_ns()
        self._shown_at = 0.0
        self.mortality: Mortality | None = None  # while the load lasts
        self._build()

    def _build(self) -> None:
        options = self.options
        clocks = any(nemesis.needs_clock for nemesis in self.nemeses)
        plant = ("--plant", options.plant) if options.plant in PLANTS else ()
        is_proxy = self.able.backend is Backend.PROXY
        plan = ClusterPlan(
            groups=options.groups,
            replicas=options.replicas,
            broker_module=_HARNESS_BROKER if clocks or plant or is_proxy else "broker",
            broker_arguments={"*": plant},
            wall_clocks=clocks,
            settings=_settings(self.workload, self.nemeses),
        )
        self.clients = [f"c{number}" for number in range(1, len(self.workload.workers) + 1)]
        hosts = [*plan.all_replicas(), ClusterUnderTest.nameserver_host, *self.clients]
        self.network, addressing = self._make_network(plan, hosts)
        self.volumes = self._make_volumes(plan)
        self.cluster = ClusterUnderTest(
            plan, self.network, addressing, self.volumes, self.folder / "nodes"
        )
        self.pool = WorkerPool(self.network, self.folder / "workers")
        self.monitor = Monitor(self.cluster, self.log.note)

    def _make_network(self, plan: ClusterPlan, hosts: list[str]) -> tuple[Network, Addressing]:
        if self.able.backend is Backend.PROXY:
            proxies = ProxyNetwork(hosts, self.clean_up)
            chance = random.Random(self.run_id)
            return proxies, ProxyAddressing(proxies, plan.all_replicas(), chance)
        network = NamespaceNetwork(self.run_id, hosts, self.clean_up)
        return network, HostAddressing(network)

    def _make_volumes(self, plan: ClusterPlan) -> Volumes:
        if any(nemesis.needs_images for nemesis in self.nemeses):
            ram = self.folder / "disks"
            return ImageVolumes(ram, plan.all_replicas(), self.clean_up)
        return FolderVolumes(self.folder / "data")

    # --- phases -----------------------------------------------------------------------------------

    def execute(self) -> None:
        """Runs all phases; what goes wrong after the set-up becomes a reason for `unknown`."""
        self.log.phase("setup")
        self.cluster.prepare()
        self.clean_up.add("cluster", self.cluster.stop_all)
        self.clean_up.add("workers", self.pool.kill)
        self.clean_up.add("limits", partial(remove_groups, self.run_id))
        self.cluster.start_all()
        self.cluster.wait_serving()
        self.say(f"serving: {self.options.replicas} replicas on {self.able.backend.value}")
        self.pool.run(self._plan("setup", 0, self.clients[0]), 30.0)
        self.monitor.start()
        self.clean_up.add("monitor", self.monitor.stop)
        try:
            self._load()
            self._heal()
            self._final()
        except HarnessError as error:
            self.problems.append(str(error))
            self.say(f"harness: {error}")
        self.monitor.stop()
        self.log.phase("end")
        self._count()

    def _load(self) -> None:
        kinds = zip(self.workload.workers, self.clients, strict=True)
        self.pool.start(*(self._plan(kind, n, host) for n, (kind, host) in enumerate(kinds, 1)))
        bench = Bench(
            cluster=self.cluster,
            network=self.network,
            capabilities=self.able,
            monitor=self.monitor,
            chance=random.Random(f"{self.options.seed}-targets"),
            run_id=self.run_id,
            client_hosts=self.clients,
            worker_pids=self.pool.pids,
            target=self.options.target,
        )
        self.mortality = Mortality(
            self.pool,
            self.log,
            self.workload.mortal,
            random.Random(f"{self.options.seed}-deaths"),
            self._plan,
        )
        chance = random.Random(f"{self.options.seed}-times")
        schedule = Schedule(bench, self.log, self.nemeses, chance, self.say, self._tick)
        self.load_begin_ns = self.log.phase("load")
        schedule.run(time.monotonic() + self.options.time_s)
        self.mortality = None
        bench.cuts.clear()

    def _heal(self) -> None:
        load_end_ns = self.log.phase("heal")
        self.network.reset()
        self.figures["loadSeconds"] = round((load_end_ns - self.load_begin_ns) / 1e9, 3)
        self._stop_workers(_STOP_S, Stage.LOAD)
        for replica in self.cluster.replicas:
            self.cluster.start(replica)
        begin = time.monotonic()
        self.cluster.wait_healthy(_PLANTED_HEALTHY_S if self.options.plant else _HEALTHY_S)
        self.figures["healthyAfterSeconds"] = round(time.monotonic() - begin, 3)
        self.log.phase("drain")
        self._stop_workers(_SETTLE_S, Stage.SETTLE)
        self._stop_workers(_DRAIN_S, Stage.DRAIN)

    def _stop_workers(self, timeout_s: float, stage: Stage) -> None:
        for name, reason in self.pool.stop(timeout_s, stage).items():
            self.problems.append(f"{name}: {reason}")

    def _final(self) -> None:
        self.log.phase("final")
        self.say("final read of every queue from every replica")
        self.pool.run(self._plan("final", FINAL_INDEX, self.clients[0]), _FINAL_S)

    def _plan(self, kind: str, index: int, host: str) -> WorkerPlan:
        options, clients = self.options, len(self.clients)
        addressing = self.cluster.addressing
        return WorkerPlan(
            kind=kind,
            index=index,
            host=host,
            history=str(self.folder / "workers" / f"history-{index}-{kind}.jsonl"),
            nameserver=addressing.nameserver(host),
            topic="jepsen",
            queue_count=self.workload.queue_count,
            replicas={name: addressing.control(name) for name in self.cluster.replicas},
            dial=addressing.dial(host),
            seed=options.seed * 1000 + index,
            timeout_s=0.0005 if options.plant == "K20" else 1.0,
            rate=min(options.rate or 1e9, self.workload.rate_max) / clients,
            retry_max=self.workload.retry_max,
            plant=options.plant,
        )

    def _count(self) -> None:
        counts = self.pool.counts()
        operations = sum(n for name, n in counts.items() if not name.startswith("final"))
        seconds = self.figures.get("loadSeconds") or self.options.time_s
        leaders = self.monitor.leaders
        by_fault = [f for f in self.log.faults.values() if f.proof.get("newLeaders")]
        self.figures |= {
            "operations": operations,
            "operationsPerSecond": round(operations / seconds, 1),
            "faults": len(self.log.faults),
            "faultsThatBit": sum(fault.bit is True for fault in self.log.faults.values()),
            "leaderChanges": max(0, len(leaders) - self.options.groups),
            "leaderChangesByFault": len(by_fault),
        }

    # --- progress ------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Shows a line with the time since the load began."""
        at = (time.monotonic_ns() - getattr(self, "load_begin_ns", self._begin_ns)) / 1e9
        self._say_line(f"[{at:6.1f} s] {text}")

    def _tick(self) -> None:
        reason = self.pool.failed()
        if reason:
            raise HarnessError(reason)
        if self.mortality is not None and (born := self.mortality.tick()) is not None:
            self.say(f"killed and replaced: {born.plan.kind} (now pid {born.pid})")
        now = time.monotonic()
        if now - self._shown_at < _PROGRESS_S:
            return
        self._shown_at = now
        counts = self.pool.counts()
        shown = {
            status: sum(n for name, n in counts.items() if name.endswith(f"-{status}"))
            for status in ("ok", "info", "fail")
        }
        leaders = " ".join(
            f"{seen.leader}/{seen.term}"
            for group in self.cluster.plan.group_names()
            if (seen := self.monitor.current(group)) is not None
        )
        self.say(
            f"{shown['ok']:,} ok, {shown['info']:,} unknown, {shown['fail']:,} refused; "
            f"leader {leaders or '?'}"
        )

    # --- after the run -------------------------------------------------------------------------

    def conclude(self, skipped: dict[str, str]) -> RunResult:
        """Puts the history together, judges it, and writes the report."""
        self.log.close()
        parts = [self.log.path, *sorted((self.folder / "workers").glob("history-*.jsonl"))]
        history = self.folder / "history.jsonl"
        size = merge_histories(history, self._meta(skipped), parts)
        for part in parts:
            part.unlink(missing_ok=True)
        self.figures["historyBytes"] = size
        begin = time.monotonic()
        verdict = judge_file(history)
        self.figures["judgeSeconds"] = round(time.monotonic() - begin, 3)
        result = RunResult(
            folder=self.folder,
            outcome=verdict.outcome,
            verdict=verdict,
            reasons=[*self.problems, *(f"{r.code}: {r.text}" for r in verdict.reasons)],
            skipped=skipped,
            figures=self.figures,
            faults=list(self.log.faults.values()),
        )
        if result.outcome is Outcome.VALID and (self.problems or skipped):
            result.reasons += [f"{name}: {reason}" for name, reason in skipped.items()]
            result.outcome = Outcome.UNKNOWN
        write_report(
            result, self.options, self.able, self.log, history, self.cluster.replicas, versions()
        )
        if result.outcome is not Outcome.VIOLATED and not self.options.keep_data:
            remove_tree(self.folder / "data")
        return result

    def _promises(self) -> dict[str, Any]:
        """Returns what is promised of times: little, where a fault moves the brokers' clocks."""
        if any(nemesis.needs_clock for nemesis in self.nemeses):
            return {"delay_tolerance_ms": CLOCK_SKEW_MS_MAX}
        return dict(self.workload.promises)

    def _meta(self, skipped: dict[str, str]) -> Meta:
        options = self.options
        return Meta(
            workload=self.workload.name,
            nemeses=[nemesis.name for nemesis in self.nemeses],
            seed=options.seed,
            replicas=options.replicas,
            nodes=self.cluster.replicas,
            started_unix_ms=int(time.time() * 1000),
            versions=versions(),
            details={
                "cluster": self.cluster.describe(),
                "capabilities": self.able.to_json(),
                "skipped": skipped,
                "figures": self.figures,
                "target": options.target,
                "rate": options.rate,
            },
            acks_min=int(self.workload.acks_min_per_s * options.time_s),
            **self._promises(),
        )


def _settings(workload: Workload, nemeses: list[Nemesis]) -> dict[str, Any]:
    """Returns what every `broker.toml` says, with what the workload and the faults need."""
    found: dict[str, Any] = {section: dict(table) for section, table in _SETTINGS.items()}
    for wanted in (workload.settings, *(nemesis.settings for nemesis in nemeses)):
        for section, table in wanted.items():
            found.setdefault(section, {}).update(table)
    return found


def versions() -> dict[str, str]:
    """Returns the versions of all that a run depends on."""
    found = tool_versions()
    for name in ("dledger-mq", "pysyncobj", "lmdb", "msgspec", "uvloop"):
        with contextlib.suppress(ImportError):
            found[name] = version(name)
    return found


def _make_folder(options: RunOptions) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    faults = "+".join(options.nemeses) or "none"
    label = f"-{options.label}" if options.label else ""
    name = f"{stamp}-{options.workload.upper()}-{faults}-seed{options.seed}{label}"
    folder = (options.out / name).absolute()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise HarnessError(f"cannot make {folder}: {error.strerror}") from error
    return folder


def _not_available(folder: Path, options: RunOptions, reason: str) -> RunResult:
    result = RunResult(folder=folder, outcome=Outcome.UNKNOWN, reasons=[f"not available: {reason}"])
    text = json.dumps({"options": str(options), **result.to_json()}, indent=2)
    (folder / "verdict.json").write_text(text + "\n", encoding="utf-8")
    return result


def say_to_stderr(text: str) -> None:
    """Shows a line of progress on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def exit_code(result: RunResult) -> int:
    """Returns 0 for valid, 4 for violated, 5 for unknown."""
    return {Outcome.VALID: 0, Outcome.VIOLATED: 4, Outcome.UNKNOWN: 5}[result.outcome]


__all__ = ["RunOptions", "RunResult", "exit_code", "run", "say_to_stderr", "versions"]
