"""Consumer offsets (14, 15) and the offsets of queues (29, 30, 31, 32). Serving leader only.

What a client asks here decides where it begins to read, so the answers that may not be stale
(14 and 30) are given only after a majority has confirmed that this replica still leads.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.catalog import Catalog, definite_failure
from broker.context import BrokerContext
from broker.messages import MessageReader
from broker.offset_commits import OffsetCommits
from broker.offset_resets import PendingResets
from dledger.errors import (
    DLedgerError,
    GroupNotFoundError,
    InvalidParameterError,
    NotFoundError,
    NotLeaderError,
    TopicNotFoundError,
)
from dledger.model import GroupConfig, TopicConfig
from dledger.remoting.commands import Command
from dledger.remoting.headers import (
    GetEarliestStoreTimeHeader,
    GetMaxOffsetHeader,
    GetMinOffsetHeader,
    QueryConsumerOffsetHeader,
    SearchOffsetHeader,
    UpdateConsumerOffsetHeader,
)
from dledger.remoting.server import Connection


class OffsetProcessor:
    """Answers questions for offsets and takes consumer offsets."""

    def __init__(
        self,
        context: BrokerContext,
        catalog: Catalog,
        commits: OffsetCommits,
        reader: MessageReader,
        resets: PendingResets,
        *,
        redirect: Callable[[Connection, Command], None],
    ) -> None:
        """Prepares the processor.

        Args:
            context: The broker's parts.
            catalog: Topics and groups.
            commits: Gathers consumer offsets.
            reader: Reads stored messages.
            resets: Which groups have still to move.
            redirect: Takes a request that had no effect because this replica stopped leading.
        """
        self._redirect = redirect
        self._context = context
        self._catalog = catalog
        self._commits = commits
        self._reader = reader
        self._resets = resets

    async def query_consumer_offset(self, connection: Connection, command: Command) -> None:
        """14: the next offset a group will consume.

        Raises:
            NotFoundError: None is stored. Not so for the beginning of a young queue, where
                clients of RocketMQ expect 0; see `BrokerConfig.young_queue_bytes`.
        """
        header = command.header(QueryConsumerOffsetHeader)
        await self._context.raft.read_barrier()
        store = self._context.store
        offset = self._reset_target(header.consumer_group, header.topic, header.queue_id)
        if offset is None:
            offset = store.consumer_offset(header.consumer_group, header.topic, header.queue_id)
        if offset is None and header.set_zero_if_not_found is not False:
            offset = 0 if self._begins_young(header.topic, header.queue_id) else None
        if offset is None:
            raise NotFoundError("Not found, maybe this group consumer boot first")
        connection.reply(command, 0, {"offset": str(offset)})

    def update_consumer_offset(self, connection: Connection, command: Command) -> None:
        """15: stores the next offset a group will consume; going back is allowed.

        A commit from before a reset that is still to be followed is ignored, with success.

        Raises:
            DLedgerError: Refused.
        """
        header = command.header(UpdateConsumerOffsetHeader)
        topic = self._topic(header.topic)
        _check_queue(topic, header.queue_id, max(topic.read_queue_count, topic.write_queue_count))
        if header.commit_offset < 0:
            raise InvalidParameterError("commitOffset must not be negative")

        if self._precedes_reset(
            header.consumer_group, topic.name, header.queue_id, header.commit_offset
        ):
            connection.reply(command)
            return

        def committed(error: DLedgerError | None) -> None:
            if error is None:
                connection.reply(command)
            elif isinstance(error, NotLeaderError):
                self._redirect(connection, command)
            else:
                connection.reply_error(command, error)

        def with_group(group: GroupConfig | None, error: DLedgerError | None) -> None:
            if group is None:
                # Whether the group will exist may be unknown; the offset certainly is not stored.
                committed(definite_failure(error, f"group {header.consumer_group}"))
                return
            try:
                self._commits.add(
                    group.name, topic.name, header.queue_id, header.commit_offset, committed
                )
            except DLedgerError as refused:
                committed(refused)

        name = header.consumer_group
        if self._context.store.group(name) is None and not self._catalog.may_create_group(name):
            raise _unknown_group(name)
        self._catalog.ensure_group(name, with_group)

    def commit_from_pull(self, group: str, topic: str, queue_id: int, offset: int) -> None:
        """Takes the offset that a pull carries. Best effort: the pull matters more.

        Pulls repeat the same offset many times; only a new one costs an entry.
        """
        if not self._context.raft.is_serving or self._context.store.group(group) is None:
            return
        if self._context.store.consumer_offset(group, topic, queue_id) == offset:
            return
        if self._precedes_reset(group, topic, queue_id, offset):
            return
        try:
            self._commits.add(group, topic, queue_id, offset)
        except DLedgerError:
            return

    async def max_offset(self, connection: Connection, command: Command) -> None:
        """30: the offset of the next message."""
        header = command.header(GetMaxOffsetHeader)
        await self._context.raft.read_barrier()
        _, offset_max = self._bounds(header.topic, header.queue_id)
        connection.reply(command, 0, {"offset": str(offset_max)})

    def min_offset(self, connection: Connection, command: Command) -> None:
        """31: the offset of the oldest message held."""
        header = command.header(GetMinOffsetHeader)
        offset_min, _ = self._bounds(header.topic, header.queue_id)
        connection.reply(command, 0, {"offset": str(offset_min)})

    def search_by_time(self, connection: Connection, command: Command) -> None:
        """29: the offset that belongs to a store timestamp."""
        header = command.header(SearchOffsetHeader)
        topic = self._topic(header.topic)
        _check_queue(topic, header.queue_id, topic.read_queue_count)
        upper = header.boundary_type.upper() == "UPPER"
        offset = self._reader.search_by_time(
            topic, header.queue_id, header.timestamp_ms, upper=upper
        )
        connection.reply(command, 0, {"offset": str(offset)})

    def earliest_store_time(self, connection: Connection, command: Command) -> None:
        """32: when the oldest message of a queue was stored; -1 for an empty queue."""
        header = command.header(GetEarliestStoreTimeHeader)
        offset_min, _ = self._bounds(header.topic, header.queue_id)
        topic = self._topic(header.topic)
        time_ms = self._reader.store_timestamp(topic.topic_id, header.queue_id, offset_min)
        connection.reply(command, 0, {"timestamp": str(-1 if time_ms is None else time_ms)})

    def _reset_target(self, group: str, name: str, queue_id: int) -> int | None:
        topic = self._context.store.topic(name)
        return None if topic is None else self._resets.target((group, topic.topic_id, queue_id))

    def _precedes_reset(self, group: str, name: str, queue_id: int, offset: int) -> bool:
        """Tells whether a commit is older than a reset; one of the new offset has followed it."""
        target = self._reset_target(group, name, queue_id)
        if target is None:
            return False
        if offset != target:
            return True
        self._resets.has_come((group, self._topic(name).topic_id, queue_id), offset)
        return False

    def _begins_young(self, name: str, queue_id: int) -> bool:
        topic = self._context.store.topic(name)
        young_bytes = self._context.config.young_queue_bytes
        return topic is not None and self._reader.begins_young(
            topic.topic_id, queue_id, young_bytes
        )

    def _bounds(self, name: str, queue_id: int) -> tuple[int, int]:
        topic = self._topic(name)
        _check_queue(topic, queue_id, max(topic.read_queue_count, topic.write_queue_count))
        return self._context.store.queue_bounds(topic.topic_id, queue_id)

    def _topic(self, name: str) -> TopicConfig:
        topic = self._context.store.topic(name)
        if topic is None:
            raise TopicNotFoundError(f"topic[{name}] not exist")
        return topic


def _check_queue(topic: TopicConfig, queue_id: int, limit: int) -> None:
    if not 0 <= queue_id < limit:
        raise InvalidParameterError(
            f"queueId[{queue_id}] is illegal, topic {topic.name} has {limit} queues"
        )


def _unknown_group(name: str) -> GroupNotFoundError:
    return GroupNotFoundError(f"subscription group [{name}] does not exist")
