"""Experiments on the shape of a cluster and of its load: a fresh cluster for each point."""

from __future__ import annotations

import argparse
import asyncio
import statistics

from benchmarks import single
from benchmarks.growing.clusters import (
    STORED_OVERHEAD_BYTES,
    cluster_of,
    fail_overs_ms,
    in_turns,
    messages_per_s,
    start_ups_s,
)
from benchmarks.growing.results import Outcome, Plot, Point, Series, Setup
from benchmarks.table import memory
from cli.cluster import LocalCluster
from dledger.bench import Load

KIB = 1024
BODY_BYTES = KIB
CONNECTIONS_WINDOW = 2000
SIZE_WINDOW_BYTES = 16 * KIB * KIB
QUEUE_LOADS = 4  # of as many messages as the setup says, for each number of queues
TOPIC = "growth"


def sent_bytes(setup: Setup, loads: int, size: int = BODY_BYTES) -> float:
    """Returns what a replica stores of so many loads."""
    return 1e8 + loads * setup.rounds * setup.messages * (size + STORED_OVERHEAD_BYTES)


# --- queues -----------------------------------------------------------------------------------


def queues(setup: Setup) -> Outcome:
    """Sends to ever more queues; then starts a follower and kills the leader."""
    counts = [1, 100] if setup.quick else [1, 10, 100, 1000, 10_000]
    chosen, spread, starts, pauses = [], [], [], []
    for count in counts:
        settings = {"limits": {"queue_count_max": max(counts)}}
        with cluster_of(
            setup, disk_bytes=sent_bytes(setup, QUEUE_LOADS), settings=settings
        ) as cluster:
            load = Load(
                nameserver=cluster.nameserver, topic=TOPIC, queues=count, messages=setup.messages
            )
            shape = argparse.Namespace(
                queues=count, size=load.size_bytes, messages=load.messages, window=load.window
            )
            address = asyncio.run(single.leader_of(cluster.nameserver, TOPIC, count))
            rate, limit = in_turns(setup, load, lambda a=address, s=shape: one_a_request(a, s))
            more = {"memory_mb": memory(cluster)}
            limit *= 1e6 / load.size_bytes
            spread.append(Point(x=count, y=rate, limit=limit, more=more))
            rate = statistics.median(messages_per_s("send", load) for _ in range(setup.rounds))
            chosen.append(Point(x=count, y=rate))
            starts.append(Point(x=count, y=statistics.median(start_ups_s(cluster, setup.trials))))
            gaps = fail_overs_ms(cluster, setup.trials)
            pauses.append(Point(x=count, y=statistics.median(gaps), more={"max_ms": max(gaps)}))
        setup.say(f"{count} queues: {spread[-1].y:,.0f} messages/s one a request")
    rates = Plot(
        name="queues-publish",
        title="Publishing to more queues, 1 KiB",
        x_label="queues of the topic",
        y_label="messages/s",
        series=[
            Series(name="one message a request, queues in turn", points=spread),
            Series(name="batched by the producer, which chooses queues", points=chosen),
        ],
    )
    start = Plot(
        name="queues-start",
        title="Start of a follower, kill -9 before",
        x_label="queues of the topic",
        y_label="seconds until it is level with the leader",
        series=[Series(name="start of a follower", points=starts)],
    )
    fail_over = Plot(
        name="queues-fail-over",
        title="Leader killed to the next acknowledged send",
        x_label="queues of the topic",
        y_label="ms",
        series=[Series(name="median", points=pauses)],
    )
    return Outcome(plots=[rates, start, fail_over])


def one_a_request(address: str, shape: argparse.Namespace, connections: int = 1) -> float:
    """Returns the messages/s of sends with one message each."""
    return asyncio.run(single.send(address, TOPIC, shape, connections))["messages_per_s"]


# --- connections ------------------------------------------------------------------------------


def connections(setup: Setup) -> Outcome:
    """Shares the same window out to ever more connections, one message a request."""
    counts = [1, 20] if setup.quick else [1, 10, 100, 1000, 2000]
    points = []
    for count in counts:
        with cluster_of(setup, disk_bytes=sent_bytes(setup, 1)) as cluster:
            address = asyncio.run(single.leader_of(cluster.nameserver, TOPIC, 4))
            shape = argparse.Namespace(
                queues=4,
                size=BODY_BYTES,
                messages=max(setup.messages, count),
                window=CONNECTIONS_WINDOW,
            )
            load = Load(nameserver=cluster.nameserver, window=CONNECTIONS_WINDOW)
            rate, limit = in_turns(
                setup, load, lambda a=address, s=shape, c=count: one_a_request(a, s, c)
            )
            more = {"memory_mb": memory(cluster)}
            limit *= 1e6 / BODY_BYTES
            points.append(Point(x=count, y=rate, limit=limit, more=more))
        setup.say(f"{count} connections: {rate:,.0f} messages/s")
    plot = Plot(
        name="connections",
        title=f"{CONNECTIONS_WINDOW:,} requests under way over more connections, 1 KiB",
        x_label="connections to the leader",
        y_label="messages/s",
        series=[Series(name="one message a request", points=points)],
    )
    return Outcome(plots=[plot])


# --- replicas, groups, sizes --------------------------------------------------------------------


def replicas(setup: Setup) -> Outcome:
    """Sends to groups of ever more replicas, all on this machine."""
    points = []
    for count in [1, 3] if setup.quick else [1, 3, 5]:
        with cluster_of(setup, disk_bytes=sent_bytes(setup, 1), replicas=count) as cluster:
            points.append(send_point(setup, cluster, count, replicas=count))
        setup.say(f"{count} replicas: {points[-1].y:,.0f} messages/s")
    return Outcome(
        plots=[
            send_plot("replicas", "Publishing to more replicas", "replicas of the group", points)
        ]
    )


def groups(setup: Setup) -> Outcome:
    """Sends to ever more broker groups of three replicas, all on this machine."""
    points = []
    for count in [1, 2] if setup.quick else [1, 2, 4]:
        with cluster_of(setup, disk_bytes=sent_bytes(setup, 1), groups=count) as cluster:
            points.append(send_point(setup, cluster, count))
        setup.say(f"{count} groups: {points[-1].y:,.0f} messages/s")
    title = "Publishing to more groups of three, on the same processors"
    return Outcome(plots=[send_plot("groups", title, "broker groups", points)])


def send_point(setup: Setup, cluster: LocalCluster, x: float, replicas: int = 3) -> Point:
    """Returns the rate of a producer, which batches, and the limit program's."""
    load = Load(nameserver=cluster.nameserver, topic=TOPIC, messages=setup.messages)
    rate, limit = in_turns(setup, load, lambda: messages_per_s("send", load), replicas)
    return Point(x=x, y=rate, limit=limit * 1e6 / load.size_bytes)


def send_plot(name: str, title: str, x_label: str, points: list[Point]) -> Plot:
    """Returns the plot of such rates."""
    return Plot(
        name=name,
        title=f"{title}, 1 KiB",
        x_label=x_label,
        y_label="messages/s",
        series=[Series(name="batched by the producer", points=points)],
    )


def sizes(setup: Setup) -> Outcome:
    """Sends messages of ever more bytes, with at most 1,000 and 16 MiB under way."""
    largest = 4 * KIB * KIB
    every = [16, 128, KIB, 8 * KIB, 64 * KIB, 512 * KIB, largest]
    total_bytes = 4e6 if setup.quick else 200e6
    points = []
    disk_bytes = 2 * len(every) * setup.rounds * (total_bytes + 1e5 * STORED_OVERHEAD_BYTES)
    with cluster_of(setup, disk_bytes=disk_bytes) as cluster:
        for size in [16, KIB, largest] if setup.quick else every:
            load = Load(
                nameserver=cluster.nameserver,
                topic=TOPIC,
                size_bytes=size,
                messages=max(8, min(setup.messages, int(total_bytes / size))),
                window=max(2, min(1000, SIZE_WINDOW_BYTES // size)),
            )
            rate, limit = in_turns(setup, load, lambda ld=load: messages_per_s("send", ld))
            more = {"messages_per_s": round(rate)}
            points.append(Point(x=size, y=rate * size / 1e6, limit=limit, more=more))
            setup.say(f"{size} B: {rate:,.0f} messages/s, {points[-1].y:.1f} MB/s")
    plot = Plot(
        name="size",
        title="Publishing larger messages",
        x_label="size of a body",
        y_label="MB/s of bodies",
        x_is_bytes=True,
        series=[Series(name="batched by the producer", points=points)],
    )
    return Outcome(plots=[plot])
