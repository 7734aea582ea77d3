"""The whole table of figures, from one run on one machine, beside the limit program's.

    make bench                                   about ten minutes, written to build/bench.json
    python benchmarks/table.py --quick           one small round of everything: does it work?

Each case runs in turns with the limit program (`limit.py`: the same bytes to two peers, synced,
with nothing around them), so that a disk that is busy for a while spoils both. Figures are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import failover
import limit
import single

from cli.bench import run_cases
from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from dledger.bench import Load


class Goal(NamedTuple):
    """What a row should reach: at least, or at most, this value of a figure."""

    figure: str
    value: float
    at_most: bool = False


class Row(NamedTuple):
    """A line of the table that `dledger bench` can measure."""

    name: str
    case: str
    goals: tuple[Goal, ...]
    load: dict[str, Any]


ROWS = (
    Row("send, 1 KiB", "send", (Goal("messages_per_s", 120_000),), {"size_bytes": 1024}),
    Row("send, 128 B", "send", (Goal("messages_per_s", 250_000),), {"size_bytes": 128}),
    Row("batches of 100, 1 KiB", "batch", (Goal("megabytes_per_s", 200),), {"window": 1600}),
    Row(
        "one send after the other",
        "latency",
        (Goal("p50_ms", 0.6, at_most=True), Goal("p99_ms", 2.0, at_most=True)),
        {},
    ),
    Row(
        "end to end at 1,000/s",
        "end-to-end",
        (Goal("p50_ms", 1.5, at_most=True), Goal("p99_ms", 5.0, at_most=True)),
        {"rate_per_s": 1000.0},
    ),
    Row("read a backlog, 1 KiB", "read", (Goal("messages_per_s", 150_000),), {}),
    Row("the same, raw", "raw", (Goal("megabytes_per_s", 400),), {}),
    Row("fan-out to 10 groups", "fan-out", (Goal("messages_per_s", 300_000),), {}),
)


def resident_mb(pid: int) -> float:
    """Returns the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def servers(cluster: LocalCluster) -> dict[str, int]:
    """Returns the process ids of all servers that run."""
    names = ["nameserver-0", *(f"broker-a-{number}" for number in range(3))]
    return {name: pid for name in names if (pid := cluster.pid(name)) is not None}


def at_rest(cluster: LocalCluster, seconds: float) -> Iterator[dict[str, Any]]:
    """Yields what the cluster uses while nobody uses it."""
    time.sleep(3)  # what starting has left to do
    before = {name: single.cpu_seconds(pid) for name, pid in servers(cluster).items()}
    time.sleep(seconds)
    used = sum(single.cpu_seconds(pid) - before[name] for name, pid in servers(cluster).items())
    yield line("idle processor, all servers", "percent of a core", used / seconds * 100, 3, True)
    yield line("memory of a broker, idle", "MB", memory(cluster), 60, True)


def memory(cluster: LocalCluster) -> float:
    """Returns the largest resident memory of a broker in MB."""
    found = servers(cluster).items()
    return max(resident_mb(pid) for name, pid in found if name.startswith("broker"))


def line(
    name: str, figure: str, value: float, goal: float | None, at_most: bool = False, **more: Any
) -> dict[str, Any]:
    """Returns a line of the result."""
    reached = None if goal is None else (value <= goal if at_most else value >= goal)
    return {
        "name": name,
        "figure": figure,
        "value": round(value, 2),
        "goal": goal,
        "reached": reached,
        **more,
    }


def measure_row(row: Row, base: Load, rounds: int, limit_mb: int) -> Iterator[dict[str, Any]]:
    """Yields the figures of a case, in turns with the limit program."""
    load = dataclasses.replace(base, **row.load)
    ceilings, figures = [], []
    for _ in range(rounds):
        window_bytes = max(limit.READ_BYTES, load.window * load.size_bytes)
        ceilings.append(limit.measure(limit_mb, 64 * 1024, window_bytes)["megabytes_per_s"])
        figures.append(run_cases([row.case], load)[0].as_dict())
    ceiling = statistics.median(ceilings)
    rate = statistics.median(float(str(entry["megabytes_per_s"])) for entry in figures)
    for goal in row.goals:
        value = statistics.median(float(str(entry[goal.figure])) for entry in figures)
        more = {"limit_megabytes_per_s": ceiling}
        if not goal.at_most and row.case in ("send", "batch"):
            more["ratio_to_limit"] = round(rate / ceiling, 3)
        yield line(row.name, goal.figure, value, goal.value, goal.at_most, **more)


def one_a_request(
    cluster: LocalCluster, size: int, goal: float, messages: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yields the rate of sends with one message each, as official clients send."""
    topic = f"single-{size}"
    address = asyncio.run(single.leader_of(cluster.nameserver, topic, 4))
    options = argparse.Namespace(queues=4, size=size, messages=messages, window=1000)
    rates = [
        asyncio.run(single.send(address, topic, options))["messages_per_s"] for _ in range(rounds)
    ]
    name = f"one message a request, {size} B"
    yield line(name, "messages_per_s", statistics.median(rates), goal)


def silent_leader(cluster: LocalCluster, trials: int) -> list[float]:
    """Returns the pauses, in ms, when the leader stands still without closing connections."""
    return asyncio.run(failover.trials(cluster, trials, signal.SIGSTOP))


def table(cluster: LocalCluster, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields all lines; the cluster holds ever more messages meanwhile."""
    yield from at_rest(cluster, options.idle_s)
    load = Load(nameserver=cluster.nameserver, topic="bench", messages=options.messages)
    for row in ROWS:
        yield from measure_row(row, load, options.rounds, options.limit_megabytes)
    for size, goal in ((1024, 60_000), (128, 70_000)):
        yield from one_a_request(cluster, size, goal, options.messages, options.rounds)
    yield line("memory of a broker, after all that", "MB", memory(cluster), 250, True)
    gaps = sorted(asyncio.run(failover.trials(cluster, options.trials)))
    yield line("leader killed, p50", "ms", statistics.median(gaps), 200, True)
    yield line("leader killed, max", "ms", gaps[-1], 600, True)
    gaps = sorted(silent_leader(cluster, max(1, options.trials // 3)))
    yield line("leader silent, max", "ms", gaps[-1], 1200, True)


def markdown(lines: list[dict[str, Any]]) -> str:
    """Returns the table for people."""
    rows = [
        "| case | figure | measured | goal | ratio to the limit program |",
        "|---|---|---|---|---|",
    ]
    for entry in lines:
        mark = {True: " (reached)", False: "", None: ""}[entry["reached"]]
        ratio = entry.get("ratio_to_limit", "")
        rows.append(
            f"| {entry['name']} | {entry['figure']} | {entry['value']:,} "
            f"| {entry['goal']:,}{mark} | {ratio} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measures, prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--idle-s", type=float, default=10.0)
    parser.add_argument("--limit-megabytes", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="small: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    if options.quick:
        options.messages, options.rounds, options.trials = 2000, 1, 1
        options.idle_s, options.limit_megabytes = 1.0, 20
    lines = []
    with (
        tempfile.TemporaryDirectory(prefix="dledger-bench-") as directory,
        LocalCluster(Path(directory), ClusterSpec(port_base=free_port_base(8))) as cluster,
    ):
        for entry in table(cluster, options):
            print(json.dumps(entry), flush=True)
            lines.append(entry)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg(),
    }
    options.out.write_text(json.dumps({**machine, "lines": lines}, indent=1) + "\n")
    print(markdown(lines))


if __name__ == "__main__":
    main()
