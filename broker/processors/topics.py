"""Topics: 17, 21, 202, 215, 300, 305 and 351."""

from __future__ import annotations

import logging
import re

from broker import commands, names
from broker.context import BrokerContext
from broker.messages import MessageReader
from broker.quotas import parse_quotas
from dledger.errors import FlowControlError, InvalidParameterError, TopicNotFoundError
from dledger.message import validate_topic
from dledger.model import MessageQueue, TopicConfig
from dledger.remoting.bodies import (
    DataVersion,
    TopicOffset,
    TopicStats,
    TopicTable,
    encode_group_list,
    encode_topic_config,
    encode_topic_list,
    encode_topic_stats,
    encode_topic_table,
)
from dledger.remoting.commands import Command
from dledger.remoting.headers import (
    CreateTopicHeader,
    DeleteTopicHeader,
    GetTopicConfigHeader,
    GetTopicStatsHeader,
    QueryTopicConsumersHeader,
)
from dledger.remoting.server import Connection

logger = logging.getLogger(__name__)

PERMISSION_MAX = 7
ATTRIBUTES_MAX = 64
ATTRIBUTE_LENGTH_MAX = 256
_FILTER_TYPES = ("SINGLE_TAG", "MULTI_TAG")
_ATTRIBUTE_NAME = re.compile(r"[A-Za-z0-9._-]+")


class TopicProcessor:
    """Creates, changes, deletes and describes topics."""

    def __init__(self, context: BrokerContext, reader: MessageReader) -> None:
        self._context = context
        self._reader = reader

    async def create(self, connection: Connection, command: Command) -> None:
        """17: creates a topic or changes one. Serving leader only; repeating it is harmless.

        Durability: committed on a majority and applied here when answered.
        """
        header = command.header(CreateTopicHeader)
        existing = self._context.store.topic(header.topic)
        config = self._checked(header, existing)
        parse_quotas(config.attributes)
        self._context.gate.check()
        limit = self._context.config.limits.topics_max
        if existing is None and len(self._context.store.topics) >= limit:
            raise FlowControlError(f"limits.topics_max = {limit} is reached")
        await self._context.raft.submit(commands.encode_put_topic(config))
        logger.info("topic put: topic=%s queues=%d", config.name, config.write_queue_count)
        connection.reply(command)

    async def delete(self, connection: Connection, command: Command) -> None:
        """215: deletes a topic with its messages and offsets. Success if there is none."""
        name = command.header(DeleteTopicHeader).topic
        if not name:
            raise InvalidParameterError("the topic name is empty")
        if self._is_system(name):
            raise InvalidParameterError(f"the topic[{name}] is a system topic")
        self._context.gate.check()
        if self._context.store.topic(name) is not None:
            await self._context.raft.submit(commands.encode_delete_topic(name))
            logger.info("topic deleted: topic=%s", name)
        connection.reply(command)

    def config(self, connection: Connection, command: Command) -> None:
        """351: one topic's configuration."""
        topic = self._topic(command.header(GetTopicConfigHeader).topic)
        connection.reply(command, body=encode_topic_config(topic))

    async def config_now(self, connection: Connection, command: Command) -> None:
        """351 of a client that wants the leader's answer: the configuration as last changed.

        Raises:
            NotLeaderError: This replica does not serve; one that was replaced without having
                heard of it finds out first.
        """
        await self._context.raft.read_barrier()
        self.config(connection, command)

    def all_configs(self, connection: Connection, command: Command) -> None:
        """21: all topics."""
        topics = dict(self._context.store.topics)
        version = DataVersion(counter=self._context.store.applied_index)
        body = encode_topic_table(TopicTable(topics=topics, data_version=version))
        connection.reply(command, 0, {"totalTopicNum": str(len(topics))}, body=body)

    def system_topics(self, connection: Connection, command: Command) -> None:
        """305: the names that belong to the broker."""
        config = self._context.config
        listed = names.system_topic_names(
            cluster_name=config.cluster_name, broker_name=config.broker_name
        )
        connection.reply(command, body=encode_topic_list(listed))

    def stats(self, connection: Connection, command: Command) -> None:
        """202: bounds and newest store time of every queue of a topic."""
        topic = self._topic(command.header(GetTopicStatsHeader).topic)
        offsets: dict[MessageQueue, TopicOffset] = {}
        for queue_id in range(max(topic.write_queue_count, topic.read_queue_count)):
            low, high = self._context.store.queue_bounds(topic.topic_id, queue_id)
            newest = self._reader.store_timestamp(topic.topic_id, queue_id, high - 1)
            queue = MessageQueue(topic.name, self._context.config.broker_name, queue_id)
            offsets[queue] = TopicOffset(
                offset_min=low, offset_max=high, last_update_timestamp_ms=newest or 0
            )
        flow = self._context.statistics.topic(topic.name)
        now_s = self._context.clock.monotonic()
        put_tps = flow.messages.minute(now_s).per_second if flow is not None else 0.0
        body = encode_topic_stats(TopicStats(offsets=offsets, put_tps=put_tps))
        connection.reply(command, body=body)

    def consumers(self, connection: Connection, command: Command) -> None:
        """300: the groups that subscribe to a topic or have offsets in it."""
        topic = command.header(QueryTopicConsumersHeader).topic
        store = self._context.store
        groups = set(self._context.clients.groups_of_topic(topic))
        for group in store.groups_with_offsets():
            if group not in groups and any(t == topic for t, _ in store.consumer_offsets(group)):
                groups.add(group)
        connection.reply(command, body=encode_group_list(sorted(groups)))

    # --- inside -----------------------------------------------------------------------------

    def _topic(self, name: str) -> TopicConfig:
        topic = self._context.store.topic(name)
        if topic is None:
            raise TopicNotFoundError(f"No topic in this broker. topic: {name}")
        return topic

    def _is_system(self, name: str) -> bool:
        config = self._context.config
        return names.is_system_topic(
            name, cluster_name=config.cluster_name, broker_name=config.broker_name
        )

    def _checked(self, header: CreateTopicHeader, existing: TopicConfig | None) -> TopicConfig:
        validate_topic(header.topic)
        if self._is_system(header.topic):
            raise InvalidParameterError(f"the topic[{header.topic}] is a system topic")
        limit = self._context.config.limits.queue_count_max
        for field, count in (
            ("readQueueNums", header.read_queue_count),
            ("writeQueueNums", header.write_queue_count),
        ):
            if not 0 < count <= limit:
                raise InvalidParameterError(f"{field}[{count}] must lie in 1..{limit}")
        if not 0 <= header.permission <= PERMISSION_MAX:
            raise InvalidParameterError(
                f"perm[{header.permission}] must lie in 0..{PERMISSION_MAX}"
            )
        if header.filter_type not in _FILTER_TYPES:
            raise InvalidParameterError(f"topicFilterType[{header.filter_type}] is unknown")
        attributes = dict(existing.attributes) if existing is not None else {}
        return TopicConfig(
            name=header.topic,
            read_queue_count=header.read_queue_count,
            write_queue_count=header.write_queue_count,
            permission=header.permission,
            topic_flags=header.topic_flags,
            order=header.order,
            filter_type=header.filter_type,
            attributes=change_attributes(attributes, header.attributes),
        )


def change_attributes(attributes: dict[str, str], text: str) -> dict[str, str]:
    """Returns attributes after changes like `+message.type=FIFO,-other`.

    Raises:
        InvalidParameterError: A part has another form, or there are too many or too long ones.
    """
    changed = dict(attributes)
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        sign, rest = part[0], part[1:]
        name, separator, value = rest.partition("=")
        if len(part) > ATTRIBUTE_LENGTH_MAX or not _ATTRIBUTE_NAME.fullmatch(name):
            raise InvalidParameterError(f"attribute {part[:80]!r} has a bad name or is too long")
        if sign == "+" and separator and value:
            changed[name] = value
        elif sign == "-" and not separator:
            changed.pop(name, None)
        else:
            raise InvalidParameterError(f"attribute {part!r} must be +name=value or -name")
    if len(changed) > ATTRIBUTES_MAX:
        raise InvalidParameterError(f"more than {ATTRIBUTES_MAX} attributes")
    return changed
