"""A cluster under test: every replica a process on a host of its own, whatever makes the hosts."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cli import probe
from cli.status import ClusterStatus, ReplicaQuestion, ReplicaStatus, ask_cluster
from cli.supervisor import ProcessPlan, Supervisor, log_tail
from dledger.clock import Clock, SystemClock
from dledger.config import render_toml
from jepsen_tests.hosts.addressing import Addressing
from jepsen_tests.hosts.network import Network
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.hosts.volumes import Volumes

_POLL_S = 0.05
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """What to run.

    Attributes:
        broker_module: Package run for a replica; the harness's own to plant a fault or a clock.
        broker_arguments: Further arguments of that module, by replica id or `*` for all.
        wall_clocks: Each replica's wall time is off by what a file of its own says; needs the
            harness's broker module.
        settings: Further keys of every `broker.toml`, nested.
    """

    groups: int = 1
    replicas: int = 3
    broker_module: str = "broker"
    broker_arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    wall_clocks: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def group_names(self) -> list[str]:
        """Returns the broker names."""
        return [f"broker-{letter}" for letter in _LETTERS[: self.groups]]

    def replica_ids(self, group: str) -> list[str]:
        """Returns a group's replicas; each is the name of its host as well."""
        return [f"{group}-{number}" for number in range(self.replicas)]

    def all_replicas(self) -> list[str]:
        """Returns all replicas of all groups."""
        return [replica for group in self.group_names() for replica in self.replica_ids(group)]


class ClusterUnderTest:
    """Starts, asks, kills, pauses and restarts processes. One thread at a time, but `status`."""

    nameserver_host = "ns0"

    def __init__(
        self,
        plan: ClusterPlan,
        network: Network,
        addressing: Addressing,
        volumes: Volumes,
        directory: Path,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.plan = plan
        self.network = network
        self.addressing = addressing
        self.volumes = volumes
        self.directory = directory
        self._clock = clock or SystemClock()
        self._supervisor = Supervisor(self._clock)
        self._plans: dict[str, ProcessPlan] = {}

    # --- set-up -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Writes every process's configuration."""
        name = self.nameserver_host
        home = self.directory / name
        home.mkdir(parents=True, exist_ok=True)
        self._plans[name] = ProcessPlan(
            name=name,
            module="nameserver",
            arguments=("--listen", self.addressing.listen(name), "--data", str(home)),
            marker=str(home),
            directory=home,
            prefix=self.network.command_prefix(name),
        )
        for group in self.plan.group_names():
            for replica in self.plan.replica_ids(group):
                self._prepare_replica(group, replica)

    def _prepare_replica(self, group: str, replica: str) -> None:
        home = self.directory / replica
        home.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {
            "cluster_name": "DefaultCluster",
            "broker_name": group,
            "replica_id": replica,
            "data_directory": str(self.volumes.directory(replica)),
            **self.addressing.broker_settings(replica, self.plan.replica_ids(group)),
            "nameservers": [self.addressing.nameserver(replica)],
        }
        config = home / "broker.toml"
        config.write_text(render_toml({**settings, **self.plan.settings}), encoding="utf-8")
        given = self.plan.broker_arguments
        extra = [*given.get("*", ()), *given.get(replica, ())]
        if self.plan.wall_clocks:
            extra += ["--wall-clock", str(self.clock_file(replica))]
        dial = self.addressing.dial(replica)
        if dial:
            path = home / "dial.json"
            path.write_text(json.dumps(dial, indent=2), encoding="utf-8")
            extra += ["--dial", str(path)]
        self._plans[replica] = ProcessPlan(
            name=replica,
            module=self.plan.broker_module,
            arguments=("--config", str(config), *extra),
            marker=str(config),
            directory=home,
            prefix=(*self.volumes.command_prefix(replica), *self.network.command_prefix(replica)),
        )

    @property
    def replicas(self) -> list[str]:
        """All replicas."""
        return self.plan.all_replicas()

    def group_of(self, replica: str) -> str:
        """Returns the broker name of a replica."""
        return replica.rpartition("-")[0]

    # --- processes --------------------------------------------------------------------------------

    def start(self, name: str) -> int:
        """Starts a process that does not run; returns its pid."""
        return self.pid(name) or self._supervisor.start(self._plans[name])

    def start_all(self) -> None:
        """Starts everything."""
        for name in (self.nameserver_host, *self.replicas):
            self.start(name)

    def pid(self, name: str) -> int | None:
        """Returns the pid of a running process."""
        return self._supervisor.running_pid(self._plans[name])

    def signal(self, name: str, number: signal.Signals) -> int:
        """Sends a signal; returns the pid.

        Raises:
            HarnessError: The process does not run.
        """
        pid = self._supervisor.signal(self._plans[name], number)
        if pid is None:
            raise HarnessError(f"{name} does not run: {log_tail(self._plans[name])}")
        return pid

    def kill(self, name: str) -> int:
        """Ends a process by SIGKILL; returns the pid it had."""
        pid = self.signal(name, signal.SIGKILL)
        if not self._supervisor.wait_gone(self._plans[name], pid, 10.0):
            raise HarnessError(f"{name} (pid {pid}) survives SIGKILL")
        return pid

    def wait_gone(self, name: str, timeout_s: float) -> int | None:
        """Waits until a process has ended; returns its exit code, `None` if it still runs."""
        pid = self._supervisor.last_pid(self._plans[name])
        if pid is None or not self._supervisor.wait_gone(self._plans[name], pid, timeout_s):
            return None
        return self._supervisor.exit_code(pid)

    def stop_all(self, grace_s: float = 5.0) -> None:
        """Stops everything, the nameserver last."""
        plans = list(self._plans.values())
        for module in ("broker", "nameserver"):
            chosen = [p for p in plans if (p.module == "nameserver") == (module == "nameserver")]
            self._supervisor.stop_all(chosen, grace_s)

    def log_path(self, name: str) -> Path:
        """Returns where a process's log lies."""
        return self._plans[name].log_path

    def log_tail(self, name: str) -> str:
        """Returns the last lines of a process's log."""
        return log_tail(self._plans[name])

    # --- clocks -----------------------------------------------------------------------------------

    def clock_file(self, replica: str) -> Path:
        """Returns the file that says how far off a replica's wall time is."""
        return self.directory / replica / "wall-clock"

    def wall_offset_ms(self, replica: str) -> int | None:
        """Returns how far off a replica's wall time is by its own words; good to its answer time.

        None if it does not answer.
        """
        address = self.addressing.control(replica)
        table = self.network.call(lambda: probe.broker_runtime(address, timeout_s=1.0))
        return None if table is None else int(table["wallClockMs"]) - self._clock.wall_ms()

    # --- state ------------------------------------------------------------------------------------

    def status(self, timeout_s: float = 0.5) -> ClusterStatus:
        """Asks all processes from the control host. Any thread may call it."""
        questions = [
            ReplicaQuestion(
                group=group,
                id=replica,
                address=self.addressing.control(replica),
                raft_address="",
                pid=self.pid(replica),
            )
            for group in self.plan.group_names()
            for replica in self.plan.replica_ids(group)
        ]
        nameserver = self.addressing.control(self.nameserver_host)
        return self.network.call(lambda: ask_cluster([nameserver], questions, timeout_s=timeout_s))

    def leader(self, group: str) -> str | None:
        """Returns the serving leader of a group, of the highest term."""
        return next(g.leader for g in self.status().groups if g.name == group)

    def wait(
        self, condition: Callable[[ClusterStatus], bool], timeout_s: float, what: str
    ) -> ClusterStatus:
        """Waits until the status meets a condition.

        Raises:
            HarnessError: It does not in time.
        """
        deadline = self._clock.monotonic() + timeout_s
        while not condition(status := self.status()):
            if self._clock.monotonic() >= deadline:
                raise HarnessError(f"not {what} after {timeout_s:g} s: {describe(status)}")
            time.sleep(_POLL_S)
        return status

    def wait_serving(self, timeout_s: float = 30.0) -> ClusterStatus:
        """Waits until every group has a serving leader and the nameserver answers."""
        return self.wait(
            lambda s: s.is_serving and all(n.alive for n in s.nameservers), timeout_s, "serving"
        )

    def wait_healthy(self, timeout_s: float = 60.0) -> ClusterStatus:
        """Waits until every replica answers and has applied all that its leader committed."""
        return self.wait(is_healthy, timeout_s, "healthy")

    def wait_leader_change(self, group: str, term: int, timeout_s: float) -> ReplicaStatus | None:
        """Waits for a serving leader of a higher term; returns it, `None` if there is none."""
        deadline = self._clock.monotonic() + timeout_s
        while self._clock.monotonic() < deadline:
            for found in self.status(0.3).groups:
                if found.name == group and found.leader is not None:
                    leader = found.replica(found.leader)
                    if (leader.term or 0) > term:
                        return leader
            time.sleep(_POLL_S)
        return None

    def describe(self) -> dict[str, Any]:
        """Returns the plan for the report."""
        return {**asdict(self.plan), "network": self.network.kind, "volumes": self.volumes.kind}


def is_healthy(status: ClusterStatus) -> bool:
    """Returns whether every replica answers and has applied all that its leader committed."""
    for group in status.groups:
        if group.leader is None or not all(replica.answers for replica in group.replicas):
            return False
        committed = group.replica(group.leader).commit_index or 0
        if any((replica.applied_index or 0) < committed for replica in group.replicas):
            return False
    return bool(status.groups) and all(n.alive for n in status.nameservers)


def describe(status: ClusterStatus) -> str:
    """Returns one line about all replicas."""
    parts = [
        f"{r.id}: {r.role or ('silent' if r.alive else 'gone')} term={r.term} "
        f"commit={r.commit_index} applied={r.applied_index}"
        for group in status.groups
        for r in group.replicas
    ]
    return "; ".join(parts)


def process_state(pid: int) -> str:
    """Returns the kernel's letter for a process: `S`, `R`, `T` (stopped), empty if gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


def new_run_id(chance: random.Random | None = None) -> str:
    """Returns a short text that no other run on this machine has right now."""
    number = (chance or random.SystemRandom()).getrandbits(20)
    return f"{number:05x}{os.getpid() % 1000:03d}"
