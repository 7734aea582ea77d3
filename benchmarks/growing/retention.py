"""The experiment on retention: the oldest messages go while others are published at full speed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from pathlib import Path
from typing import NamedTuple, Self

from benchmarks.growing.clusters import (
    STORED_OVERHEAD_BYTES,
    WatchedCluster,
    cluster_of,
    limit_rate,
)
from benchmarks.growing.results import Check, Outcome, Plot, Point, Series, Setup
from benchmarks.growing.watched_broker import FILE
from cli.bench import run_cases
from cli.cluster import LocalCluster
from dledger.bench import Load
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.errors import OffsetOutOfRangeError

TOPIC = "growth"
MIB = 1024 * 1024
PAUSE_MAX_MS = 20.0
SETTLE_S = 20.0
# Of what retention keeps: how far the log has been turned over before its state must be level.
TURNOVERS = 2.0
WRITTEN_MIN = 3.0
SLOW_MAX = 5.0


class Sample(NamedTuple):
    """What the disk held at a moment, on the replica that held most."""

    at_s: float
    log_end: int
    log_bytes: int
    state_bytes: int


def retention(setup: Setup) -> Outcome:
    """Publishes until the log has been turned over several times."""
    kept, segment, seconds = (8 * MIB, MIB, 6.0) if setup.quick else (512 * MIB, 64 * MIB, 60.0)
    settings = {
        "store": {"retention_bytes": kept, "segment_bytes": segment, "snapshot_interval_s": 30.0},
        "timing": {"retention_check_s": 1.0 if setup.quick else 5.0},
    }
    disk_bytes = 4 * kept * (1 + STORED_OVERHEAD_BYTES / 1024) + 2e9
    with cluster_of(
        setup, disk_bytes=disk_bytes, kind=WatchedCluster, settings=settings
    ) as cluster:
        load = Load(nameserver=cluster.nameserver, topic=TOPIC, messages=setup.messages)
        limit = limit_rate(setup, load)
        rates = []
        with Watcher(cluster) as watcher:
            begun = time.monotonic()
            while (at := time.monotonic() - begun) < seconds or not watcher.has_written(
                WRITTEN_MIN * kept
            ):
                if at > SLOW_MAX * seconds:
                    raise TimeoutError(f"so little was written in {at:.0f} s that nothing went")
                rate = run_cases(["send"], load)[0].messages_per_s
                rates.append(Point(x=max(at, 0.1), y=rate, limit=limit * 1e6 / load.size_bytes))
            ended = time.monotonic()
            wait_trimmed(cluster, kept + 2 * segment)
        told = asyncio.run(is_told(cluster.nameserver))
        pauses = {
            replica.id: pauses_of(cluster, replica.id, begun, ended)
            for _, replica in cluster.layout.replicas()
        }
    samples = watcher.samples
    for replica, found in pauses.items():
        setup.say(f"{replica}: longest pause {max(p.late_ms for p in found):.1f} ms")
    setup.say(f"written {samples[-1].log_end / 1e9:.2f} GB, kept {samples[-1].log_bytes / 1e6:.0f}")
    return Outcome(
        plots=[publish_plot(rates), space_plot(samples, kept), pause_plot(pauses, begun)],
        checks=checks(pauses, samples, kept, told),
    )


class Watcher:
    """Notes twice a second what the disk holds, from a thread."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.samples: list[Sample] = []
        self._cluster = cluster
        self._begun = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begins."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes a last sample and ends."""
        self._stopping.set()
        self._thread.join()
        self.samples.append(self._sample())

    def has_written(self, log_end: float) -> bool:
        """Returns whether the log has come so far."""
        return bool(self.samples) and self.samples[-1].log_end >= log_end

    def _run(self) -> None:
        while not self._stopping.wait(0.5):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        ends, logs, states = [], [], []
        for _, replica in self._cluster.layout.replicas():
            home = self._cluster.directory / replica.id
            files = segments(home)
            if not files:
                continue
            newest, size = files[-1]
            ends.append(int(newest.name) + size)
            logs.append(sum(size for _, size in files))
            states.append((home / "state" / "data.mdb").stat().st_blocks * 512)
        return Sample(time.monotonic() - self._begun, max(ends), max(logs), max(states))


def segments(home: Path) -> list[tuple[Path, int]]:
    """Returns a replica's files of the log with their sizes; the newest has its full size."""
    found = []
    for path in sorted((home / "log").glob("[0-9]" * 20)):
        try:
            found.append((path, path.stat().st_size))
        except FileNotFoundError:
            continue  # it has just gone
    return found


def wait_trimmed(cluster: LocalCluster, bytes_max: int) -> None:
    """Waits until every replica has dropped what retention lets go."""
    cluster.wait(
        lambda status: all(
            (replica.log_bytes or 0) <= bytes_max for replica in status.groups[0].replicas
        ),
        SETTLE_S,
    )


async def is_told(nameserver: str) -> bool:
    """Returns whether a reader of what is gone is told so, and can go on where the queue begins."""
    async with AsyncPullConsumer("growth-late", nameserver=nameserver) as consumer:
        for queue in await consumer.queues(TOPIC):
            if not await consumer.offset_max(queue):
                continue  # a short load does not come to every queue
            consumer.seek(queue, 0)
            try:
                await consumer.pull(queue, timeout_s=1.0)
            except OffsetOutOfRangeError:
                await consumer.seek_to_begin(queue)
                if await consumer.pull(queue, timeout_s=5.0):
                    continue
            return False
    return True


@dataclasses.dataclass(frozen=True)
class Pause:
    """The longest pause of a broker's loop in a second; see `watched_broker`."""

    second: int
    late_ms: float
    own_ms: float
    busy_ms: float


def pauses_of(cluster: LocalCluster, replica: str, begun: float, ended: float) -> list[Pause]:
    """Returns what a broker has noted in between."""
    lines = (cluster.directory / replica / FILE).read_text(encoding="ascii").splitlines()
    found = [Pause(**json.loads(line)) for line in lines]
    return [pause for pause in found if begun < pause.second < ended]


# --- from measurements to an outcome -------------------------------------------------------------


def publish_plot(rates: list[Point]) -> Plot:
    """The publish rate over time."""
    return Plot(
        name="retention-publish",
        title="Publishing while the oldest segments go, 1 KiB",
        x_label="seconds",
        y_label="messages/s",
        series=[Series(name="batched by the producer", points=rates)],
        over_time=True,
    )


def space_plot(samples: list[Sample], kept: int) -> Plot:
    """What the disk holds, against what was written."""
    points = [
        (sample.log_end / 1e9, sample.log_bytes / 1e6, sample.state_bytes / 1e6)
        for sample in samples
    ]
    level_from = TURNOVERS * kept / 1e9
    return Plot(
        name="retention-space",
        title=f"Space under retention of {kept / 1e6:.0f} MB",
        x_label="GB written to the log",
        y_label="MB on the disk of a replica",
        series=[
            Series(
                name="log",
                points=[Point(x=x, y=log) for x, log, _ in points],
                fit_from=level_from,
            ),
            Series(
                name="LMDB",
                points=[Point(x=x, y=state) for x, _, state in points],
                fit_from=level_from,
            ),
        ],
    )


def pause_plot(pauses: dict[str, list[Pause]], begun: float) -> Plot:
    """The longest pause of each second."""
    return Plot(
        name="retention-pauses",
        title="Longest pause of the event loop in each second",
        x_label="seconds",
        y_label="ms",
        series=[
            Series(
                name=replica,
                points=[
                    Point(
                        x=pause.second - begun,
                        y=pause.late_ms,
                        more={"own_ms": pause.own_ms, "busy_ms": pause.busy_ms},
                    )
                    for pause in found
                ],
            )
            for replica, found in pauses.items()
        ],
        bound=PAUSE_MAX_MS,
        over_time=True,
    )


def checks(
    pauses: dict[str, list[Pause]], samples: list[Sample], kept: int, told: bool
) -> list[Check]:
    """Returns the goals of retention."""
    every = [pause for found in pauses.values() for pause in found]
    level = [sample for sample in samples if sample.log_end >= TURNOVERS * kept]
    found = [
        Check(
            name="longest pause of a broker's loop, ms",
            value=max(pause.late_ms for pause in every),
            goal=PAUSE_MAX_MS,
        ),
        Check(
            name="the same without waiting for a processor that others use, ms",
            value=max(pause.own_ms for pause in every),
            goal=PAUSE_MAX_MS,
        ),
        Check(
            name="readers of what is gone are told so (1: yes)",
            value=float(told),
            goal=1.0,
            at_most=False,
        ),
    ]
    if level:
        growth = level[-1].state_bytes / level[0].state_bytes
        turned = (level[-1].log_end - level[0].log_end) / kept
        name = f"LMDB file, growth while the log is turned over {turned:.1f} times more"
        found.append(Check(name=name, value=round(growth, 2), goal=1.25))
    return found
