"""One Python producer against three replicas, beside the limit program, in turns.

.venv/bin/python benchmarks/produce.py --messages 200000 --size 1024 --window 1000 --rounds 3

With --compare, every round is also measured with a producer whose messages are not numbered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from limit import measure as measure_limit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from dledger import AsyncAdmin, AsyncProducer, Message
from dledger.client.config import ProducerConfig


async def produce(
    nameserver: str, topic: str, count: int, size: int, window: int, *, idempotent: bool = True
) -> dict:
    body = b"x" * size
    latencies: list[float] = []
    add = latencies.append
    clock = time.perf_counter
    config = ProducerConfig(in_flight_max=window, idempotent=idempotent)
    async with AsyncProducer("bench", nameserver=nameserver, config=config) as producer:
        await producer.send(Message(topic, body))

        async def sender(share: int) -> None:
            for _ in range(share):
                started = clock()
                await producer.send(Message(topic, body))
                add(clock() - started)

        started = clock()
        await asyncio.gather(*(sender(count // window) for _ in range(window)))
        seconds = clock() - started
    latencies.sort()
    return {
        "messages_per_s": round(len(latencies) / seconds),
        "megabytes_per_s": round(len(latencies) * size / seconds / 1e6, 1),
        "p50_ms": round(latencies[len(latencies) // 2] * 1000, 2),
        "p99_ms": round(latencies[len(latencies) * 99 // 100] * 1000, 2),
    }


async def create_topic(nameserver: str, topic: str, queues: int) -> None:
    async with AsyncAdmin(nameserver=nameserver) as admin:
        await admin.create_topic(topic, queue_count=queues)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--window", type=int, default=1000)
    parser.add_argument("--queues", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args()
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    ours, limits, plain = [], [], []
    with tempfile.TemporaryDirectory(prefix="dledger-bench-") as directory:
        spec = ClusterSpec(replicas=options.replicas, port_base=free_port_base(8))
        with LocalCluster(Path(directory), spec) as cluster:
            nameserver = cluster.nameserver
            run(create_topic(nameserver, "bench", options.queues))
            shape = (nameserver, "bench", options.messages, options.size, options.window)
            for number in range(options.rounds):
                limits.append(measure_limit(300, 64 * 1024, options.window * options.size))
                print("limit ", json.dumps(limits[-1]), flush=True)
                # In turns, each kind first as often as last.
                kinds = [True, False] if number % 2 else [False, True]
                for idempotent in kinds if options.compare else [True]:
                    measured = run(produce(*shape, idempotent=idempotent))
                    (ours if idempotent else plain).append(measured)
                    print("broker" if idempotent else "plain ", json.dumps(measured), flush=True)
    rate = statistics.median(item["megabytes_per_s"] for item in ours)
    limit = statistics.median(item["megabytes_per_s"] for item in limits)
    summary = {
        "messages_per_s": statistics.median(item["messages_per_s"] for item in ours),
        "megabytes_per_s": rate,
        "p50_ms": statistics.median(item["p50_ms"] for item in ours),
        "p99_ms": statistics.median(item["p99_ms"] for item in ours),
        "limit_megabytes_per_s": limit,
        "ratio_to_limit": round(rate / limit, 3),
    }
    if plain:
        rates = [item["messages_per_s"] for item in plain]
        summary["plain_messages_per_s"] = statistics.median(rates)
        summary["ratio_to_plain"] = round(
            summary["messages_per_s"] / summary["plain_messages_per_s"], 3
        )
    print("median", json.dumps(summary))


if __name__ == "__main__":
    main()
