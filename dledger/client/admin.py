"""Manages topics and groups, and looks at a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dledger.client.config import AdminConfig, nameserver_addresses
from dledger.client.dead_letters import DeadLetters
from dledger.client.group_admin import GroupAdmin
from dledger.client.inspector import Inspector
from dledger.client.offsets import Offsets
from dledger.client.resets import OffsetResets
from dledger.client.results import QueueBounds, QueueProgress, TopicDescription
from dledger.client.session import ClientSession
from dledger.client.topic_header import topic_header
from dledger.client.topology import Topology
from dledger.clock import Clock, SystemClock
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import (
    BrokerResponseError,
    DLedgerError,
    InvalidParameterError,
    NotFoundError,
    RouteNotFoundError,
    TopicNotFoundError,
)
from dledger.lifetime import AsyncLifetime
from dledger.message import (
    ReceivedMessage,
    decode_run,
    decode_stored,
    parse_offset_message_id,
    validate_group,
    validate_topic,
)
from dledger.model import ConsumeFrom, GroupConfig, MessageQueue, TopicConfig
from dledger.remoting.bodies import (
    ClusterInfo,
    ConnectionList,
    decode_connection_list,
    decode_consume_stats,
    decode_group_list,
    decode_group_table,
    decode_kv_table,
    decode_topic_config,
    decode_topic_list,
    decode_topic_table,
    encode_group_config,
)
from dledger.remoting.commands import Command
from dledger.remoting.errors import response_error
from dledger.remoting.headers import (
    CreateTopicHeader,
    DeleteGroupHeader,
    DeleteTopicHeader,
    GetConsumerConnectionsHeader,
    GetConsumeStatsHeader,
    GetTopicConfigHeader,
    QueryMessageHeader,
    QueryTopicConsumersHeader,
    ViewMessageHeader,
)
from dledger.remoting.nameserver_headers import DeleteTopicInNameserverHeader
from dledger.remoting.reset_headers import CloneGroupOffsetHeader

_VISIBLE_S = 5.0  # how long a new topic may take to show in the nameservers


class AsyncAdmin(GroupAdmin, AsyncLifetime):
    """Administers a cluster.

    Every method raises `BrokerResponseError` when a server refuses (its `definite` says whether
    anything may have happened), and `ConnectFailedError`, `ConnectionLostError` or
    `RequestTimeoutError` when none answers in time. Changes are repeated until they are
    confirmed: they may be made twice without harm.

    Concurrency:
        Methods belong to the loop that `start` ran on.
    """

    def __init__(
        self,
        *,
        nameserver: str | Sequence[str] | None = None,
        config: AdminConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing. See `AsyncProducer`."""
        self.config = config or AdminConfig()
        self._session = ClientSession(
            self.config.session, nameserver_addresses(nameserver), clock or SystemClock()
        )
        self._offsets = Offsets(self._session)
        self._resets = OffsetResets(self._session, self._offsets)

    async def start(self) -> None:
        """Makes the client ready."""
        await self._session.start()

    async def close(self) -> None:
        """Disconnects. A second call does nothing."""
        await self._session.close()

    def dead_letters(self) -> DeadLetters:
        """Returns what looks at dead letters and replays them."""
        return DeadLetters(self._session)

    def topology(self) -> Topology:
        """Returns what extends topics to a new broker group, and makes order topics."""
        return Topology(self._session)

    def inspector(self) -> Inspector:
        """Returns what explains messages and changes attributes."""
        return Inspector(self._session, self)

    # --- topics -------------------------------------------------------------------------------

    async def create_topic(
        self,
        name: str,
        *,
        queue_count: int = 4,
        permission: int = 6,
        broker_names: Sequence[str] | None = None,
        wait_visible: bool = True,
    ) -> None:
        """Creates a topic or changes an existing one to these values.

        Args:
            name: The topic.
            queue_count: Queues to write and read, in each broker group.
            permission: 2 write, 4 read, 6 both.
            broker_names: Groups to create it in; by default all.
            wait_visible: Return only when a nameserver shows it, so that a send finds it.

        Durability:
            On return the topic is committed by a majority of each group.
        """
        validate_topic(name)
        header = CreateTopicHeader(
            topic=name,
            read_queue_count=queue_count,
            write_queue_count=queue_count,
            permission=permission,
        )
        for group in await self._groups(broker_names):
            await self._session.call_leader(group, RequestCode.UPDATE_AND_CREATE_TOPIC, header)
        if wait_visible:
            await self._wait_visible(name, queue_count)

    async def update_topic(self, config: TopicConfig) -> None:
        """Changes all settings of a topic, in all broker groups that have it."""
        header = topic_header(config)
        for group in await self.topic(config.name):
            await self._session.call_leader(group, RequestCode.UPDATE_AND_CREATE_TOPIC, header)

    async def delete_topic(self, name: str) -> None:
        """Deletes a topic with its messages, everywhere. Deleting none is no error."""
        for group in await self._groups(None):
            try:
                await self._session.call_leader(
                    group, RequestCode.DELETE_TOPIC_IN_BROKER, DeleteTopicHeader(topic=name)
                )
            except BrokerResponseError as error:
                if error.code != ResponseCode.TOPIC_NOT_EXIST:
                    raise
        await self._session.every_nameserver(
            RequestCode.DELETE_TOPIC_IN_NAMESRV, DeleteTopicInNameserverHeader(topic=name)
        )
        self._session.routes.forget(name)

    async def topics(self) -> list[str]:
        """Returns the names of all topics a nameserver knows, sorted."""
        response = await self._session.ask_nameserver(
            RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER
        )
        return sorted(decode_topic_list(response.body).topics)

    async def topic(self, name: str) -> dict[str, TopicConfig]:
        """Returns a topic's settings by broker group.

        Raises:
            TopicNotFoundError: (definite) No group has it.
        """
        found: dict[str, TopicConfig] = {}
        for group in await self._groups(None):
            try:
                response = await self._session.call_leader(
                    group, RequestCode.GET_TOPIC_CONFIG, GetTopicConfigHeader(topic=name)
                )
            except BrokerResponseError as error:
                if error.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED:  # before 5.0
                    config = (await self.topology().topics(group)).get(name)
                    found.update({} if config is None else {group: config})
                elif error.code != ResponseCode.TOPIC_NOT_EXIST:
                    raise
                continue
            found[group] = decode_topic_config(response.body)
        if not found:
            raise TopicNotFoundError(f"no broker has topic {name}")
        return found

    async def describe_topics(self) -> list[TopicDescription]:
        """Returns all topics of all groups, by name and group."""
        described: list[TopicDescription] = []
        for group in await self._groups(None):
            response = await self._session.call_leader(group, RequestCode.GET_ALL_TOPIC_CONFIG)
            described += [
                TopicDescription(
                    topic.name,
                    group,
                    topic.read_queue_count,
                    topic.write_queue_count,
                    topic.permission,
                )
                for topic in decode_topic_table(response.body).topics.values()
            ]
        return sorted(described, key=lambda topic: (topic.name, topic.broker_name))

    async def queues(self, topic: str) -> list[MessageQueue]:
        """Returns a topic's readable queues, sorted.

        Raises:
            RouteNotFoundError: (definite) No nameserver knows the topic.
        """
        route = await self._session.route(topic, refresh=True)
        return list(route.subscribe_queues)

    async def bounds(self, topic: str) -> list[QueueBounds]:
        """Returns the offsets each readable queue of a topic holds."""
        queues = await self.queues(topic)
        pairs = await asyncio.gather(
            *(
                asyncio.gather(self._offsets.minimum(queue), self._offsets.maximum(queue))
                for queue in queues
            )
        )
        return [
            QueueBounds(queue, offset_min, offset_max)
            for queue, (offset_min, offset_max) in zip(queues, pairs, strict=True)
        ]

    # --- offsets ------------------------------------------------------------------------------

    async def offset_min(self, queue: MessageQueue) -> int:
        """Returns the offset of the oldest message held."""
        return await self._offsets.minimum(queue)

    async def offset_max(self, queue: MessageQueue) -> int:
        """Returns the offset of the next message to come."""
        return await self._offsets.maximum(queue)

    async def offset_at(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """Returns the offset of the first message stored at or after a time."""
        return await self._offsets.at_time(queue, timestamp_ms)

    async def committed(self, group: str, queue: MessageQueue) -> int | None:
        """Returns a group's committed offset of a queue; `None` if there is none."""
        return await self._offsets.committed(group, queue)

    async def set_committed(self, group: str, queue: MessageQueue, offset: int) -> None:
        """Sets a group's committed offset. Members that are running may overwrite it."""
        await self._offsets.commit(group, queue, offset)

    # --- groups -------------------------------------------------------------------------------

    async def create_group(self, config: GroupConfig) -> None:
        """Creates a consumer group or changes an existing one, in all broker groups."""
        validate_group(config.name)
        body = encode_group_config(config)
        for group in await self._groups(None):
            await self._session.call_leader(
                group, RequestCode.UPDATE_AND_CREATE_SUBSCRIPTION_GROUP, None, body
            )

    async def delete_group(self, name: str, *, clean_offsets: bool = True) -> None:
        """Deletes a consumer group, with its committed offsets if so wished."""
        header = DeleteGroupHeader(group=name, clean_offset=clean_offsets)
        for group in await self._groups(None):
            await self._session.call_leader(group, RequestCode.DELETE_SUBSCRIPTION_GROUP, header)

    async def groups(self) -> list[GroupConfig]:
        """Returns all consumer groups, by name."""
        found: dict[str, GroupConfig] = {}
        for group in await self._groups(None):
            response = await self._session.call_leader(
                group, RequestCode.GET_ALL_SUBSCRIPTION_GROUP_CONFIG
            )
            found.update(decode_group_table(response.body).groups)
        return [found[name] for name in sorted(found)]

    async def topic_consumers(self, topic: str) -> list[str]:
        """Returns the names of groups that consume a topic, sorted."""
        found: set[str] = set()
        for group in await self._groups(None):
            response = await self._session.call_leader(
                group,
                RequestCode.QUERY_TOPIC_CONSUME_BY_WHO,
                QueryTopicConsumersHeader(topic=topic),
            )
            found.update(decode_group_list(response.body))
        return sorted(found)

    async def consumer_progress(self, group: str, topic: str = "") -> list[QueueProgress]:
        """Returns how far a consumer group has come in each queue it has offsets for."""
        header = GetConsumeStatsHeader(consumer_group=group, topic=topic)
        progress: list[QueueProgress] = []
        for name in await self._groups(None):
            response = await self._session.call_leader(name, RequestCode.GET_CONSUME_STATS, header)
            progress += [
                QueueProgress(
                    queue, entry.broker_offset, entry.consumer_offset, entry.last_timestamp_ms
                )
                for queue, entry in decode_consume_stats(response.body).offsets.items()
            ]
        return sorted(progress, key=lambda entry: entry.queue)

    async def reset_offsets(
        self,
        group: str,
        topic: str,
        to: ConsumeFrom | int,
        *,
        queue: MessageQueue | None = None,
    ) -> dict[MessageQueue, int]:
        """Moves a consumer group in all queues of a topic, or in one; members follow by themselves.

        Args:
            group: The group; none of its members need be online.
            topic: The topic.
            to: `EARLIEST`, `LATEST`, or a time in ms since the epoch: the first message stored at
                or after it.
            queue: Only this queue.

        Returns:
            The next offset to consume, by queue.

        Raises:
            BrokerResponseError: No such topic or queue, or a group that broadcasts.
            InvalidParameterError: (definite) One queue of a group with members online, at an Apache
                RocketMQ before 5.0, which cannot do that.

        Durability:
            On return the move is committed by a majority of each broker group concerned; members
            that run follow within moments, and what they commit from before is ignored.
        """
        if isinstance(to, ConsumeFrom):
            if to is ConsumeFrom.TIMESTAMP:
                raise InvalidParameterError("give the time itself")
            to = 0 if to is ConsumeFrom.EARLIEST else -1
        elif to < 0:
            raise InvalidParameterError(f"{to} is no time")
        return await self._resets.reset(group, topic, to, queue)

    async def move_offset(self, group: str, queue: MessageQueue, offset: int) -> None:
        """Moves a consumer group to an offset of one queue. Otherwise as `reset_offsets`."""
        await self._resets.reset(group, queue.topic, 0, queue, offset)

    async def clone_offsets(
        self, source: str, target: str, topic: str = "", *, offline: bool = True
    ) -> None:
        """Moves a consumer group to where another one is.

        Args:
            source: The group to look at.
            target: The group to move, as by `reset_offsets`.
            topic: Only this topic; by default all that the source has offsets of.
            offline: Also topics that the source's members online do not subscribe to.
        """
        header = CloneGroupOffsetHeader(
            source_group=source, target_group=target, topic=topic, offline=offline
        )
        for name in await self._groups(None):
            await self._session.call_leader(name, RequestCode.CLONE_GROUP_OFFSET, header)

    async def consumer_connections(self, group: str) -> ConnectionList | None:
        """Returns the members of a consumer group that are online; `None` if there are none."""
        header = GetConsumerConnectionsHeader(consumer_group=group)
        for name in await self._groups(None):
            try:
                response = await self._session.call_leader(
                    name, RequestCode.GET_CONSUMER_CONNECTION_LIST, header
                )
            except BrokerResponseError as error:
                if error.code not in (
                    ResponseCode.CONSUMER_NOT_ONLINE,
                    ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
                ):
                    raise
                continue
            return decode_connection_list(response.body)
        return None

    # --- messages -----------------------------------------------------------------------------

    async def message(self, message_id: str, topic: str | None = None) -> ReceivedMessage:
        """Returns one message by either of its ids.

        The two kinds look alike: an offset message id is tried first; a unique key needs the
        topic.

        Raises:
            NotFoundError: (definite) There is no such message.
            InvalidParameterError: (definite) Not an id.
        """
        found = await self._view(message_id)
        if found is not None:
            return found
        if topic:
            copies = await self.messages_by_key(topic, message_id, unique=True, count_max=1)
            if copies:
                return copies[0]
        raise NotFoundError(
            f"no message {message_id}" + ("" if topic else "; a unique key needs its topic")
        )

    async def messages_by_key(
        self,
        topic: str,
        key: str,
        *,
        unique: bool = False,
        count_max: int = 64,
        begin_ms: int = 0,
        end_ms: int = 2**63 - 1,
    ) -> list[ReceivedMessage]:
        """Returns messages of a topic that have a key, oldest first.

        Args:
            topic: The topic.
            key: One of the keys given when sending, or the unique key.
            unique: `key` is a unique key; duplicates of a send share it.
            count_max: At most so many of each broker group.
            begin_ms, end_ms: Only those stored in this time.
        """
        route = await self._session.route(topic, refresh=True)
        header = QueryMessageHeader(
            topic=topic,
            key=key,
            count_max=count_max,
            begin_timestamp_ms=begin_ms,
            end_timestamp_ms=end_ms,
            is_unique_key=unique,
        )
        found: list[ReceivedMessage] = []
        for name in sorted(route.groups):
            try:
                response = await self._session.call_leader(name, RequestCode.QUERY_MESSAGE, header)
            except BrokerResponseError as error:
                if error.code != ResponseCode.QUERY_NOT_FOUND:
                    raise
                continue
            found += decode_run(response.body, broker_name=name)
        # Index entries are hashes at some brokers: only the message itself tells.
        matching = [
            message
            for message in found
            if message.topic == topic
            and (message.unique_key == key if unique else key in message.keys)
        ]
        return sorted(matching, key=lambda message: message.store_timestamp_ms)

    # --- cluster ------------------------------------------------------------------------------

    async def cluster(self) -> ClusterInfo:
        """Returns all broker groups with their addresses; id 0 is the leader."""
        return await self._session.cluster_info()

    async def broker_runtime_info(self, address: str) -> dict[str, str]:
        """Returns what one replica says of itself, as text by name."""
        response = await self._call_address(address, RequestCode.GET_BROKER_RUNTIME_INFO)
        return decode_kv_table(response.body)

    # --- inside -------------------------------------------------------------------------------

    async def _groups(self, names: Sequence[str] | None) -> list[str]:
        known = sorted((await self._session.cluster_info()).brokers)
        if names is None:
            if not known:
                raise RouteNotFoundError("no nameserver knows a broker")
            return known
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise InvalidParameterError(
                f"no nameserver knows a running broker group {', '.join(unknown)}; "
                f"known: {', '.join(known) or 'none'}"
            )
        return sorted(set(names))

    async def _wait_visible(self, topic: str, queue_count: int) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _VISIBLE_S
        while loop.time() < deadline:
            try:
                route = await self._session.route(topic, refresh=True)
            except RouteNotFoundError:
                pass
            else:
                if len(route.subscribe_queues) >= queue_count or not route.subscribe_queues:
                    return
            await asyncio.sleep(0.02)

    async def _view(self, message_id: str) -> ReceivedMessage | None:
        """Looks for an offset message id at the replicas that could hold it.

        The replica that stored the message may be gone; its peers hold the same bytes at the same
        place. An answer counts only if the message found has this very id.
        """
        ip, port, offset = parse_offset_message_id(message_id)
        embedded = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
        header = ViewMessageHeader(physical_offset=offset)
        groups = list((await self._session.cluster_info()).brokers.values())
        own = [data for data in groups if embedded in data.addresses.values()]
        for data in own or groups:
            addresses = sorted(data.addresses.values(), key=lambda name: (name != embedded, name))
            for address in addresses:
                try:
                    response = await self._call_address(
                        address, RequestCode.VIEW_MESSAGE_BY_ID, header
                    )
                    message = decode_stored(response.body, broker_name=data.broker_name)
                except DLedgerError:
                    continue
                if message.offset_message_id == message_id.upper():
                    return message
        return None

    async def _call_address(
        self, address: str, code: RequestCode, header: ViewMessageHeader | None = None
    ) -> Command:
        response = await self._session.remoting.request(address, code, header)
        if response.code != ResponseCode.SUCCESS:
            raise response_error(response, address)
        return response
