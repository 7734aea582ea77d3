"""Tables by message queue: the bodies of 202, 208, 220 and 222.

The original writes the queue itself, an object, as the key. We write that object's JSON as a
quoted text, which its readers accept too, and read both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from dledger.errors import MalformedBodyError
from dledger.model import MessageQueue
from dledger.remoting.bodies.codec import decode_json

_T = TypeVar("_T")


class OffsetWrapper(Struct, kw_only=True):
    """How far a group is in one queue."""

    broker_offset: int = field(name="brokerOffset", default=0)
    consumer_offset: int = field(name="consumerOffset", default=0)
    pull_offset: int = field(name="pullOffset", default=0)
    last_timestamp_ms: int = field(name="lastTimestamp", default=0)


class ConsumeStats(Struct, kw_only=True):
    """How far a group is in all of its queues."""

    offsets: dict[MessageQueue, OffsetWrapper] = {}
    consume_tps: float = 0.0


class TopicOffset(Struct, kw_only=True):
    """What one queue holds."""

    offset_min: int = field(name="minOffset", default=0)
    offset_max: int = field(name="maxOffset", default=0)
    last_update_timestamp_ms: int = field(name="lastUpdateTimestamp", default=0)


class TopicStats(Struct, kw_only=True):
    """What all queues of a topic hold."""

    offsets: dict[MessageQueue, TopicOffset] = {}
    put_tps: float = 0.0


class _QueueKey(Struct, kw_only=True):
    broker_name: str = field(name="brokerName")
    queue_id: int = field(name="queueId")
    topic: str


class _ConsumeStatsWire(Struct, kw_only=True):
    consume_tps: float = field(name="consumeTps", default=0.0)
    offsets: dict[str, OffsetWrapper] = field(name="offsetTable", default_factory=dict)


class _TopicStatsWire(Struct, kw_only=True):
    offsets: dict[str, TopicOffset] = field(name="offsetTable", default_factory=dict)
    put_tps: float = field(name="topicPutTps", default=0.0)


class _OffsetTableWire(Struct, kw_only=True):
    offsets: dict[str, int] = field(name="offsetTable", default_factory=dict)


def encode_consume_stats(stats: ConsumeStats) -> bytes:
    """Returns the body that answers GET_CONSUME_STATS."""
    return msgspec.json.encode(
        _ConsumeStatsWire(consume_tps=stats.consume_tps, offsets=_keys_to_wire(stats.offsets))
    )


def decode_consume_stats(data: bytes) -> ConsumeStats:
    """Decodes the answer to GET_CONSUME_STATS."""
    wire = decode_json(data, _ConsumeStatsWire)
    return ConsumeStats(offsets=_keys_from_wire(wire.offsets), consume_tps=wire.consume_tps)


def encode_topic_stats(stats: TopicStats) -> bytes:
    """Returns the body that answers GET_TOPIC_STATS_INFO."""
    return msgspec.json.encode(
        _TopicStatsWire(offsets=_keys_to_wire(stats.offsets), put_tps=stats.put_tps)
    )


def decode_topic_stats(data: bytes) -> TopicStats:
    """Decodes the answer to GET_TOPIC_STATS_INFO."""
    wire = decode_json(data, _TopicStatsWire)
    return TopicStats(offsets=_keys_from_wire(wire.offsets), put_tps=wire.put_tps)


def encode_offset_table(offsets: Mapping[MessageQueue, int]) -> bytes:
    """Returns the body that answers INVOKE_BROKER_TO_RESET_OFFSET."""
    return msgspec.json.encode(_OffsetTableWire(offsets=_keys_to_wire(offsets)))


def decode_offset_table(data: bytes) -> dict[MessageQueue, int]:
    """Decodes that answer, and the body of a RESET_CONSUMER_CLIENT_OFFSET."""
    return _keys_from_wire(decode_json(data, _OffsetTableWire).offsets)


def encode_queue_key(queue: MessageQueue) -> str:
    """Returns the text that stands for a queue as a map key."""
    key = _QueueKey(broker_name=queue.broker_name, queue_id=queue.queue_id, topic=queue.topic)
    return msgspec.json.encode(key).decode()


def decode_queue_key(text: str) -> MessageQueue:
    """Returns the queue that a map key stands for.

    Raises:
        MalformedBodyError: Not the JSON of a queue.
    """
    try:
        key = msgspec.json.decode(text, type=_QueueKey, strict=False)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise MalformedBodyError(f"{text!r} is not a message queue: {exc}") from exc
    return MessageQueue(key.topic, key.broker_name, key.queue_id)


def _keys_to_wire(table: Mapping[MessageQueue, _T]) -> dict[str, _T]:
    return {encode_queue_key(queue): value for queue, value in table.items()}


def _keys_from_wire(table: Mapping[str, _T]) -> dict[MessageQueue, _T]:
    return {decode_queue_key(key): value for key, value in table.items()}
