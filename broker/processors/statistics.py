"""Rates and lags: 208, 315 and 317."""

from __future__ import annotations

from broker import names
from broker.context import BrokerContext
from broker.messages import MessageReader
from broker.statistics import Flow, Meter, Rate
from dledger.errors import RequestError
from dledger.model import MessageQueue, TopicConfig
from dledger.remoting.admin_headers import ViewStatisticsHeader
from dledger.remoting.bodies import ConsumeStats, OffsetWrapper, encode_consume_stats
from dledger.remoting.bodies.admin import (
    BrokerStatistics,
    StatisticsWindow,
    encode_broker_consume_stats,
    encode_broker_statistics,
)
from dledger.remoting.commands import Command
from dledger.remoting.headers import GetConsumeStatsHeader
from dledger.remoting.server import Connection

# What 317 looks at most: groups and topics, each with a read for every queue.
GROUP_TOPICS_MAX = 10_000


class StatisticNotFoundError(RequestError):
    """Nothing was counted under this name and key."""


class StatisticsProcessor:
    """Says how much passes through and how far consumers are behind."""

    def __init__(self, context: BrokerContext, reader: MessageReader) -> None:
        self._context = context
        self._reader = reader

    def consume_stats(self, connection: Connection, command: Command) -> None:
        """208: for every queue a group consumes, how far it is behind, and how fast it is."""
        header = command.header(GetConsumeStatsHeader)
        wanted = {name for name in (header.topic, *header.topic_list.split(";")) if name}
        stored = self._context.store.consumer_offsets(header.consumer_group)
        topics = sorted(wanted or {topic for topic, _ in stored})
        stats = self._stats(header.consumer_group, topics, stored)
        connection.reply(command, body=encode_consume_stats(stats))

    def all_consume_stats(self, connection: Connection, command: Command) -> None:
        """317: the same of every group, a record for each of its topics."""
        store = self._context.store
        groups: dict[str, list[ConsumeStats]] = {}
        count = 0
        for group in store.groups_with_offsets():
            stored = store.consumer_offsets(group)
            for topic in sorted({topic for topic, _ in stored}):
                count += 1
                if count > GROUP_TOPICS_MAX:
                    break
                groups.setdefault(group, []).append(self._stats(group, [topic], stored))
        body = encode_broker_consume_stats(self._context.address, groups)
        connection.reply(command, body=body)

    def view(self, connection: Connection, command: Command) -> None:
        """315: one statistic over the last minute, hour and day.

        Raises:
            StatisticNotFoundError: Nothing was counted.
        """
        header = command.header(ViewStatisticsHeader)
        meter = self._meter(header.name, header.key)
        if meter is None:
            text = f"The stats <{header.name}> <{header.key}> not exist"
            raise StatisticNotFoundError(text)
        now_s = self._context.clock.monotonic()
        scale = 1000 if header.name == "TOPIC_PUT_LATENCY" else 1
        statistics = BrokerStatistics(
            minute=_window(meter.minute(now_s), scale),
            hour=_window(meter.hour(now_s), scale),
            day=_window(meter.day(now_s), scale),
        )
        connection.reply(command, body=encode_broker_statistics(statistics))

    # --- inside -----------------------------------------------------------------------------

    def _meter(self, name: str, key: str) -> Meter | None:
        statistics = self._context.statistics
        if name in ("BROKER_PUT_NUMS", "BROKER_GET_NUMS"):
            return (statistics.put if "PUT" in name else statistics.got).messages
        flow: Flow | None = None
        topic, _, group = key.partition("@")
        if name in ("TOPIC_PUT_NUMS", "TOPIC_PUT_SIZE", "TOPIC_PUT_LATENCY"):
            flow = statistics.topic(key)
        elif name in ("GROUP_GET_NUMS", "GROUP_GET_SIZE"):
            flow = statistics.group(group, topic)
        elif name == "SNDBCK_PUT_NUMS":
            flow = statistics.returns(group, topic)
        if flow is None:
            return None
        if name.endswith("_SIZE"):
            return flow.bytes
        return flow.seconds if name.endswith("_LATENCY") else flow.messages

    def _stats(
        self, group: str, topics: list[str], stored: dict[tuple[str, int], int]
    ) -> ConsumeStats:
        offsets: dict[MessageQueue, OffsetWrapper] = {}
        now_s = self._context.clock.monotonic()
        consume_tps = 0.0
        for name in topics:
            topic = self._context.store.topic(name)
            if topic is None:
                continue
            for queue_id in range(topic.read_queue_count):
                queue = MessageQueue(name, self._context.config.broker_name, queue_id)
                consumed = stored.get((name, queue_id))
                offsets[queue] = self._offsets(group, topic, queue_id, consumed)
            flow = self._context.statistics.group(group, name)
            if flow is not None and names.group_of_retry_topic(name) is None:
                consume_tps += flow.messages.minute(now_s).per_second
        return ConsumeStats(offsets=offsets, consume_tps=consume_tps)

    def _offsets(
        self, group: str, topic: TopicConfig, queue_id: int, consumed: int | None
    ) -> OffsetWrapper:
        offset_min, offset_max = self._context.store.queue_bounds(topic.topic_id, queue_id)
        position = offset_min if consumed is None else consumed
        given = self._context.statistics.place(group, topic.topic_id, queue_id) or 0
        last_ms = self._reader.store_timestamp(topic.topic_id, queue_id, position - 1)
        return OffsetWrapper(
            broker_offset=offset_max,
            consumer_offset=position,
            # What lies between is in the hands of consumers.
            pull_offset=min(max(position, given), max(position, offset_max)),
            last_timestamp_ms=last_ms or 0,
        )


def _window(rate: Rate, scale: float) -> StatisticsWindow:
    return StatisticsWindow(
        sum=round(rate.amount * scale), tps=rate.per_second * scale, average=rate.per_time * scale
    )
