"""Looking closely: 43, 303, 321, 328, 343, 345; ours: 30060 and 30061."""

from __future__ import annotations

from broker.context import BrokerContext
from broker.filters import subscription_codes
from broker.messages import MessageReader
from broker.processors.clients import connections_of
from dledger.errors import InvalidParameterError, NotFoundError, TopicNotFoundError
from dledger.message import Property, decode_properties, stored_properties
from dledger.model import MessageQueue, TopicConfig
from dledger.remoting.admin_headers import (
    ConsumeTimeSpanHeader,
    LocateMessageHeader,
    LocateMessageResponse,
    QueryConsumeQueueHeader,
    QuerySubscriptionHeader,
    QueryTopicsOfGroupHeader,
    SubscriptionDifferencesHeader,
)
from dledger.remoting.bodies import SubscriptionData, encode_topic_list
from dledger.remoting.bodies.admin import (
    MemberSubscription,
    QueueTimeSpan,
    SubscriptionDifferences,
    encode_consume_queue,
    encode_consumer_offsets,
    encode_differences,
    encode_producers,
    encode_subscription,
    encode_time_spans,
)
from dledger.remoting.commands import Command
from dledger.remoting.headers import to_ext
from dledger.remoting.server import Connection

UNITS_MAX = 1000


class InspectionProcessor:
    """Shows queues, offsets and members. Any replica answers from what it has applied."""

    def __init__(self, context: BrokerContext, reader: MessageReader) -> None:
        self._context = context
        self._reader = reader

    def all_offsets(self, connection: Connection, command: Command) -> None:
        """43: the offsets of all groups."""
        store = self._context.store
        table: dict[tuple[str, str], dict[int, int]] = {}
        for group in store.groups_with_offsets():
            for (topic, queue_id), offset in store.consumer_offsets(group).items():
                table.setdefault((topic, group), {})[queue_id] = offset
        connection.reply(command, body=encode_consumer_offsets(table))

    def time_spans(self, connection: Connection, command: Command) -> None:
        """303: of each queue, when its oldest, newest and last consumed messages were stored."""
        header = command.header(ConsumeTimeSpanHeader)
        topic = self._topic(header.topic)
        store = self._context.store
        stored = store.consumer_offsets(header.group)
        now_ms = self._context.clock.wall_ms()
        spans: list[QueueTimeSpan] = []
        for queue_id in range(topic.read_queue_count):
            low, high = store.queue_bounds(topic.topic_id, queue_id)
            at = stored.get((topic.name, queue_id), low)

            def time(offset: int, queue_id: int = queue_id) -> int:
                return self._reader.store_timestamp(topic.topic_id, queue_id, offset) or 0

            waiting_since_ms = time(at) if at < high else 0
            spans.append(
                QueueTimeSpan(
                    queue=MessageQueue(topic.name, self._context.config.broker_name, queue_id),
                    oldest_ms=time(low),
                    newest_ms=time(high - 1),
                    consumed_ms=time(at - 1),
                    delay_ms=max(0, now_ms - waiting_since_ms) if waiting_since_ms else 0,
                )
            )
        connection.reply(command, body=encode_time_spans(spans))

    def consume_queue(self, connection: Connection, command: Command) -> None:
        """321: units of a queue, and whether a group's tags let each pass."""
        header = command.header(QueryConsumeQueueHeader)
        topic = self._topic(header.topic)
        if not 0 <= header.queue_id < max(topic.read_queue_count, topic.write_queue_count):
            raise InvalidParameterError(f"queueId[{header.queue_id}] is illegal")
        low, high = self._context.store.queue_bounds(topic.topic_id, header.queue_id)
        wanted = None
        if header.group:
            found = self._context.clients.subscription(header.group, topic.name)
            wanted = found if isinstance(found, SubscriptionData) else None
        codes = None
        if wanted is not None and wanted.expression_type in ("", "TAG"):
            codes = subscription_codes(wanted.expression, wanted.tags, wanted.codes)
        start = min(max(header.index, low), high)
        count = min(max(0, header.count), UNITS_MAX, high - start)
        units = self._context.store.read_units(topic.topic_id, header.queue_id, start, count)
        rows = [(unit, codes is None or unit.tag_hash in codes) for unit in units]
        body = encode_consume_queue(rows, offset_min=low, offset_max=high, subscription=wanted)
        connection.reply(command, body=body)

    def producers(self, connection: Connection, command: Command) -> None:
        """328: all producers connected to this replica, by group."""
        clients = self._context.clients
        groups = {
            group: connections_of(clients.producer_members(group))
            for group in clients.producer_groups()
        }
        body = encode_producers(groups, self._context.clock.wall_ms())
        connection.reply(command, body=body)

    def topics_of_group(self, connection: Connection, command: Command) -> None:
        """343: the topics that a group consumes or has offsets in."""
        group = command.header(QueryTopicsOfGroupHeader).group
        topics = {topic for topic, _ in self._context.store.consumer_offsets(group)}
        online = self._context.clients.consumer_group(group)
        if online is not None:
            topics.update(online.subscriptions)
        connection.reply(command, body=encode_topic_list(sorted(topics)))

    def subscription(self, connection: Connection, command: Command) -> None:
        """345: what a group that is online wants of a topic."""
        header = command.header(QuerySubscriptionHeader)
        found = self._context.clients.subscription(header.group, header.topic)
        wanted = found if isinstance(found, SubscriptionData) else None
        body = encode_subscription(header.group, header.topic, wanted)
        connection.reply(command, body=body)

    def differences(self, connection: Connection, command: Command) -> None:
        """30060, ours: the groups whose members subscribe to different things."""
        wanted = command.header(SubscriptionDifferencesHeader).group
        clients = self._context.clients
        groups = {
            group: [MemberSubscription(client_id=id_, topics=topics) for id_, topics in members]
            for group, members in clients.differences().items()
            if not wanted or group == wanted
        }
        guard = clients.guard_counts
        answer = SubscriptionDifferences(
            groups=groups, detected=guard.detected, refused=guard.refused
        )
        connection.reply(command, body=encode_differences(answer))

    def locate(self, connection: Connection, command: Command) -> None:
        """30061, ours: where the message at a physical offset lies in this replica's log.

        Raises:
            NotFoundError: This replica does not hold it, or has not applied it yet.
        """
        offset = command.header(LocateMessageHeader).physical_offset
        data = self._reader.view(offset) if offset >= 0 else None
        place = self._context.log.locate(offset)
        if data is None or place is None:
            raise NotFoundError(f"no message is known to begin at {offset}")
        index, term = place
        raft = self._context.raft
        answer = LocateMessageResponse(
            replica_id=self._context.config.replica_id,
            index=index,
            term=term,
            unique_key=decode_properties(stored_properties(data)).get(Property.UNIQUE_KEY, ""),
            is_durable=raft.durable_index >= index,
            is_applied=raft.applied_index >= index,
            is_leader=raft.is_serving,
        )
        connection.reply(command, 0, to_ext(answer))

    def _topic(self, name: str) -> TopicConfig:
        topic = self._context.store.topic(name)
        if topic is None:
            raise TopicNotFoundError(f"topic[{name}] not exist")
        return topic
