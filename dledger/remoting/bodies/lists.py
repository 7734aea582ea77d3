"""Plain lists and tables: the bodies of 28, 38, 206, 219, 224, 300 and 304."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct, field

from dledger.remoting.bodies.codec import decode_json, encode_without_nulls


class ConsumerIdList(Struct, kw_only=True):
    """The client ids of a group's members."""

    consumer_ids: list[str] = field(name="consumerIdList", default_factory=list)


class TopicList(Struct, kw_only=True):
    """Topic names; `broker_address` only in the answer to the system topic list."""

    topics: list[str] = field(name="topicList", default_factory=list)
    broker_address: str | None = field(name="brokerAddr", default=None)


class GroupList(Struct, kw_only=True):
    """Names of consumer groups."""

    groups: list[str] = field(name="groupList", default_factory=list)


class KvTable(Struct, kw_only=True):
    """Texts by name: key-value configuration, broker runtime information."""

    table: dict[str, str] = {}


def encode_consumer_ids(ids: Sequence[str]) -> bytes:
    """Returns the body that answers GET_CONSUMER_LIST_BY_GROUP."""
    return msgspec.json.encode(ConsumerIdList(consumer_ids=list(ids)))


def decode_consumer_ids(data: bytes) -> list[str]:
    """Decodes the answer to GET_CONSUMER_LIST_BY_GROUP."""
    return decode_json(data, ConsumerIdList).consumer_ids


def encode_topic_list(topics: Sequence[str], broker_address: str | None = None) -> bytes:
    """Returns a body that lists topic names."""
    return encode_without_nulls(TopicList(topics=list(topics), broker_address=broker_address))


def decode_topic_list(data: bytes) -> TopicList:
    """Decodes a body that lists topic names."""
    return decode_json(data, TopicList)


def encode_group_list(groups: Sequence[str]) -> bytes:
    """Returns the body that answers QUERY_TOPIC_CONSUME_BY_WHO."""
    return msgspec.json.encode(GroupList(groups=list(groups)))


def decode_group_list(data: bytes) -> list[str]:
    """Decodes the answer to QUERY_TOPIC_CONSUME_BY_WHO."""
    return decode_json(data, GroupList).groups


def encode_kv_table(table: Mapping[str, str]) -> bytes:
    """Returns a body that holds a table of texts."""
    return msgspec.json.encode(KvTable(table=dict(table)))


def decode_kv_table(data: bytes) -> dict[str, str]:
    """Decodes a body that holds a table of texts."""
    return decode_json(data, KvTable).table
