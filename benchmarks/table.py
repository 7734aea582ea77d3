"""The whole table of figures, from one run on one machine, beside the limit program's.

    make bench                                   about a quarter of an hour, to build/bench.json
    make bench WRITE=--write                     and into docs/performance.md
    python benchmarks/table.py --rows paced,batch
    python benchmarks/table.py --quick           one small round of everything: does it work?

Each case runs in turns with the limit program (`limit.py`: the same bytes to two peers, synced,
with nothing around them), so that a disk that is busy for a while spoils both. Figures are medians.
A rate is compared with the bytes that the limit program moves in the same window, a latency with
that of a lone group of 1 KiB.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import failover, limit, machine, single, slow_follower
from cli.bench import run_cases
from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from dledger.bench import Load
from dledger.client.sync_admin import Admin
from interop.table import replace_between

MIB = 1024 * 1024
# `dledger bench` sends or reads so many times fewer messages in these cases than it is told.
PACED_FEWER = 10
STORED_OVERHEAD_BYTES = 400  # of a message in the log and in the state, more than it is


class Goal(NamedTuple):
    """What a row should reach: at least, or at most, this value of a figure."""

    figure: str
    value: float
    at_most: bool = False


class Row(NamedTuple):
    """A line of the table that `dledger bench` can measure.

    `topic` keeps messages of one size together, for those who read them back.
    """

    name: str
    case: str
    goals: tuple[Goal, ...]
    load: dict[str, Any]
    topic: str = "bench"


Lines = Iterator[dict[str, Any]]

CASES = {
    "send-1k": Row("send, 1 KiB", "send", (Goal("messages_per_s", 120_000),), {}),
    "send-128": Row(
        "send, 128 B", "send", (Goal("messages_per_s", 250_000),), {"size_bytes": 128}, "bench-128"
    ),
    "batch": Row(
        "batches of 100, 1 KiB",
        "batch",
        (Goal("megabytes_per_s", 200), Goal("ratio_to_limit", 0.6)),
        {"window": 1600},
    ),
    "latency": Row(
        "one send after the other",
        "latency",
        (Goal("p50_ms", 0.6, at_most=True), Goal("p99_ms", 2.0, at_most=True)),
        {},
    ),
    "end-to-end": Row(
        "end to end at 1,000/s",
        "end-to-end",
        (Goal("p50_ms", 1.5, at_most=True), Goal("p99_ms", 5.0, at_most=True)),
        {"rate_per_s": 1000.0},
        "bench-end-to-end",
    ),
    "read-1k": Row(
        "read a backlog, 1 KiB", "read", (Goal("messages_per_s", 150_000),), {}, "read-1024"
    ),
    "read-128": Row(
        "read a backlog, 128 B",
        "read",
        (Goal("messages_per_s", 250_000),),
        {"size_bytes": 128},
        "read-128",
    ),
    "raw": Row("the same, raw, 1 KiB", "raw", (Goal("megabytes_per_s", 400),), {}, "read-1024"),
    "fan-out": Row(
        "fan-out to 10 groups", "fan-out", (Goal("messages_per_s", 300_000),), {}, "bench-fan-out"
    ),
}
READING = ("read", "raw")
FIGURES = {
    "messages_per_s": "messages/s",
    "megabytes_per_s": "MB/s",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "max_ms": "maximum, ms",
    "ratio_to_limit": "ratio to the limit program",
}
PAGE = machine.ROOT / "docs" / "performance.md"


def resident_mb(pid: int) -> float:
    """Returns the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def private_mb(pid: int) -> float:
    """Returns the part of it that is not pages of files, which the system takes back at will."""
    for text in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = text.partition(":")
        if name == "RssAnon":
            return round(int(rest.split()[0]) * 1024 / 1e6, 1)
    raise ValueError(f"process {pid} does not say what memory it uses")


def servers(cluster: LocalCluster) -> dict[str, int]:
    """Returns the process ids of all servers that run."""
    names = ["nameserver-0", *(f"broker-a-{number}" for number in range(3))]
    return {name: pid for name in names if (pid := cluster.pid(name)) is not None}


def memory(cluster: LocalCluster, of: Callable[[int], float] = resident_mb) -> float:
    """Returns the largest memory of a broker in MB."""
    found = servers(cluster).items()
    return max(of(pid) for name, pid in found if name.startswith("broker"))


def line(
    name: str, figure: str, value: float, goal: float | None, at_most: bool = False, **more: Any
) -> dict[str, Any]:
    """Returns a line of the result."""
    reached = None if goal is None else (value <= goal if at_most else value >= goal)
    return {
        "name": name,
        "figure": figure,
        "value": round(value, 3 if figure == "ratio_to_limit" else 2),
        "goal": goal,
        "reached": reached,
        **more,
    }


@contextmanager
def fresh_cluster() -> Iterator[LocalCluster]:
    """A cluster of three replicas with nothing in it; its data goes with it."""
    with (
        tempfile.TemporaryDirectory(prefix="dledger-bench-") as directory,
        LocalCluster(Path(directory), ClusterSpec(port_base=free_port_base(8))) as cluster,
    ):
        yield cluster


def base_load(cluster: LocalCluster, options: argparse.Namespace) -> Load:
    """Returns the load that rows vary."""
    return Load(nameserver=cluster.nameserver, messages=options.messages)


# --- rows -------------------------------------------------------------------------------------


def at_rest(cluster: LocalCluster, options: argparse.Namespace) -> Lines:
    """Yields what the cluster uses while nobody uses it."""
    time.sleep(3)  # what starting has left to do
    before = {name: single.cpu_seconds(pid) for name, pid in servers(cluster).items()}
    time.sleep(options.idle_s)
    used = sum(single.cpu_seconds(pid) - before[name] for name, pid in servers(cluster).items())
    share = used / options.idle_s * 100
    yield line("idle processor, all servers", "percent of a core", share, 3, True)
    yield line("memory of a broker, idle", "MB", memory(cluster), 60, True)


def measure_row(row: Row, cluster: LocalCluster, options: argparse.Namespace) -> Lines:
    """Yields the figures of a case, in turns with the limit program."""
    load = dataclasses.replace(base_load(cluster, options), topic=row.topic, **row.load)
    if row.case in READING:
        fill(load)
    ceilings, figures = [], []
    for _ in range(options.rounds):
        ceilings.append(limit_of(load, options))
        figures.append(run_cases([row.case], load)[0].as_dict())
    rate = middle(figures, "megabytes_per_s") / middle(ceilings, "megabytes_per_s")
    for goal in row.goals:
        is_latency = goal.figure.endswith("_ms")
        value = rate if goal.figure == "ratio_to_limit" else middle(figures, goal.figure)
        limit_name = goal.figure if is_latency else "megabytes_per_s"
        ceiling = middle(ceilings, limit_name)
        more = {
            f"limit_{limit_name}": ceiling,
            "ratio_to_limit": round(value / ceiling if is_latency else rate, 3),
        }
        yield line(row.name, goal.figure, value, goal.value, goal.at_most, **more)


def fill(load: Load) -> None:
    """Sees to it that the topic holds what is to be read."""
    with Admin(nameserver=load.nameserver) as admin:
        held = 0
        if load.topic in admin.topics():
            queues = admin.queues(load.topic)
            held = sum(admin.offset_max(queue) - admin.offset_min(queue) for queue in queues)
    if held < load.messages:
        run_cases(["batch"], dataclasses.replace(load, messages=load.messages + load.batch))


def limit_of(load: Load, options: argparse.Namespace) -> dict[str, float]:
    """Returns the limit program's MB/s with the same window, and its latency of a lone group."""
    window_bytes = max(limit.READ_BYTES, load.window * load.size_bytes)
    most = limit.measure(options.limit_megabytes, 64 * 1024, window_bytes)
    lone = limit.measure(1, 1024, 1024)
    return {
        "megabytes_per_s": most["megabytes_per_s"],
        "p50_ms": lone["group_p50_ms"],
        "p99_ms": lone["group_p99_ms"],
    }


def middle(figures: list[dict[str, Any]], name: str) -> float:
    """Returns the median of a figure."""
    return statistics.median(float(entry[name]) for entry in figures)


def paced(cluster: LocalCluster, options: argparse.Namespace) -> Lines:
    """Yields the latency at half of the rate that the same producer reaches at most."""
    load = base_load(cluster, options)
    maxima, figures = [], []
    for _ in range(options.rounds):
        maxima.append(run_cases(["send"], load)[0].messages_per_s)
        offered = maxima[-1] / 2
        count = int(offered * options.paced_s) * PACED_FEWER
        half = dataclasses.replace(load, rate_per_s=offered, messages=max(1, count))
        figures.append(run_cases(["paced"], half)[0].as_dict())
    more = {
        "offered_per_s": round(statistics.median(maxima) / 2),
        "achieved_per_s": middle(figures, "messages_per_s"),
        "p50_ms": middle(figures, "p50_ms"),
        "max_ms": max(float(str(entry["max_ms"])) for entry in figures),
    }
    name = "send at half of the maximum rate, 1 KiB"
    yield line(name, "p99_ms", middle(figures, "p99_ms"), 15, True, **more)


def one_a_request(
    size: int, goal: float, cluster: LocalCluster, options: argparse.Namespace
) -> Lines:
    """Yields the rate of sends with one message each, as official clients send."""
    topic = f"single-{size}"
    address = asyncio.run(single.leader_of(cluster.nameserver, topic, 4))
    shape = argparse.Namespace(queues=4, size=size, messages=options.messages, window=1000)
    load = dataclasses.replace(base_load(cluster, options), size_bytes=size)
    ceilings, rates = [], []
    for _ in range(options.rounds):
        ceilings.append(limit_of(load, options))
        rates.append(asyncio.run(single.send(address, topic, shape))["messages_per_s"])
    ceiling, rate = middle(ceilings, "megabytes_per_s"), statistics.median(rates)
    more = {
        "limit_megabytes_per_s": ceiling,
        "ratio_to_limit": round(rate * size / 1e6 / ceiling, 3),
    }
    yield line(f"one message a request, {size} B", "messages_per_s", rate, goal, **more)


def after_many(_: LocalCluster, options: argparse.Namespace) -> Lines:
    """Yields the memory of brokers that have taken many messages, on a cluster of its own."""
    count, size = options.many, 128
    wanted = 3 * 2 * count * (size + STORED_OVERHEAD_BYTES)
    machine.need_disk(Path(tempfile.gettempdir()), wanted, f"{count:,} messages")
    with fresh_cluster() as cluster:
        load = Load(
            nameserver=cluster.nameserver,
            messages=count,
            size_bytes=size,
            topic="many",
            window=4000,
        )
        figures = run_cases(["batch"], load)[0].as_dict()
        time.sleep(3)  # followers apply the last of them
        more = {"private_mb": memory(cluster, private_mb)}
        name = f"memory of a broker, after {figures['messages']:,} messages"
        yield line(name, "MB", memory(cluster), 250, True, **more)


def outage(_: LocalCluster, options: argparse.Namespace) -> Lines:
    """Yields the memory while a follower stands still under load, on a cluster of its own."""
    with fresh_cluster() as cluster:
        with Admin(nameserver=cluster.nameserver) as admin:
            admin.create_topic("t", queue_count=1)
        found = slow_follower.measure(cluster, options.outage_s, 4000)
    names = (
        "leader_rss_max_while_stopped_mib",
        "leader_rss_max_while_catching_up_mib",
        "follower_rss_max_mib",
    )
    value = max(float(str(found[name])) for name in names) * MIB / 1e6
    name = "memory of a broker, a follower standing still"
    yield line(name, "MB", value, 300, True, **found)


def leader_killed(cluster: LocalCluster, options: argparse.Namespace) -> Lines:
    """Yields the pauses of a producer when the leader is killed."""
    gaps = sorted(asyncio.run(failover.trials(cluster, options.trials)))
    yield line("leader killed", "p50_ms", statistics.median(gaps), 200, True)
    yield line("leader killed", "max_ms", gaps[-1], 600, True)


def leader_silent(cluster: LocalCluster, options: argparse.Namespace) -> Lines:
    """Yields the pause when the leader stands still without closing connections."""
    count = max(1, options.trials // 3)
    gaps = sorted(asyncio.run(failover.trials(cluster, count, signal.SIGSTOP)))
    yield line("leader silent", "max_ms", gaps[-1], 1200, True)


ROWS: dict[str, Callable[[LocalCluster, argparse.Namespace], Lines]] = {
    "idle": at_rest,
    **{name: functools.partial(measure_row, row) for name, row in CASES.items()},
    "paced": paced,
    "single-1k": functools.partial(one_a_request, 1024, 60_000),
    "single-128": functools.partial(one_a_request, 128, 70_000),
    "leader-killed": leader_killed,
    "leader-silent": leader_silent,
    "outage": outage,
    "many": after_many,
}


# --- the run ----------------------------------------------------------------------------------


def markdown(lines: list[dict[str, Any]]) -> str:
    """Returns the table for people."""
    rows = [
        "| case | figure | measured | goal | ratio to the limit program |",
        "|---|---|---|---|---|",
    ]
    for entry in lines:
        mark = {True: " (reached)", False: "", None: ""}[entry["reached"]]
        ratio = entry.get("ratio_to_limit", "")
        figure = FIGURES.get(entry["figure"], entry["figure"])
        rows.append(
            f"| {entry['name']} | {figure} | {readable(entry['value'])} "
            f"| {entry['goal']:,}{mark} | {ratio} |"
        )
    return "\n".join(rows)


def readable(value: float) -> str:
    """Returns a figure with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:,}"


def chosen(text: str) -> list[str]:
    """Returns the rows to measure, in the order of the table."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(names - ROWS.keys())
    if unknown:
        raise argparse.ArgumentTypeError(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    return [name for name in ROWS if name in names]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=chosen, default=list(ROWS), metavar="NAME,...")
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--idle-s", type=float, default=10.0)
    parser.add_argument("--paced-s", type=float, default=5.0)
    parser.add_argument("--outage-s", type=float, default=30.0)
    parser.add_argument("--many", type=int, default=10_000_000)
    parser.add_argument("--limit-megabytes", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="small: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.messages, options.rounds, options.trials = 2000, 1, 1
        options.idle_s, options.paced_s, options.outage_s = 1.0, 0.5, 1.0
        options.limit_megabytes, options.many = 20, 20_000
    return options


def main() -> None:
    """Measures, prints the table and writes it as JSON."""
    options = parse()
    machine.stop_when_told()
    about = machine.facts()
    lines = []
    with fresh_cluster() as cluster:
        for row in options.rows:
            started = time.perf_counter()
            for entry in ROWS[row](cluster, options):
                print(json.dumps(entry), flush=True)
                lines.append({"row": row, **entry})
            print(f"{row}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": about, "lines": lines}, indent=1) + "\n")
    text = f"{markdown(lines)}\n\n{machine.describe(about)}"
    print(text)
    if options.write:
        page = replace_between(options.page.read_text(encoding="utf-8"), "table", text)
        options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
