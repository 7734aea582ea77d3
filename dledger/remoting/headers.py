"""Typed headers: the extension fields of each request and response.

Attribute names follow our glossary, `field(name=…)` gives the name on the wire. Numbers are
bounded by the width that other implementations give them, so that nothing wider reaches the store.
Fields that are not declared are ignored; fields with a default may be absent.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from dledger.codes import AUTO_CREATE_TOPIC

Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


# --- sending (10, 310, 320) ---------------------------------------------------------------------


class SendMessageHeader(Struct, kw_only=True):
    """SEND_MESSAGE, long field names."""

    producer_group: str = field(name="producerGroup")
    topic: str
    default_topic: str = field(name="defaultTopic", default=AUTO_CREATE_TOPIC)
    default_topic_queue_count: Int32 = field(name="defaultTopicQueueNums", default=4)
    queue_id: Int32 = field(name="queueId")
    sys_flag: Int32 = field(name="sysFlag", default=0)
    born_timestamp_ms: Int64 = field(name="bornTimestamp")
    flag: Int32 = 0
    properties: str = ""
    reconsume_times: Int32 = field(name="reconsumeTimes", default=0)
    unit_mode: bool = field(name="unitMode", default=False)
    max_reconsume_times: Int32 | None = field(name="maxReconsumeTimes", default=None)
    batch: bool = False
    broker_name: str = field(name="bname", default="")
    producer_id: str = field(name="dlProducerId", default="")
    sequence: Int64 | None = field(name="dlSequence", default=None)


class SendMessageHeaderV2(Struct, kw_only=True):
    """SEND_MESSAGE_V2 and SEND_BATCH_MESSAGE: the same with one-letter names."""

    producer_group: str = field(name="a")
    topic: str = field(name="b")
    default_topic: str = field(name="c", default=AUTO_CREATE_TOPIC)
    default_topic_queue_count: Int32 = field(name="d", default=4)
    queue_id: Int32 = field(name="e")
    sys_flag: Int32 = field(name="f", default=0)
    born_timestamp_ms: Int64 = field(name="g")
    flag: Int32 = field(name="h", default=0)
    properties: str = field(name="i", default="")
    reconsume_times: Int32 = field(name="j", default=0)
    unit_mode: bool = field(name="k", default=False)
    max_reconsume_times: Int32 | None = field(name="l", default=None)
    batch: bool = field(name="m", default=False)
    broker_name: str = field(name="n", default="")
    producer_id: str = field(name="dlProducerId", default="")
    sequence: Int64 | None = field(name="dlSequence", default=None)


class ReplyMessageHeader(Struct, kw_only=True):
    """PUSH_REPLY_MESSAGE_TO_CLIENT: the answer to a request, from a broker to who asked."""

    producer_group: str = field(name="producerGroup", default="")
    topic: str
    queue_id: Int32 = field(name="queueId", default=0)
    sys_flag: Int32 = field(name="sysFlag", default=0)
    born_timestamp_ms: Int64 = field(name="bornTimestamp", default=0)
    flag: Int32 = 0
    properties: str = ""
    born_host: str = field(name="bornHost", default="")
    store_host: str = field(name="storeHost", default="")
    store_timestamp_ms: Int64 = field(name="storeTimestamp", default=0)


class ConsumerSendBackHeader(Struct, kw_only=True):
    """CONSUMER_SEND_MESSAGE_BACK: deliver a message again later."""

    physical_offset: Int64 = field(name="offset")
    group: str
    delay_level: Int32 = field(name="delayLevel")
    origin_message_id: str = field(name="originMsgId", default="")
    origin_topic: str = field(name="originTopic", default="")
    unit_mode: bool = field(name="unitMode", default=False)
    max_reconsume_times: Int32 | None = field(name="maxReconsumeTimes", default=None)
    # Ours: why it failed, and a delay that is not a level.
    reason: str = field(name="dlReason", default="")
    delay_ms: Int64 | None = field(name="dlDelayMs", default=None)


class RecallMessageHeader(Struct, kw_only=True):
    """RECALL_MESSAGE: take a delayed message back before it is delivered."""

    producer_group: str = field(name="producerGroup", default="")
    topic: str
    recall_handle: str = field(name="recallHandle")


class EndTransactionHeader(Struct, kw_only=True):
    """END_TRANSACTION: commit (8), roll back (12) or not known (0)."""

    producer_group: str = field(name="producerGroup")
    queue_offset: Int64 = field(name="tranStateTableOffset")
    physical_offset: Int64 = field(name="commitLogOffset")
    commit_or_rollback: Int32 = field(name="commitOrRollback")
    message_id: str = field(name="msgId", default="")
    transaction_id: str = field(name="transactionId", default="")
    from_transaction_check: bool = field(name="fromTransactionCheck", default=False)
    topic: str = ""


# --- pulling (11, 361) --------------------------------------------------------------------------


class PullMessageHeader(Struct, kw_only=True):
    """PULL_MESSAGE and LITE_PULL_MESSAGE. `sys_flag` holds `PullFlag` bits."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: Int32 = field(name="queueId")
    queue_offset: Int64 = field(name="queueOffset")
    message_count_max: Int32 = field(name="maxMsgNums", default=32)
    sys_flag: Int32 = field(name="sysFlag", default=0)
    commit_offset: Int64 = field(name="commitOffset", default=0)
    suspend_timeout_ms: Int64 = field(name="suspendTimeoutMillis", default=0)
    sub_version: Int64 = field(name="subVersion", default=0)
    subscription: str = ""
    expression_type: str = field(name="expressionType", default="TAG")
    bytes_max: Int32 | None = field(name="maxMsgBytes", default=None)


class PullMessageResponse(Struct, kw_only=True):
    """The four offsets that every answer to a pull carries, found or not."""

    suggest_which_broker_id: Int64 = field(name="suggestWhichBrokerId", default=0)
    next_begin_offset: Int64 = field(name="nextBeginOffset")
    offset_min: Int64 = field(name="minOffset")
    offset_max: Int64 = field(name="maxOffset")


# --- offsets (14, 15, 29, 30, 31, 32) -----------------------------------------------------------


class QueryConsumerOffsetHeader(Struct, kw_only=True):
    """QUERY_CONSUMER_OFFSET."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: Int32 = field(name="queueId")
    set_zero_if_not_found: bool | None = field(name="setZeroIfNotFound", default=None)


class UpdateConsumerOffsetHeader(Struct, kw_only=True):
    """UPDATE_CONSUMER_OFFSET. `commit_offset` is the next queue offset to consume."""

    consumer_group: str = field(name="consumerGroup")
    topic: str
    queue_id: Int32 = field(name="queueId")
    commit_offset: Int64 = field(name="commitOffset")


class SearchOffsetHeader(Struct, kw_only=True):
    """SEARCH_OFFSET_BY_TIMESTAMP."""

    topic: str
    queue_id: Int32 = field(name="queueId")
    timestamp_ms: Int64 = field(name="timestamp")
    boundary_type: str = field(name="boundaryType", default="LOWER")


class GetMaxOffsetHeader(Struct, kw_only=True):
    """GET_MAX_OFFSET: the offset of the next message."""

    topic: str
    queue_id: Int32 = field(name="queueId")
    committed: bool = True


class GetMinOffsetHeader(Struct, kw_only=True):
    """GET_MIN_OFFSET: the offset of the oldest message held."""

    topic: str
    queue_id: Int32 = field(name="queueId")


class GetEarliestStoreTimeHeader(Struct, kw_only=True):
    """GET_EARLIEST_MESSAGE_STORE_TIME."""

    topic: str
    queue_id: Int32 = field(name="queueId")


class OffsetResponse(Struct, kw_only=True):
    """The answer to every question for one offset."""

    offset: Int64


# --- queries (12, 33) ---------------------------------------------------------------------------


class QueryMessageHeader(Struct, kw_only=True):
    """QUERY_MESSAGE by key, or by unique key."""

    topic: str
    key: str
    count_max: Int32 = field(name="maxNum", default=32)
    begin_timestamp_ms: Int64 = field(name="beginTimestamp", default=0)
    end_timestamp_ms: Int64 = field(name="endTimestamp", default=2**63 - 1)
    is_unique_key: bool = field(name="_UNIQUE_KEY_QUERY", default=False)


class ViewMessageHeader(Struct, kw_only=True):
    """VIEW_MESSAGE_BY_ID."""

    physical_offset: Int64 = field(name="offset")
    topic: str = ""


# --- clients and groups (34, 35, 38, 40) --------------------------------------------------------


class UnregisterClientHeader(Struct, kw_only=True):
    """UNREGISTER_CLIENT."""

    client_id: str = field(name="clientID")
    producer_group: str = field(name="producerGroup", default="")
    consumer_group: str = field(name="consumerGroup", default="")


class GetConsumerListHeader(Struct, kw_only=True):
    """GET_CONSUMER_LIST_BY_GROUP."""

    consumer_group: str = field(name="consumerGroup")


class NotifyConsumerIdsChangedHeader(Struct, kw_only=True):
    """NOTIFY_CONSUMER_IDS_CHANGED, sent by the broker, one-way."""

    consumer_group: str = field(name="consumerGroup")


# --- topics (17, 21, 202, 215, 300, 351) --------------------------------------------------------


class CreateTopicHeader(Struct, kw_only=True):
    """UPDATE_AND_CREATE_TOPIC. `attributes` is RocketMQ's text form, `+name=value,-name`."""

    topic: str
    default_topic: str = field(name="defaultTopic", default=AUTO_CREATE_TOPIC)
    read_queue_count: Int32 = field(name="readQueueNums", default=4)
    write_queue_count: Int32 = field(name="writeQueueNums", default=4)
    permission: Int32 = field(name="perm", default=6)
    filter_type: str = field(name="topicFilterType", default="SINGLE_TAG")
    topic_flags: Int32 = field(name="topicSysFlag", default=0)
    order: bool = False
    attributes: str = ""
    force: bool = False


class DeleteTopicHeader(Struct, kw_only=True):
    """DELETE_TOPIC_IN_BROKER."""

    topic: str


class GetTopicConfigHeader(Struct, kw_only=True):
    """GET_TOPIC_CONFIG."""

    topic: str


class GetAllTopicConfigHeader(Struct, kw_only=True):
    """GET_ALL_TOPIC_CONFIG; the fields page through the table and may be ignored."""

    topic_sequence: Int32 = field(name="topicSeq", default=0)
    topic_count_max: Int32 = field(name="maxTopicNum", default=0)
    data_version: str = field(name="dataVersion", default="")


class GetTopicStatsHeader(Struct, kw_only=True):
    """GET_TOPIC_STATS_INFO."""

    topic: str


class QueryTopicConsumersHeader(Struct, kw_only=True):
    """QUERY_TOPIC_CONSUME_BY_WHO."""

    topic: str


# --- groups (201, 203, 204, 207, 208, 352) ------------------------------------------------------


class GetAllGroupConfigHeader(Struct, kw_only=True):
    """GET_ALL_SUBSCRIPTION_GROUP_CONFIG; the fields page through the table and may be ignored."""

    group_sequence: Int32 = field(name="groupSeq", default=0)
    group_count_max: Int32 = field(name="maxGroupNum", default=0)
    data_version: str = field(name="dataVersion", default="")


class GetGroupConfigHeader(Struct, kw_only=True):
    """GET_SUBSCRIPTION_GROUP_CONFIG."""

    group: str


class DeleteGroupHeader(Struct, kw_only=True):
    """DELETE_SUBSCRIPTION_GROUP."""

    group: str = field(name="groupName")
    clean_offset: bool = field(name="cleanOffset", default=False)


class GetConsumerConnectionsHeader(Struct, kw_only=True):
    """GET_CONSUMER_CONNECTION_LIST."""

    consumer_group: str = field(name="consumerGroup")


class GetProducerConnectionsHeader(Struct, kw_only=True):
    """GET_PRODUCER_CONNECTION_LIST."""

    producer_group: str = field(name="producerGroup")


class GetConsumeStatsHeader(Struct, kw_only=True):
    """GET_CONSUME_STATS. `topic_list` joins names with semicolons."""

    consumer_group: str = field(name="consumerGroup")
    topic: str = ""
    topic_list: str = field(name="topicList", default="")


# --- members of a broker group ------------------------------------------------------------------


class TransferLeaderHeader(Struct, kw_only=True):
    """TRANSFER_LEADER: to which replica; to any that is ready if empty."""

    replica_id: str = field(name="replicaId", default="")


class TransferLeaderResponse(Struct, kw_only=True):
    """Who leads now; empty if that is not known yet."""

    replica_id: str = field(name="replicaId", default="")


class AddReplicaHeader(Struct, kw_only=True):
    """ADD_REPLICA: who joins the group, and where it is."""

    replica_id: str = field(name="replicaId")
    address: str
    raft_address: str = field(name="raftAddress")


class RemoveReplicaHeader(Struct, kw_only=True):
    """REMOVE_REPLICA: who leaves the group."""

    replica_id: str = field(name="replicaId")


def to_ext(header: Struct) -> dict[str, str]:
    """Returns the extension fields to send: decimals, `true`/`false`, text.

    Fields that are `None`, and optional texts that are empty, are left out.
    """
    ext: dict[str, str] = {}
    for attribute, wire_name, required in _wire_names(type(header)):
        value: Any = getattr(header, attribute)
        if value is None or (value == "" and not required):
            continue
        if value is True:
            ext[wire_name] = "true"
        elif value is False:
            ext[wire_name] = "false"
        else:
            ext[wire_name] = str(value)
    return ext


@functools.lru_cache(maxsize=512)
def _wire_names(type_: type[Struct]) -> tuple[tuple[str, str, bool], ...]:
    return tuple(
        (info.name, info.encode_name, info.required) for info in msgspec.structs.fields(type_)
    )
