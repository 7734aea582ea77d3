"""Topic and group configuration: the bodies of 21, 103 (as JSON), 200, 201, 322, 351 and 352."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct, field

from dledger.model import GroupConfig, TopicConfig
from dledger.remoting.bodies.codec import decode_json


class DataVersion(Struct, kw_only=True):
    """A version that orders the tables of one broker: first by state version, then the rest."""

    counter: int = 0
    state_version: int = field(name="stateVersion", default=0)
    timestamp_ms: int = field(name="timestamp", default=0)


class TopicTable(Struct, kw_only=True):
    """All topics of a broker group."""

    topics: dict[str, TopicConfig] = {}
    data_version: DataVersion = field(default_factory=DataVersion)


class GroupTable(Struct, kw_only=True):
    """All consumer groups of a broker group."""

    groups: dict[str, GroupConfig] = {}
    data_version: DataVersion = field(default_factory=DataVersion)


class RegisterBrokerBody(Struct, kw_only=True):
    """What a broker tells the nameserver about its topics."""

    topics: dict[str, TopicConfig] = {}
    data_version: DataVersion = field(default_factory=DataVersion)
    filter_servers: list[str] = []


class _TopicWire(Struct, kw_only=True):
    name: str = field(name="topicName")
    read_queue_count: int = field(name="readQueueNums", default=16)
    write_queue_count: int = field(name="writeQueueNums", default=16)
    permission: int = field(name="perm", default=6)
    filter_type: str = field(name="topicFilterType", default="SINGLE_TAG")
    topic_flags: int = field(name="topicSysFlag", default=0)
    order: bool = False
    attributes: dict[str, str] = {}


class _TopicTableWire(Struct, kw_only=True):
    data_version: DataVersion = field(name="dataVersion", default_factory=DataVersion)
    topics: dict[str, _TopicWire] = field(name="topicConfigTable", default_factory=dict)


class _RegisterWire(Struct, kw_only=True):
    filter_servers: list[str] = field(name="filterServerList", default_factory=list)
    table: _TopicTableWire = field(
        name="topicConfigSerializeWrapper", default_factory=_TopicTableWire
    )


class _GroupWire(Struct, kw_only=True):
    name: str = field(name="groupName")
    consume_enable: bool = field(name="consumeEnable", default=True)
    consume_from_min_enable: bool = field(name="consumeFromMinEnable", default=True)
    consume_broadcast_enable: bool = field(name="consumeBroadcastEnable", default=True)
    consume_message_orderly: bool = field(name="consumeMessageOrderly", default=False)
    retry_queue_count: int = field(name="retryQueueNums", default=1)
    retry_max: int = field(name="retryMaxTimes", default=16)
    notify_consumer_ids_changed_enable: bool = field(
        name="notifyConsumerIdsChangedEnable", default=True
    )
    consume_timeout_minutes: int = field(name="consumeTimeoutMinute", default=15)
    attributes: dict[str, str] = {}
    # Parts of the original that we have no use for; Java readers want the numbers present.
    broker_id: int = field(name="brokerId", default=0)
    which_broker_when_slow: int = field(name="whichBrokerWhenConsumeSlowly", default=1)
    group_flags: int = field(name="groupSysFlag", default=0)


class _GroupTableWire(Struct, kw_only=True):
    data_version: DataVersion = field(name="dataVersion", default_factory=DataVersion)
    forbidden: dict[str, dict[str, int]] = field(name="forbiddenTable", default_factory=dict)
    groups: dict[str, _GroupWire] = field(name="subscriptionGroupTable", default_factory=dict)


def encode_topic_config(topic: TopicConfig) -> bytes:
    """Returns the body that answers GET_TOPIC_CONFIG."""
    return msgspec.json.encode(_topic_to_wire(topic))


def decode_topic_config(data: bytes) -> TopicConfig:
    """Decodes one topic's configuration; `topic_id` is not on the wire."""
    return _topic_from_wire(decode_json(data, _TopicWire))


def encode_topic_table(table: TopicTable) -> bytes:
    """Returns the body that answers GET_ALL_TOPIC_CONFIG."""
    return msgspec.json.encode(_topic_table_to_wire(table.topics, table.data_version))


def decode_topic_table(data: bytes) -> TopicTable:
    """Decodes the answer to GET_ALL_TOPIC_CONFIG."""
    wire = decode_json(data, _TopicTableWire)
    return TopicTable(
        topics={name: _topic_from_wire(topic) for name, topic in wire.topics.items()},
        data_version=wire.data_version,
    )


def encode_group_config(group: GroupConfig) -> bytes:
    """Returns the JSON of one consumer group's configuration."""
    return msgspec.json.encode(_group_to_wire(group))


def decode_group_config(data: bytes) -> GroupConfig:
    """Decodes one consumer group's configuration."""
    return _group_from_wire(decode_json(data, _GroupWire))


def encode_group_table(table: GroupTable) -> bytes:
    """Returns the body that answers GET_ALL_SUBSCRIPTION_GROUP_CONFIG."""
    return msgspec.json.encode(
        _GroupTableWire(
            data_version=table.data_version,
            groups={name: _group_to_wire(group) for name, group in table.groups.items()},
        )
    )


def decode_group_table(data: bytes) -> GroupTable:
    """Decodes the answer to GET_ALL_SUBSCRIPTION_GROUP_CONFIG."""
    wire = decode_json(data, _GroupTableWire)
    return GroupTable(
        groups={name: _group_from_wire(group) for name, group in wire.groups.items()},
        data_version=wire.data_version,
    )


def encode_register_json(body: RegisterBrokerBody) -> bytes:
    """Returns the uncompressed body of a REGISTER_BROKER."""
    return msgspec.json.encode(
        _RegisterWire(
            filter_servers=body.filter_servers,
            table=_topic_table_to_wire(body.topics, body.data_version),
        )
    )


def decode_register_json(data: bytes) -> RegisterBrokerBody:
    """Decodes the uncompressed body of a REGISTER_BROKER."""
    wire = decode_json(data, _RegisterWire)
    return RegisterBrokerBody(
        topics={name: _topic_from_wire(topic) for name, topic in wire.table.topics.items()},
        data_version=wire.table.data_version,
        filter_servers=wire.filter_servers,
    )


def encode_data_version(version: DataVersion) -> bytes:
    """Returns the body of a QUERY_DATA_VERSION."""
    return msgspec.json.encode(version)


def decode_data_version(data: bytes) -> DataVersion:
    """Decodes the body of a QUERY_DATA_VERSION."""
    return decode_json(data, DataVersion)


def _topic_to_wire(topic: TopicConfig) -> _TopicWire:
    return _TopicWire(
        name=topic.name,
        read_queue_count=topic.read_queue_count,
        write_queue_count=topic.write_queue_count,
        permission=topic.permission,
        filter_type=topic.filter_type,
        topic_flags=topic.topic_flags,
        order=topic.order,
        attributes=topic.attributes,
    )


def _topic_from_wire(wire: _TopicWire) -> TopicConfig:
    return TopicConfig(
        name=wire.name,
        read_queue_count=wire.read_queue_count,
        write_queue_count=wire.write_queue_count,
        permission=wire.permission,
        filter_type=wire.filter_type,
        topic_flags=wire.topic_flags,
        order=wire.order,
        attributes=wire.attributes,
    )


def _topic_table_to_wire(
    topics: Mapping[str, TopicConfig], data_version: DataVersion
) -> _TopicTableWire:
    return _TopicTableWire(
        data_version=data_version,
        topics={name: _topic_to_wire(topic) for name, topic in topics.items()},
    )


_GROUP_FIELDS = tuple(GroupConfig.__struct_fields__)


def _group_to_wire(group: GroupConfig) -> _GroupWire:
    return _GroupWire(**{name: getattr(group, name) for name in _GROUP_FIELDS})


def _group_from_wire(wire: _GroupWire) -> GroupConfig:
    return GroupConfig(**{name: getattr(wire, name) for name in _GROUP_FIELDS})
