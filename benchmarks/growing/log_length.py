"""The experiment on the log's length: one log grows, and at each length everything is measured."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.growing.clusters import (
    STORED_OVERHEAD_BYTES,
    cluster_of,
    fail_overs_ms,
    in_turns,
    log_bytes,
    read_bytes,
    start_ups_s,
)
from benchmarks.growing.other_reader import OtherReader
from benchmarks.growing.results import Check, Outcome, Plot, Point, Series, Setup
from cli.bench import run_cases
from cli.cluster import LocalCluster
from dledger.bench import Load

TOPIC = "growth"
GB = 1e9
BODY_BYTES = 1024
# So much of a log is body: the rest are headers, properties and the index of each entry.
STORED_SHARE = 0.75
SHARES = (0.03, 0.1, 0.2, 0.4, 0.7, 1.0)  # of the final length
PACED_MB_PER_S = 50.0
FASTEST_PER_S = 100_000
TAIL_LOSS_MAX_PERCENT = 20.0


def log_length(setup: Setup) -> Outcome:
    """Fills a log and measures on the way."""
    disk_bytes = stored_bytes(setup) * (1 + STORED_OVERHEAD_BYTES / BODY_BYTES / 2)
    with cluster_of(setup, disk_bytes=disk_bytes) as cluster:
        load = Load(nameserver=cluster.nameserver, topic=TOPIC, messages=setup.messages)
        lengths = [Length(setup, cluster, load, share * setup.log_gb) for share in wanted(setup)]
        for length in lengths:
            length.measure()
    return Outcome(plots=list(plots(lengths)), checks=checks(lengths))


def stored_bytes(setup: Setup) -> float:
    """Returns the log's length in the end at most: measuring at each length adds to it."""
    published = (setup.rounds + 2) * setup.messages + 3 * setup.phase_s * FASTEST_PER_S
    added = published * BODY_BYTES / STORED_SHARE
    return max(setup.log_gb * GB, len(wanted(setup)) * added) + added


def wanted(setup: Setup) -> list[float]:
    """Returns the lengths to measure at, as shares of the last one."""
    return [0.5, 1.0] if setup.quick else list(SHARES)


class Length:
    """What is measured at one length of the log."""

    def __init__(self, setup: Setup, cluster: LocalCluster, load: Load, gb: float) -> None:
        self._setup = setup
        self._cluster = cluster
        self._load = load
        self._gb = gb
        self.gb = self.limit = self.start_s = 0.0
        self.tails: dict[str, float] = {}
        self.head_mb_per_s = 0.0
        self.head_disk_mb_per_s = 0.0
        self.pauses_ms: list[float] = []

    def measure(self) -> None:
        """Fills the log up to here, then measures."""
        setup, cluster = self._setup, self._cluster
        self._fill()
        before = log_bytes(cluster)
        alone, self.limit = in_turns(setup, self._load, self._publish)
        warm = self._tail_while("tail", PACED_MB_PER_S)
        cold = self._tail_while("head", PACED_MB_PER_S)
        full = self._tail_while("head", None)
        # Once before and once after the readers: what changes by itself is not theirs.
        alone = statistics.mean((alone, self._publish()))
        self.tails = {"alone": alone, "warm": warm["tail"], "cold": cold["tail"]}
        self.tails["full"] = full["tail"]
        self.head_mb_per_s = full["read"]
        self.head_disk_mb_per_s = full["disk"]
        self.gb = (before + log_bytes(cluster)) / 2 / GB
        self.start_s = statistics.median(start_ups_s(cluster, setup.trials))
        self.pauses_ms = fail_overs_ms(cluster, setup.trials)
        setup.say(
            f"{self.gb:.2f} GB: {alone:,.0f} messages/s, head {self.head_mb_per_s:.0f} MB/s "
            f"({self.head_disk_mb_per_s:.0f} from the disk), tail beside it {full['tail']:,.0f}/s, "
            f"start {self.start_s:.2f} s, fail-over {statistics.median(self.pauses_ms):.0f} ms"
        )

    def _fill(self) -> None:
        while (left := self._gb * GB - log_bytes(self._cluster)) > 0:
            count = max(1000, int(left * STORED_SHARE / BODY_BYTES))
            run_cases(["batch"], dataclasses.replace(self._load, messages=count, window=1600))

    def _publish(self) -> float:
        return run_cases(["send"], self._load)[0].messages_per_s

    def _tail_while(self, where: str, mb_per_s: float | None) -> dict[str, float]:
        """Returns the publish rate while another process reads at one end of the log."""
        forget_pages(self._cluster)
        pids = [self._cluster.pid(replica.id) or 0 for _, replica in self._replicas()]
        with OtherReader(self._cluster.nameserver, TOPIC, where, mb_per_s) as reader:
            before, begun = sum(map(read_bytes, pids)), time.perf_counter()
            rates = [self._publish()]
            while time.perf_counter() - begun < self._setup.phase_s:
                rates.append(self._publish())
            seconds = time.perf_counter() - begun
            from_disk = sum(map(read_bytes, pids)) - before
            read = reader.stop()
        return {
            "tail": statistics.median(rates),
            "read": read,
            "disk": from_disk / 1e6 / seconds,
        }

    def _replicas(self) -> Iterator[tuple[Any, Any]]:
        return self._cluster.layout.replicas()


def forget_pages(cluster: LocalCluster) -> None:
    """Asks the system to drop what it holds in memory of the logs: what nobody has mapped."""
    for _, replica in cluster.layout.replicas():
        for path in sorted(Path(cluster.directory, replica.id, "log").glob("[0-9]*")):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def plots(lengths: list[Length]) -> Iterator[Plot]:
    """Yields the plots of a log's lengths."""
    x_label = "GB of log on each replica"
    to_messages = 1e6 / BODY_BYTES
    tails = {
        "alone": "nobody reads",
        "warm": f"a reader of the newest messages, {PACED_MB_PER_S:.0f} MB/s",
        "cold": f"a reader of the oldest messages, {PACED_MB_PER_S:.0f} MB/s",
        "full": "a reader of the oldest messages, as fast as it can",
    }
    yield Plot(
        name="log-publish",
        title="Publishing to a longer log, 1 KiB",
        x_label=x_label,
        y_label="messages/s",
        series=[
            Series(
                name=text,
                points=[
                    Point(
                        x=length.gb,
                        y=length.tails[name],
                        limit=length.limit * to_messages if name == "alone" else None,
                    )
                    for length in lengths
                ],
            )
            for name, text in tails.items()
        ],
    )
    heads = [
        Point(
            x=length.gb,
            y=length.head_mb_per_s,
            more={"mb_per_s_from_disk": round(length.head_disk_mb_per_s, 1)},
        )
        for length in lengths
    ]
    yield Plot(
        name="log-head",
        title="Reading the oldest messages while others are published",
        x_label=x_label,
        y_label="MB/s of stored messages",
        series=[Series(name="raw pulls from the leader, one reader", points=heads)],
    )
    starts = [Point(x=length.gb, y=length.start_s) for length in lengths]
    yield Plot(
        name="log-start",
        title="Start of a follower, kill -9 before",
        x_label=x_label,
        y_label="seconds until it is level with the leader",
        series=[Series(name="start of a follower", points=starts)],
    )
    pauses = [
        Point(
            x=length.gb,
            y=statistics.median(length.pauses_ms),
            more={"max_ms": round(max(length.pauses_ms), 1)},
        )
        for length in lengths
    ]
    yield Plot(
        name="log-fail-over",
        title="Leader killed to the next acknowledged send",
        x_label=x_label,
        y_label="ms",
        series=[Series(name="median", points=pauses)],
    )


def checks(lengths: list[Length]) -> list[Check]:
    """Returns what cold readers may cost, at the greatest length."""
    tails = lengths[-1].tails
    bar = TAIL_LOSS_MAX_PERCENT
    place = f"at {lengths[-1].gb:.1f} GB, {PACED_MB_PER_S:.0f} MB/s read"
    return [
        Check(
            name=f"slower publishing by a cold reader than by a warm one, percent, {place}",
            value=round((1 - tails["cold"] / tails["warm"]) * 100, 1),
            goal=bar,
        ),
        Check(
            name=f"slower publishing by a cold reader than by none, percent, {place}",
            value=round((1 - tails["cold"] / tails["alone"]) * 100, 1),
            goal=bar,
        ),
    ]
