"""INVOKE_BROKER_TO_RESET_OFFSET (222) and CLONE_GROUP_OFFSET (314). Serving leader only."""

from __future__ import annotations

import logging

from broker.catalog import Catalog
from broker.context import BrokerContext
from broker.feature_commands import encode_feature
from broker.messages import MessageReader
from broker.offset_resets import Key, PendingResets, ResetOffsets, ResetsFollowed
from dledger.errors import (
    DLedgerError,
    GroupNotFoundError,
    InvalidParameterError,
    TopicNotFoundError,
)
from dledger.message import validate_group
from dledger.model import MessageQueue, TopicConfig
from dledger.remoting.bodies import encode_offset_table
from dledger.remoting.commands import Command
from dledger.remoting.reset_headers import CloneGroupOffsetHeader, ResetOffsetHeader
from dledger.remoting.server import Connection

logger = logging.getLogger(__name__)

LATEST = -1


class ResetProcessor:
    """Moves consumer groups."""

    def __init__(self, context: BrokerContext, catalog: Catalog, reader: MessageReader) -> None:
        self._context = context
        self._catalog = catalog
        self._reader = reader
        self.pending = PendingResets(context.store.rows, self._follow)

    async def reset(self, connection: Connection, command: Command) -> None:
        """222: moves a group in all queues of a topic, or in one, and says where to.

        The offset is that of the first message stored at or after `timestamp` (-1: the end), or
        `offset` if one is given for one queue. Members follow with their next pull, at the latest;
        none need be online.

        Raises:
            TopicNotFoundError, GroupNotFoundError: There is none.
            InvalidParameterError: No such queue, an offset outside, or a broadcasting group.

        Durability: committed on a majority and applied here when answered.
        """
        header = command.header(ResetOffsetHeader)
        topic = self._context.store.topic(header.topic)
        if topic is None:
            raise TopicNotFoundError(f"topic[{header.topic}] not exist")
        self._check_group(header.group)
        queue_ids = list(range(topic.read_queue_count))
        if header.queue_id is not None and header.queue_id != -1:
            if header.queue_id not in queue_ids:
                raise InvalidParameterError(f"topic {topic.name} has no queue {header.queue_id}")
            queue_ids = [header.queue_id]
        explicit = header.offset if header.offset is not None and header.offset >= 0 else None
        if explicit is not None and len(queue_ids) != 1:
            raise InvalidParameterError("an offset needs a queue id")
        targets = [
            (queue_id, self._target(topic, queue_id, header.timestamp_ms, explicit))
            for queue_id in queue_ids
        ]
        await self._propose(header.group, topic.name, targets)
        name = self._context.config.broker_name
        table = {MessageQueue(topic.name, name, queue_id): offset for queue_id, offset in targets}
        connection.reply(command, body=encode_offset_table(table))

    async def clone(self, connection: Connection, command: Command) -> None:
        """314: moves a group to where another one is, in one topic or all.

        Topics that the source's members online do not subscribe to are left out, unless `offline`.
        """
        header = command.header(CloneGroupOffsetHeader)
        validate_group(header.source_group)
        self._check_group(header.target_group)
        store = self._context.store
        by_topic: dict[str, list[tuple[int, int]]] = {}
        for (topic, queue_id), offset in store.consumer_offsets(header.source_group).items():
            if header.topic in ("", topic):
                by_topic.setdefault(topic, []).append((queue_id, offset))
        online = self._context.clients.consumer_group(header.source_group)
        for topic, offsets in sorted(by_topic.items()):
            if not header.offline and online is not None and topic not in online.subscriptions:
                continue
            await self._propose(header.target_group, topic, sorted(offsets))
        connection.reply(command)

    async def _propose(self, group: str, topic: str, targets: list[tuple[int, int]]) -> None:
        self._context.gate.check()
        self._catalog.ensure_group_soon(group)
        await self._context.raft.submit(encode_feature(ResetOffsets(group, topic, targets)))
        logger.info("offsets reset: group=%s topic=%s targets=%s", group, topic, targets[:64])

    def _check_group(self, name: str) -> None:
        validate_group(name)
        if self._context.store.group(name) is None and not self._catalog.may_create_group(name):
            raise GroupNotFoundError(f"subscription group [{name}] does not exist")
        online = self._context.clients.consumer_group(name)
        if online is not None and online.message_model == "BROADCASTING":
            raise InvalidParameterError(f"group {name} keeps its offsets itself: it broadcasts")

    def _target(
        self, topic: TopicConfig, queue_id: int, timestamp_ms: int, explicit: int | None
    ) -> int:
        offset_min, offset_max = self._context.store.queue_bounds(topic.topic_id, queue_id)
        if explicit is not None:
            if not offset_min <= explicit <= offset_max:
                raise InvalidParameterError(
                    f"offset {explicit} of queue {queue_id} lies outside "
                    f"[{offset_min}, {offset_max}]"
                )
            return explicit
        if timestamp_ms == LATEST:
            return offset_max
        return self._reader.search_by_time(topic, queue_id, timestamp_ms, upper=False)

    def _follow(self, key: Key, offset: int) -> None:
        group, topic_id, queue_id = key
        command = encode_feature(ResetsFollowed(group, topic_id, [(queue_id, offset)]))

        def done(_result: object, error: DLedgerError | None) -> None:
            self.pending.settled(key, offset)
            if error is not None:
                logger.info("a reset stays pending: group=%s reason=%s", group, error)

        try:
            self._context.raft.propose(command, done)
        except DLedgerError as error:
            done(None, error)
