"""What admin tools read: the bodies of 43, 223, 303, 307, 309, 315, 317, 321, 328 and 345."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from dledger.model import MessageQueue, QueueUnit
from dledger.remoting.bodies.clients import ConnectionInfo, SubscriptionData
from dledger.remoting.bodies.codec import decode_json, encode_without_nulls
from dledger.remoting.bodies.stats import (
    ConsumeStats,
    decode_queue_key,
    encode_consume_stats,
    encode_queue_key,
)


class StatisticsWindow(Struct, kw_only=True):
    """What came in a window: in all, per second, on average per request."""

    sum: float = 0
    tps: float = 0.0
    average: float = field(name="avgpt", default=0.0)


class BrokerStatistics(Struct, kw_only=True):
    """One statistic over three windows."""

    minute: StatisticsWindow = field(name="statsMinute", default_factory=StatisticsWindow)
    hour: StatisticsWindow = field(name="statsHour", default_factory=StatisticsWindow)
    day: StatisticsWindow = field(name="statsDay", default_factory=StatisticsWindow)


class QueueTimeSpan(Struct, kw_only=True):
    """When the oldest, newest and last consumed message of a queue were stored."""

    queue: MessageQueue
    oldest_ms: int
    newest_ms: int
    consumed_ms: int
    delay_ms: int


class ProducerInfo(Struct, kw_only=True):
    """One connected producer."""

    client_id: str = field(name="clientId")
    address: str = field(name="remoteIP")
    language: str
    version: int
    last_seen_ms: int = field(name="lastUpdateTimestamp", default=0)


class ProcessQueueInfo(Struct, kw_only=True):
    """What a client holds of one queue."""

    commit_offset: int = field(name="commitOffset", default=0)
    cached_min: int = field(name="cachedMsgMinOffset", default=0)
    cached_max: int = field(name="cachedMsgMaxOffset", default=0)
    cached_count: int = field(name="cachedMsgCount", default=0)
    cached_mib: int = field(name="cachedMsgSizeInMiB", default=0)
    locked: bool = False
    dropped: bool = field(name="droped", default=False)  # as the original spells it
    last_pull_ms: int = field(name="lastPullTimestamp", default=0)
    last_consume_ms: int = field(name="lastConsumeTimestamp", default=0)
    transaction_min: int = field(name="transactionMsgMinOffset", default=0)
    transaction_max: int = field(name="transactionMsgMaxOffset", default=0)
    transaction_count: int = field(name="transactionMsgCount", default=0)
    unlock_attempts: int = field(name="tryUnlockTimes", default=0)
    last_lock_ms: int = field(name="lastLockTimestamp", default=0)


class ConsumeStatus(Struct, kw_only=True):
    """How fast a client consumes a topic."""

    pull_ms: float = field(name="pullRT", default=0.0)
    pull_tps: float = field(name="pullTPS", default=0.0)
    consume_ms: float = field(name="consumeRT", default=0.0)
    consumed_tps: float = field(name="consumeOKTPS", default=0.0)
    failed_tps: float = field(name="consumeFailedTPS", default=0.0)
    failed_count: int = field(name="consumeFailedMsgs", default=0)


class RunningInfo(Struct, kw_only=True):
    """What a consumer says about itself."""

    properties: dict[str, str] = {}
    subscriptions: list[SubscriptionData] = []
    queues: dict[MessageQueue, ProcessQueueInfo] = {}
    statuses: dict[str, ConsumeStatus] = {}
    stacks: str | None = None


class DirectResult(Struct, kw_only=True):
    """What became of one message that a consumer was given on demand."""

    result: str = field(name="consumeResult")
    remark: str | None = None
    took_ms: int = field(name="spentTimeMills", default=0)
    order: bool = False
    auto_commit: bool = field(name="autoCommit", default=True)


class MemberSubscription(Struct, kw_only=True):
    """What one member of a group subscribes to: expressions by topic."""

    client_id: str = field(name="clientId")
    topics: dict[str, str]


class SubscriptionDifferences(Struct, kw_only=True):
    """Groups whose members do not agree, and what each member wants."""

    groups: dict[str, list[MemberSubscription]] = {}
    detected: int = 0
    refused: int = 0


class _QueueWire(Struct, kw_only=True):
    topic: str
    broker_name: str = field(name="brokerName")
    queue_id: int = field(name="queueId")


class _TimeSpanWire(Struct, kw_only=True):
    queue: _QueueWire = field(name="messageQueue")
    oldest_ms: int = field(name="minTimeStamp")
    newest_ms: int = field(name="maxTimeStamp")
    consumed_ms: int = field(name="consumeTimeStamp")
    delay_ms: int = field(name="delayTime")


class _RunningInfoWire(Struct, kw_only=True):
    properties: dict[str, str] = {}
    subscriptions: list[SubscriptionData] = field(name="subscriptionSet", default_factory=list)
    queues: dict[str, ProcessQueueInfo] = field(name="mqTable", default_factory=dict)
    pop_queues: dict[str, dict[str, int]] = field(name="mqPopTable", default_factory=dict)
    statuses: dict[str, ConsumeStatus] = field(name="statusTable", default_factory=dict)
    user_info: dict[str, str] = field(name="userConsumerInfo", default_factory=dict)
    stacks: str | None = field(name="jstack", default=None)


def encode_broker_statistics(statistics: BrokerStatistics) -> bytes:
    """Returns the body that answers VIEW_BROKER_STATS_DATA."""
    return msgspec.json.encode(statistics)


def decode_broker_statistics(data: bytes) -> BrokerStatistics:
    """Decodes the answer to VIEW_BROKER_STATS_DATA."""
    return decode_json(data, BrokerStatistics)


def encode_broker_consume_stats(
    address: str, groups: Mapping[str, Sequence[ConsumeStats]]
) -> bytes:
    """Returns the body that answers GET_BROKER_CONSUME_STATS."""
    wrappers = [offset for all_ in groups.values() for s in all_ for offset in s.offsets.values()]
    behind = sum(each.broker_offset - each.consumer_offset for each in wrappers)
    in_flight = sum(each.pull_offset - each.consumer_offset for each in wrappers)
    content = {
        "brokerAddr": address,
        "consumeStatsList": [
            {group: [msgspec.Raw(encode_consume_stats(each)) for each in stats]}
            for group, stats in groups.items()
        ],
        "totalDiff": behind,
        "totalInflightDiff": in_flight,
    }
    return msgspec.json.encode(content)


def encode_time_spans(spans: Sequence[QueueTimeSpan]) -> bytes:
    """Returns the body that answers QUERY_CONSUME_TIME_SPAN."""
    wires = [
        _TimeSpanWire(
            queue=_QueueWire(
                topic=span.queue.topic,
                broker_name=span.queue.broker_name,
                queue_id=span.queue.queue_id,
            ),
            oldest_ms=span.oldest_ms,
            newest_ms=span.newest_ms,
            consumed_ms=span.consumed_ms,
            delay_ms=span.delay_ms,
        )
        for span in spans
    ]
    return msgspec.json.encode({"consumeTimeSpanSet": wires})


def encode_consume_queue(
    units: Sequence[tuple[QueueUnit, bool]],
    *,
    offset_min: int,
    offset_max: int,
    subscription: SubscriptionData | None,
) -> bytes:
    """Returns the body that answers QUERY_CONSUME_QUEUE.

    Args:
        units: Each with whether the subscription's tags let it pass.
        offset_min: Oldest queue offset.
        offset_max: Next queue offset.
        subscription: The group's, if a group was asked for.
    """
    rows = [
        {
            "physicOffset": unit.physical_offset,
            "physicSize": unit.size_bytes,
            "tagsCode": unit.tag_hash,
            "eval": passes,
        }
        for unit, passes in units
    ]
    content: dict[str, Any] = {
        "minQueueIndex": offset_min,
        "maxQueueIndex": offset_max,
        "queueData": rows,
    }
    if subscription is not None:
        content["subscriptionData"] = subscription
    return msgspec.json.encode(content)


def encode_consumer_offsets(offsets: Mapping[tuple[str, str], Mapping[int, int]]) -> bytes:
    """Returns the body that answers GET_ALL_CONSUMER_OFFSET: by (topic, group) and queue id."""
    table = {
        f"{topic}@{group}": {str(queue_id): offset for queue_id, offset in queues.items()}
        for (topic, group), queues in offsets.items()
    }
    return msgspec.json.encode({"offsetTable": table})


def encode_producers(groups: Mapping[str, Sequence[ConnectionInfo]], seen_ms: int) -> bytes:
    """Returns the body that answers GET_ALL_PRODUCER_INFO."""
    table = {
        group: [
            ProducerInfo(
                client_id=member.client_id,
                address=member.client_address,
                language=member.language,
                version=member.version,
                last_seen_ms=seen_ms,
            )
            for member in members
        ]
        for group, members in groups.items()
    }
    return msgspec.json.encode({"data": table})


def encode_subscription(group: str, topic: str, subscription: SubscriptionData | None) -> bytes:
    """Returns the body that answers QUERY_SUBSCRIPTION_BY_CONSUMER."""
    content: dict[str, Any] = {"group": group, "topic": topic}
    if subscription is not None:
        content["subscriptionData"] = subscription
    return msgspec.json.encode(content)


def encode_consumer_status(clients: Mapping[str, Mapping[MessageQueue, int]]) -> bytes:
    """Returns the body that answers INVOKE_BROKER_TO_GET_CONSUMER_STATUS."""
    table = {
        client: {encode_queue_key(queue): offset for queue, offset in offsets.items()}
        for client, offsets in clients.items()
    }
    return msgspec.json.encode({"consumerTable": table, "messageQueueTable": {}})


def encode_client_offsets(offsets: Mapping[MessageQueue, int]) -> bytes:
    """Returns the body with which a client answers GET_CONSUMER_STATUS_FROM_CLIENT."""
    table = {encode_queue_key(queue): offset for queue, offset in offsets.items()}
    return msgspec.json.encode({"messageQueueTable": table})


def decode_client_offsets(data: bytes) -> dict[MessageQueue, int]:
    """Decodes a client's answer to GET_CONSUMER_STATUS_FROM_CLIENT."""
    wire = decode_json(data, dict[str, dict[str, int]])
    return {decode_queue_key(key): at for key, at in wire.get("messageQueueTable", {}).items()}


def encode_running_info(info: RunningInfo) -> bytes:
    """Returns the body with which a client answers GET_CONSUMER_RUNNING_INFO."""
    wire = _RunningInfoWire(
        properties=info.properties,
        subscriptions=info.subscriptions,
        queues={encode_queue_key(queue): held for queue, held in info.queues.items()},
        statuses=info.statuses,
        stacks=info.stacks,
    )
    return encode_without_nulls(wire)


def decode_running_info(data: bytes) -> RunningInfo:
    """Decodes a client's answer to GET_CONSUMER_RUNNING_INFO."""
    wire = decode_json(data, _RunningInfoWire)
    return RunningInfo(
        properties=wire.properties,
        subscriptions=wire.subscriptions,
        queues={decode_queue_key(key): held for key, held in wire.queues.items()},
        statuses=wire.statuses,
        stacks=wire.stacks,
    )


def encode_direct_result(result: DirectResult) -> bytes:
    """Returns the body with which a client answers CONSUME_MESSAGE_DIRECTLY."""
    return encode_without_nulls(result)


def decode_direct_result(data: bytes) -> DirectResult:
    """Decodes a client's answer to CONSUME_MESSAGE_DIRECTLY."""
    return decode_json(data, DirectResult)


def encode_differences(differences: SubscriptionDifferences) -> bytes:
    """Returns the body that answers GET_SUBSCRIPTION_DIFFERENCES."""
    return msgspec.json.encode(differences)


def decode_differences(data: bytes) -> SubscriptionDifferences:
    """Decodes the answer to GET_SUBSCRIPTION_DIFFERENCES."""
    return decode_json(data, SubscriptionDifferences)
