"""Vocabulary shared by every layer: names and small immutable records.

Source: the RocketMQ domain model.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec


class MessageQueue(NamedTuple):
    """One queue of a topic in one broker group.

    The field order is the sort order that every client of a group must share, or two consumers
    take the same queue.
    """

    topic: str
    broker_name: str
    queue_id: int


class TopicConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as one broker group holds it. `topic_id` is never used again after a deletion."""

    name: str
    topic_id: int = 0
    read_queue_count: int = 4
    write_queue_count: int = 4
    permission: int = 6
    topic_flags: int = 0
    order: bool = False
    filter_type: str = "SINGLE_TAG"
    attributes: dict[str, str] = {}


class GroupConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription (consumer) group."""

    name: str
    consume_enable: bool = True
    consume_from_min_enable: bool = True
    consume_broadcast_enable: bool = True
    consume_message_orderly: bool = False
    retry_queue_count: int = 1
    retry_max: int = 16
    notify_consumer_ids_changed_enable: bool = True
    consume_timeout_minutes: int = 15
    attributes: dict[str, str] = {}


class QueueUnit(NamedTuple):
    """One ConsumeQueue unit: where a message lies, how long it is, what its tag hashes to."""

    physical_offset: int
    size_bytes: int
    tag_hash: int


class ConsumeFrom(Enum):
    """Where a group without a committed offset begins."""

    LATEST = "CONSUME_FROM_LAST_OFFSET"
    EARLIEST = "CONSUME_FROM_FIRST_OFFSET"
    TIMESTAMP = "CONSUME_FROM_TIMESTAMP"


class MessageModel(Enum):
    """How the members of a group share a topic."""

    CLUSTERING = "CLUSTERING"
    BROADCASTING = "BROADCASTING"


class SendStatus(Enum):
    """How far a message had come when the broker answered. We answer only when committed."""

    SEND_OK = "SEND_OK"
    FLUSH_DISK_TIMEOUT = "FLUSH_DISK_TIMEOUT"
    FLUSH_SLAVE_TIMEOUT = "FLUSH_SLAVE_TIMEOUT"
    SLAVE_NOT_AVAILABLE = "SLAVE_NOT_AVAILABLE"


class PullStatus(Enum):
    """What a pull found."""

    FOUND = "FOUND"
    NO_NEW_MESSAGE = "NO_NEW_MSG"
    NO_MATCHED_MESSAGE = "NO_MATCHED_MSG"
    OFFSET_ILLEGAL = "OFFSET_ILLEGAL"


class Role(Enum):
    """A replica's part in its Raft group."""

    LEADER = "leader"
    FOLLOWER = "follower"
    CANDIDATE = "candidate"
