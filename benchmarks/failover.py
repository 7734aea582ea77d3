"""kill -9 of the leader to the next acknowledged send of our client, many times.

.venv/bin/python benchmarks/failover.py --trials 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from dledger import AsyncAdmin, AsyncProducer, Message

FOLLOWERS_TIMEOUT_S = 20.0


def all_caught_up(status) -> bool:
    """Whether every replica is alive and applies what the leader committed."""
    replicas = status.groups[0].replicas
    applied = {replica.applied_index for replica in replicas if replica.alive}
    return len(replicas) == sum(replica.alive for replica in replicas) and len(applied) == 1


async def trials(
    cluster: LocalCluster, count: int, fault: signal.Signals = signal.SIGKILL
) -> list[float]:
    """Returns the pauses in ms; after SIGSTOP the old leader is woken when the send has come."""
    async with AsyncAdmin(nameserver=cluster.nameserver) as admin:
        await admin.create_topic("bench")
    gaps: list[float] = []
    async with AsyncProducer("bench", nameserver=cluster.nameserver) as producer:
        for number in range(count):
            for _ in range(20):
                await producer.send(Message("bench", b"before"))
            leader = cluster.leader()
            killed_at = time.perf_counter()
            cluster.kill(leader, fault)
            result = await producer.send(Message("bench", b"after"))
            gaps.append((time.perf_counter() - killed_at) * 1000)
            print(
                f"{number + 1:3}  {leader:14} {gaps[-1]:8.1f} ms"
                f"  attempts with unknown outcome: {result.outcome_unknown_attempts}",
                flush=True,
            )
            if fault is signal.SIGSTOP:
                cluster.kill(leader, signal.SIGCONT)
            else:
                cluster.start_one(leader)
            await asyncio.to_thread(cluster.wait, all_caught_up, FOLLOWERS_TIMEOUT_S)
    return gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dledger-bench-") as directory:
        spec = ClusterSpec(port_base=free_port_base(8))
        started = time.perf_counter()
        with LocalCluster(Path(directory), spec) as cluster:
            up_s = time.perf_counter() - started
            gaps = sorted(asyncio.run(trials(cluster, options.trials)))
    summary = {
        "trials": len(gaps),
        "p50_ms": round(gaps[len(gaps) // 2], 1),
        "p90_ms": round(gaps[len(gaps) * 9 // 10], 1),
        "max_ms": round(gaps[-1], 1),
        "up_to_serving_s": round(up_s, 2),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
