"""Metrics for Prometheus: what is counted anyway, put into its text form when somebody asks.

Nothing is counted twice and nothing runs between two questions. The names are documented in
`docs/operations.md`; they are an interface, so do not change them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from broker.context import BrokerContext
from broker.statistics import TIME_CLASSES_S, Flow, Times
from dledger.model import Role

# Groups and topics whose lag is shown; beyond, the scrape would cost more than it tells.
LAGS_MAX = 2000
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily


class BrokerMetrics(Collector):
    """The metrics of one replica. Satisfies prometheus_client's `Collector`."""

    def __init__(self, context: BrokerContext) -> None:
        self._context = context
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Returns everything in Prometheus' text form."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Family]:
        """Nothing in advance: the registry would collect everything to learn the names."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yields all metrics as they are now."""
        yield self._info()
        yield from self._traffic()
        yield from self._raft()
        yield from self._limits()
        yield from self._consumers()

    # --- inside -----------------------------------------------------------------------------

    def _info(self) -> Family:
        config = self._context.config
        info = InfoMetricFamily("dledger_broker", "Which replica this is.")
        info.add_metric(
            [],
            {
                "cluster": config.cluster_name,
                "broker_name": config.broker_name,
                "replica_id": config.replica_id,
            },
        )
        return info

    def _traffic(self) -> Iterator[Family]:
        statistics = self._context.statistics
        stored = [([name], flow) for name, flow in statistics.topics()]
        fetched = [([topic, group], flow) for (group, topic), flow in statistics.groups()]
        returned = [([topic, group], flow) for (group, topic), flow in statistics.returned_flows()]
        yield _messages("dledger_messages_stored", "Messages stored.", ["topic"], stored)
        yield _bytes("dledger_bytes_stored", "Bytes of bodies stored.", ["topic"], stored)
        labels = ["topic", "group"]
        yield _messages("dledger_messages_fetched", "Messages handed out.", labels, fetched)
        yield _bytes("dledger_bytes_fetched", "Bytes handed out.", labels, fetched)
        yield _messages("dledger_messages_returned", "Messages handed back.", labels, returned)
        yield _counter(
            "dledger_pulls_empty", "Pulls that found nothing.", statistics.missed.messages.times
        )
        yield _counter(
            "dledger_statistics_untracked",
            "Requests of topics and groups beyond the limit of what is counted apart.",
            statistics.untracked,
        )
        yield _histogram(
            "dledger_send_seconds", "Time from a send to its commit.", statistics.put_times
        )

    def _raft(self) -> Iterator[Family]:
        raft, log = self._context.raft, self._context.log
        yield _gauge("dledger_is_leader", "1 on the leader.", int(raft.role is Role.LEADER))
        yield _gauge("dledger_is_serving", "1 where writes are taken.", int(raft.is_serving))
        yield _gauge("dledger_raft_term", "Raft term.", raft.term)
        yield _gauge("dledger_commit_index", "Newest entry known as committed.", raft.commit_index)
        yield _gauge("dledger_applied_index", "Newest entry applied.", raft.applied_index)
        yield _gauge("dledger_durable_index", "Newest entry on this disk.", raft.durable_index)
        yield _gauge("dledger_pending_bytes", "Bytes under way to a majority.", raft.pending_bytes)
        yield _gauge("dledger_log_bytes", "Bytes of the log on disk.", log.size_bytes)
        behind = GaugeMetricFamily(
            "dledger_follower_entries_behind",
            "On the leader: entries that a follower lacks.",
            labels=["replica"],
        )
        for replica_id, progress in sorted(raft.peer_progress().items()):
            matched = progress.get("match_index")
            if matched is not None:
                behind.add_metric([replica_id], max(0, log.last_index - matched))
        yield behind

    def _limits(self) -> Iterator[Family]:
        context = self._context
        clients, polls = context.clients.statistics(), context.long_polls.statistics()
        counters, guard = context.counters, context.clients.guard_counts
        yield _gauge("dledger_disk_full", "1 while writes are refused.", context.gate.is_disk_full)
        yield _gauge("dledger_parked_pulls", "Pulls that wait.", polls.parked_count)
        yield _gauge("dledger_members", "Clients in groups.", clients.member_count)
        yield _gauge("dledger_topics", "Topics.", len(context.store.topics))
        yield _gauge("dledger_groups", "Consumer groups.", len(context.store.groups))
        yield _counter("dledger_forwarded", "Requests handed to the leader.", counters.forwarded)
        yield _counter("dledger_deduplicated", "Repeated messages.", counters.deduplicated)
        yield _counter(
            "dledger_quota_refusals", "Requests refused by quotas.", context.quotas.refused
        )
        yield _gauge(
            "dledger_subscription_differences",
            "Groups whose members subscribe to different things.",
            len(context.clients.differences()),
        )
        yield _counter("dledger_subscription_refusals", "Members refused for that.", guard.refused)

    def _consumers(self) -> Iterator[Family]:
        """The leader's view: followers would say the same, later."""
        lag = GaugeMetricFamily(
            "dledger_consumer_lag_messages",
            "On the leader: messages that a group has not consumed.",
            labels=["topic", "group"],
        )
        store = self._context.store
        if self._context.raft.is_serving:
            count = 0
            for group in store.groups_with_offsets():
                behind: dict[str, int] = {}
                for (name, queue_id), offset in store.consumer_offsets(group).items():
                    topic = store.topic(name)
                    if topic is not None:
                        offset_max = store.queue_bounds(topic.topic_id, queue_id)[1]
                        behind[name] = behind.get(name, 0) + max(0, offset_max - offset)
                for name, value in sorted(behind.items()):
                    lag.add_metric([name, group], value)
                count += len(behind)
                if count >= LAGS_MAX:
                    break
        yield lag


def _gauge(name: str, text: str, value: float) -> Family:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> Family:
    return CounterMetricFamily(name, text, value=float(value))


def _messages(
    name: str, text: str, labels: list[str], flows: Iterable[tuple[list[str], Flow]]
) -> Family:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, flow in flows:
        family.add_metric(values, flow.messages.amount)
    return family


def _bytes(
    name: str, text: str, labels: list[str], flows: Iterable[tuple[list[str], Flow]]
) -> Family:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, flow in flows:
        family.add_metric(values, flow.bytes.amount)
    return family


def _histogram(name: str, text: str, times: Times) -> Family:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*TIME_CLASSES_S, "+Inf"), times.counts, strict=True):
        total += count
        buckets.append((str(bound), total))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=times.sum_s)
