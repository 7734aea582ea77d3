"""The clusters that experiments run on, and what is measured of any of them."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import failover, limit, machine
from benchmarks.growing.results import Setup
from cli import probe
from cli.bench import run_cases
from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from cli.supervisor import ProcessPlan
from dledger.bench import Load

_POLL_S = 0.005
START_TIMEOUT_S = 300.0
GROUP_BYTES = 64 * 1024
# Of a message beside its body: in the log and, with its unique key, in the state and its copies.
STORED_OVERHEAD_BYTES = 500


class WatchedCluster(LocalCluster):
    """A cluster whose brokers note how long their event loops stand still."""

    def plans(self) -> list[ProcessPlan]:
        """Returns how each process is started: brokers with a watch."""
        module = "benchmarks.growing.watched_broker"
        return [
            replace(process, module=module) if process.module == "broker" else process
            for process in super().plans()
        ]


@contextmanager
def cluster_of(
    setup: Setup,
    *,
    disk_bytes: float,
    kind: type[LocalCluster] = LocalCluster,
    replicas: int = 3,
    groups: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[LocalCluster]:
    """A fresh cluster; what it has written goes with it.

    Args:
        setup: Says where.
        disk_bytes: What each replica will write at most.
        kind: Of the cluster.
        replicas, groups, settings: See `ClusterSpec`.

    Raises:
        DiskShortError: The disk has no room for that.
    """
    wanted = disk_bytes * replicas * groups
    machine.need_disk(Path(setup.directory), wanted, f"a cluster of {replicas * groups}")
    with tempfile.TemporaryDirectory(prefix="dledger-growth-", dir=setup.directory) as directory:
        spec = ClusterSpec(replicas=replicas, groups=groups, settings=settings or {})
        spec = replace(spec, port_base=free_port_base(spec.port_count))
        with kind(Path(directory), spec) as cluster:
            yield cluster


def limit_rate(setup: Setup, load: Load, replicas: int = 3) -> float:
    """Returns the MB/s of the limit program with the window of a load."""
    window_bytes = max(limit.READ_BYTES, load.window * load.size_bytes)
    figures = limit.measure(setup.limit_megabytes, GROUP_BYTES, window_bytes, replicas)
    return figures["megabytes_per_s"]


def in_turns(
    setup: Setup, load: Load, measure: Callable[[], float], replicas: int = 3
) -> tuple[float, float]:
    """Returns the medians of a rate and of the limit program's MB/s, measured in turns."""
    rates, limits = [], []
    for _ in range(setup.rounds):
        limits.append(limit_rate(setup, load, replicas))
        rates.append(measure())
    return statistics.median(rates), statistics.median(limits)


def messages_per_s(case: str, load: Load) -> float:
    """Returns the rate of one of `dledger bench`'s cases."""
    return run_cases([case], load)[0].messages_per_s


def log_bytes(cluster: LocalCluster) -> int:
    """Returns what the log of the first group takes on its longest replica."""
    return max(replica.log_bytes or 0 for replica in cluster.status().groups[0].replicas)


def start_ups_s(cluster: LocalCluster, trials: int) -> list[float]:
    """Kills a follower and starts it; returns how long until it has what the leader had."""
    times = []
    for _ in range(trials):
        group = cluster.wait(failover.all_caught_up, START_TIMEOUT_S).groups[0]
        follower = next(replica for replica in group.replicas if replica.id != group.leader)
        cluster.kill(follower.id)
        wanted = max(replica.applied_index or 0 for replica in group.replicas)
        begun = time.perf_counter()
        cluster.start_one(follower.id)
        while applied_index(follower.address) < wanted:
            if time.perf_counter() - begun > START_TIMEOUT_S:
                raise TimeoutError(f"{follower.id} has not caught up in {START_TIMEOUT_S} s")
            time.sleep(_POLL_S)
        times.append(time.perf_counter() - begun)
    return times


def applied_index(address: str) -> int:
    """Returns what a replica has applied, -1 while it does not answer."""
    table = probe.broker_runtime(address, timeout_s=1.0)
    return -1 if table is None else int(table["appliedIndex"])


def fail_overs_ms(cluster: LocalCluster, trials: int) -> list[float]:
    """Kills the leader; returns how long until a producer's next send is acknowledged."""
    return asyncio.run(failover.trials(cluster, trials))


def read_bytes(pid: int) -> int:
    """Returns what a process has had read from the disk; 0 where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("read_bytes"))
