"""How long a replica with a long log takes to serve again, and how much memory it has then.

The log is filled by a producer, the process is killed with SIGKILL and started again: the time
from the start of the process until it serves, with a warm and (as root) a cold page cache, and its
memory when idle and after reading the oldest and the newest messages.

.venv/bin/python benchmarks/restart.py --gib 0.1 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from dledger import AsyncAdmin, AsyncProducer, Message
from dledger.client.config import ProducerConfig
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.model import MessageQueue

GIB = 1024**3
MIB = 1024**2
QUEUE_COUNT = 4
REPLICA = "broker-a-0"


def memory_mib(pid: int) -> dict[str, int]:
    """Resident memory, and the part of it that is not pages of files."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "RssAnon"):
            found[name] = round(int(rest.split()[0]) / 1024)
    return found


def log_bytes(cluster: LocalCluster) -> int:
    return cluster.status().groups[0].replica(REPLICA).log_bytes or 0


async def fill(cluster: LocalCluster, wanted_bytes: int, body_bytes: int) -> int:
    async with AsyncAdmin(nameserver=cluster.nameserver) as admin:
        await admin.create_topic("t", queue_count=QUEUE_COUNT)
    config = ProducerConfig(compress_min_bytes=0, send_timeout_s=60)
    body = os.urandom(body_bytes)
    count = 0
    async with AsyncProducer("p", nameserver=cluster.nameserver, config=config) as producer:
        while log_bytes(cluster) < wanted_bytes:
            for _ in range(20_000):
                future = producer.send(Message("t", body), queue=count % QUEUE_COUNT)
                future.add_done_callback(asyncio.Future.result)
                count += 1
                await producer.wait_room()
            await producer.wait_idle()
    return count


async def read_ends(cluster: LocalCluster, count: int) -> int:
    """Reads some of the oldest and of the newest messages."""
    found = 0
    async with AsyncPullConsumer("g", nameserver=cluster.nameserver) as consumer:
        for queue_id in range(QUEUE_COUNT):
            queue = MessageQueue("t", "broker-a", queue_id)
            end = await consumer.offset_max(queue)
            for start in (0, max(0, end - count)):
                consumer.seek(queue, start)
                left = min(count, end)
                while left > 0:
                    messages = await consumer.pull(queue, count_max=left, timeout_s=5)
                    left -= len(messages)
                    found += len(messages)
    return found


def restart(cluster: LocalCluster, *, cold: bool) -> float:
    """Kills the replica, starts it; returns the seconds until it serves."""
    cluster.kill(REPLICA)
    if cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    began = time.monotonic()
    cluster.start_one(REPLICA)
    while cluster.leader() is None:
        if time.monotonic() - began > 600:
            raise SystemExit("does not serve after 600 s")
        time.sleep(0.01)
    return time.monotonic() - began


def measure(gib: float, body_bytes: int, trials: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="dledger-bench-") as directory:
        spec = ClusterSpec(replicas=1, port_base=free_port_base(3))
        with LocalCluster(Path(directory) / "data", spec) as cluster:
            began = time.monotonic()
            count = asyncio.run(fill(cluster, int(gib * GIB), body_bytes))
            filled_s = time.monotonic() - began
            held = log_bytes(cluster)
            warm = [restart(cluster, cold=False) for _ in range(trials)]
            cold = [restart(cluster, cold=True) for _ in range(trials)] if os.geteuid() == 0 else []
            time.sleep(1)
            pid = cluster.pid(REPLICA) or 0
            idle = memory_mib(pid)
            asyncio.run(read_ends(cluster, 20_000))
            after_reading = memory_mib(pid)
            state = cluster.directory / REPLICA / "state"
            return {
                "log_gib": round(held / GIB, 2),
                "messages": count,
                "segments": len(list((cluster.directory / REPLICA / "log").glob("*[0-9]"))),
                "state_mib": round(sum(f.stat().st_blocks * 512 for f in state.iterdir()) / MIB),
                "filled_s": round(filled_s, 1),
                "restart_warm_s": [round(value, 2) for value in warm],
                "restart_cold_s": [round(value, 2) for value in cold],
                "idle_mib": idle,
                "after_reading_mib": after_reading,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gib", type=float, nargs="+", default=[0.1, 5.0])
    parser.add_argument("--body-bytes", type=int, default=1024)
    parser.add_argument("--trials", type=int, default=3)
    options = parser.parse_args()
    for gib in options.gib:
        print(json.dumps(measure(gib, options.body_bytes, options.trials)), flush=True)


if __name__ == "__main__":
    main()
