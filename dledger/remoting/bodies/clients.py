"""Clients and their groups: the bodies of 34, 38, 41, 42, 203 and 204."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct, field

from dledger.model import MessageQueue
from dledger.remoting.bodies.codec import decode_json, encode_without_nulls


class SubscriptionData(Struct, kw_only=True):
    """What one group wants of one topic. `version` grows with each change at the client."""

    topic: str
    expression: str = field(name="subString", default="*")
    tags: list[str] = field(name="tagsSet", default_factory=list)
    codes: list[int] = field(name="codeSet", default_factory=list)
    version: int = field(name="subVersion", default=0)
    expression_type: str = field(name="expressionType", default="TAG")
    class_filter_mode: bool = field(name="classFilterMode", default=False)


class ConsumerData(Struct, kw_only=True):
    """One consumer group of a client."""

    group: str = field(name="groupName")
    consume_type: str = field(name="consumeType", default="CONSUME_PASSIVELY")
    message_model: str = field(name="messageModel", default="CLUSTERING")
    consume_from: str = field(name="consumeFromWhere", default="CONSUME_FROM_LAST_OFFSET")
    subscriptions: list[SubscriptionData] = field(name="subscriptionDataSet", default_factory=list)
    unit_mode: bool = field(name="unitMode", default=False)


class HeartbeatData(Struct, kw_only=True):
    """What a client tells every broker of its routes. `producers` are group names."""

    client_id: str
    producers: list[str] = []
    consumers: list[ConsumerData] = []
    fingerprint: int = 0
    without_subscriptions: bool = False


class _ProducerWire(Struct):
    group: str = field(name="groupName")


class _HeartbeatWire(Struct, kw_only=True):
    client_id: str = field(name="clientID")
    producers: list[_ProducerWire] = field(name="producerDataSet", default_factory=list)
    consumers: list[ConsumerData] = field(name="consumerDataSet", default_factory=list)
    fingerprint: int = field(name="heartbeatFingerprint", default=0)
    without_subscriptions: bool = field(name="withoutSub", default=False)


def encode_heartbeat(heartbeat: HeartbeatData) -> bytes:
    """Returns the body of a HEART_BEAT."""
    return msgspec.json.encode(
        _HeartbeatWire(
            client_id=heartbeat.client_id,
            producers=[_ProducerWire(group) for group in heartbeat.producers],
            consumers=heartbeat.consumers,
            fingerprint=heartbeat.fingerprint,
            without_subscriptions=heartbeat.without_subscriptions,
        )
    )


def decode_heartbeat(data: bytes) -> HeartbeatData:
    """Decodes the body of a HEART_BEAT of any client."""
    wire = decode_json(data, _HeartbeatWire)
    return HeartbeatData(
        client_id=wire.client_id,
        producers=[producer.group for producer in wire.producers],
        consumers=wire.consumers,
        fingerprint=wire.fingerprint,
        without_subscriptions=wire.without_subscriptions,
    )


class ConnectionInfo(Struct, kw_only=True):
    """One connected client."""

    client_id: str = field(name="clientId")
    client_address: str = field(name="clientAddr", default="")
    language: str = "OTHER"
    version: int = 0


class ConnectionList(Struct, kw_only=True):
    """The connected members of a producer or consumer group.

    The last four fields are set for consumer groups only.
    """

    connections: list[ConnectionInfo] = field(name="connectionSet", default_factory=list)
    subscriptions: dict[str, SubscriptionData] = field(
        name="subscriptionTable", default_factory=dict
    )
    consume_type: str | None = field(name="consumeType", default=None)
    message_model: str | None = field(name="messageModel", default=None)
    consume_from: str | None = field(name="consumeFromWhere", default=None)


def encode_connection_list(connections: ConnectionList) -> bytes:
    """Returns the body that answers GET_CONSUMER_CONNECTION_LIST or GET_PRODUCER_…."""
    return encode_without_nulls(connections)


def decode_connection_list(data: bytes) -> ConnectionList:
    """Decodes the answer to GET_CONSUMER_CONNECTION_LIST or GET_PRODUCER_…."""
    return decode_json(data, ConnectionList)


class LockBatchBody(Struct, kw_only=True):
    """The queues that a client wants to lock or unlock for its group."""

    consumer_group: str
    client_id: str
    queues: list[MessageQueue] = []
    only_this_broker: bool = False


class _QueueWire(Struct, kw_only=True):
    topic: str
    broker_name: str = field(name="brokerName")
    queue_id: int = field(name="queueId")


class _LockBatchWire(Struct, kw_only=True):
    consumer_group: str = field(name="consumerGroup")
    client_id: str = field(name="clientId")
    queues: list[_QueueWire] = field(name="mqSet", default_factory=list)
    only_this_broker: bool = field(name="onlyThisBroker", default=False)


class _LockedWire(Struct, kw_only=True):
    queues: list[_QueueWire] = field(name="lockOKMQSet", default_factory=list)


def encode_lock_batch(body: LockBatchBody) -> bytes:
    """Returns the body of LOCK_BATCH_MQ or UNLOCK_BATCH_MQ."""
    return msgspec.json.encode(
        _LockBatchWire(
            consumer_group=body.consumer_group,
            client_id=body.client_id,
            queues=_queues_to_wire(body.queues),
            only_this_broker=body.only_this_broker,
        )
    )


def decode_lock_batch(data: bytes) -> LockBatchBody:
    """Decodes the body of LOCK_BATCH_MQ or UNLOCK_BATCH_MQ."""
    wire = decode_json(data, _LockBatchWire)
    return LockBatchBody(
        consumer_group=wire.consumer_group,
        client_id=wire.client_id,
        queues=_queues_from_wire(wire.queues),
        only_this_broker=wire.only_this_broker,
    )


def encode_locked_queues(queues: Sequence[MessageQueue]) -> bytes:
    """Returns the body that answers LOCK_BATCH_MQ: the queues now held."""
    return msgspec.json.encode(_LockedWire(queues=_queues_to_wire(queues)))


def decode_locked_queues(data: bytes) -> list[MessageQueue]:
    """Decodes the answer to LOCK_BATCH_MQ."""
    return _queues_from_wire(decode_json(data, _LockedWire).queues)


def _queues_to_wire(queues: Sequence[MessageQueue]) -> list[_QueueWire]:
    return [
        _QueueWire(topic=queue.topic, broker_name=queue.broker_name, queue_id=queue.queue_id)
        for queue in queues
    ]


def _queues_from_wire(queues: Sequence[_QueueWire]) -> list[MessageQueue]:
    return [MessageQueue(queue.topic, queue.broker_name, queue.queue_id) for queue in queues]
