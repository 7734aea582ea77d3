"""Typed headers of what admin tools ask brokers beyond topics and groups; see `headers`."""

from __future__ import annotations

from msgspec import Struct, field

from dledger.remoting.headers import Int32, Int64


class ViewStatisticsHeader(Struct, kw_only=True):
    """VIEW_BROKER_STATS_DATA."""

    name: str = field(name="statsName")
    key: str = field(name="statsKey")


class ConsumeTimeSpanHeader(Struct, kw_only=True):
    """QUERY_CONSUME_TIME_SPAN."""

    topic: str
    group: str


class QueryConsumeQueueHeader(Struct, kw_only=True):
    """QUERY_CONSUME_QUEUE. Without a group: no filter is shown."""

    topic: str
    queue_id: Int32 = field(name="queueId")
    index: Int64
    count: Int32
    group: str = field(name="consumerGroup", default="")


class QueryTopicsOfGroupHeader(Struct, kw_only=True):
    """QUERY_TOPICS_BY_CONSUMER."""

    group: str


class QuerySubscriptionHeader(Struct, kw_only=True):
    """QUERY_SUBSCRIPTION_BY_CONSUMER."""

    group: str
    topic: str


class GetConsumerStatusHeader(Struct, kw_only=True):
    """INVOKE_BROKER_TO_GET_CONSUMER_STATUS. Without a client: all members."""

    topic: str
    group: str
    client_address: str = field(name="clientAddr", default="")


class GetRunningInfoHeader(Struct, kw_only=True):
    """GET_CONSUMER_RUNNING_INFO; relayed to the client."""

    group: str = field(name="consumerGroup")
    client_id: str = field(name="clientId")
    wants_stacks: bool = field(name="jstackEnable", default=False)


class ConsumeDirectlyHeader(Struct, kw_only=True):
    """CONSUME_MESSAGE_DIRECTLY; relayed to the client with the message as its body."""

    group: str = field(name="consumerGroup")
    client_id: str = field(name="clientId", default="")
    message_id: str = field(name="msgId", default="")
    broker_name: str = field(name="brokerName", default="")
    topic: str = ""
    topic_flags: Int32 = field(name="topicSysFlag", default=0)
    group_flags: Int32 = field(name="groupSysFlag", default=0)


class SubscriptionDifferencesHeader(Struct, kw_only=True):
    """GET_SUBSCRIPTION_DIFFERENCES, ours. Without a group: all."""

    group: str = ""


class LocateMessageHeader(Struct, kw_only=True):
    """LOCATE_MESSAGE, ours: what one replica knows of the message at a physical offset."""

    physical_offset: Int64 = field(name="offset")


class LocateMessageResponse(Struct, kw_only=True):
    """The answer. `index` and `term` are those of its log entry.

    Attributes:
        unique_key: Of the message that lies there; with it the asker knows that it is his.
        is_durable: The entry is on this replica's disk.
        is_applied: It can be read here.
        is_leader: This replica leads.
    """

    replica_id: str = field(name="replicaId")
    index: Int64 = field(name="logIndex")
    term: Int64 = field(name="logTerm")
    unique_key: str = field(name="uniqueKey", default="")
    is_durable: bool = field(name="isDurable", default=False)
    is_applied: bool = field(name="isApplied", default=False)
    is_leader: bool = field(name="isLeader", default=False)
