"""A broker group in memory, on real sockets, that fails as a script tells it.

All replicas share one log, as if replication were instant; what is interesting is who says that it
leads, who can be reached, and what becomes of single requests. Not a model of the real broker's
durability: for that there are the simulation and the integration tests.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dledger.codes import (
    EXT_DEDUPLICATED,
    EXT_LEADER_ADDRESS,
    EXT_NO_FORWARD,
    EXT_OUTCOME,
    EXT_TERM,
    PullFlag,
    RequestCode,
    ResponseCode,
)
from dledger.message import (
    decode_properties,
    decode_stored,
    encode_properties,
    encode_stored,
    get_property,
    iter_batch,
    offset_message_id,
    pack_host,
    tag_hash,
)
from dledger.model import MessageQueue, TopicConfig
from dledger.remoting.bodies import (
    ConsumeStats,
    OffsetWrapper,
    TopicTable,
    decode_heartbeat,
    encode_consume_stats,
    encode_consumer_ids,
    encode_kv_table,
    encode_topic_config,
    encode_topic_table,
)
from dledger.remoting.commands import Command
from dledger.remoting.headers import (
    ConsumerSendBackHeader,
    CreateTopicHeader,
    PullMessageHeader,
    QueryMessageHeader,
    SendMessageHeader,
    SendMessageHeaderV2,
    ViewMessageHeader,
)
from dledger.remoting.server import Connection, RemotingServer

HOST = "127.0.0.1"
SENDS = (
    RequestCode.SEND_MESSAGE,
    RequestCode.SEND_MESSAGE_V2,
    RequestCode.SEND_BATCH_MESSAGE,
)
ANY_REPLICA = (
    RequestCode.PULL_MESSAGE,
    RequestCode.HEART_BEAT,
    RequestCode.UNREGISTER_CLIENT,
    RequestCode.GET_BROKER_RUNTIME_INFO,
    RequestCode.VIEW_MESSAGE_BY_ID,
    RequestCode.QUERY_MESSAGE,
)


@dataclass
class Fault:
    """What to do with one request instead of serving it.

    `store` serves it first; then `code` answers with an error, `close` breaks the connection, and
    neither of them leaves the request without an answer.
    """

    store: bool = False
    code: int | None = None
    ext: dict[str, str] = field(default_factory=dict)
    close: bool = False


@dataclass
class StoredMessage:
    """One message of the shared log."""

    raw: bytes
    unique_key: str
    keys: list[str]
    tag_hash: int
    physical_offset: int
    store_timestamp_ms: int
    body: bytes


class FakeReplica:
    """One replica: a remoting server over the group's shared state."""

    def __init__(self, group: FakeGroup, number: int) -> None:
        self.group = group
        self.number = number
        self.server: RemotingServer | None = None
        self.port = 0
        self.faults: deque[Fault] = deque()  # for sends, one each
        self.requests: list[int] = []
        self.clients: dict[str, dict[str, Connection]] = defaultdict(dict)  # group -> id -> conn
        self.serving = True  # False: elected but not yet ready, answers "not leader"
        self.mute = False  # True: takes requests and answers none, as a stopped process does
        self.holds_pulls = False  # True: it never sees a new message, as one cut off from the group

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def leads(self) -> bool:
        return self.group.leader == self.number and self.serving

    async def start(self) -> None:
        self.server = RemotingServer(self)
        await self.server.start(HOST, self.port)
        self.port = self.server.port

    async def kill(self) -> None:
        """Breaks all connections and stops listening, as SIGKILL does."""
        server, self.server = self.server, None
        self.clients.clear()
        if server is not None:
            for connection in server.connections:
                if connection._transport is not None:
                    connection._transport.abort()
            await server.stop(0.0)

    def connection_lost(self, connection: Connection) -> None:
        for members in self.clients.values():
            for client_id in [key for key, value in members.items() if value is connection]:
                del members[client_id]

    def handle(self, connection: Connection, command: Command) -> None:
        code = RequestCode(command.code)
        self.requests.append(code)
        if self.mute or (self.holds_pulls and code == RequestCode.PULL_MESSAGE):
            return
        if code in SENDS and self.faults and self.leads:
            self._fail(connection, command, self.faults.popleft())
            return
        if code not in ANY_REPLICA and not self.leads:
            self._not_leader(connection, command)
            return
        getattr(self, f"_on_{code.name.lower()}")(connection, command)

    def _fail(self, connection: Connection, command: Command, fault: Fault) -> None:
        if fault.store:
            self._store(command)
        if fault.code is not None:
            connection.reply(command, fault.code, fault.ext, "scripted")
        elif fault.close and connection._transport is not None:
            connection._transport.abort()

    def _not_leader(self, connection: Connection, command: Command) -> None:
        ext = {EXT_OUTCOME: "refused", EXT_TERM: str(self.group.term)}
        leader = self.group.believed_leader
        if leader is not None and not self.holds_pulls:
            ext[EXT_LEADER_ADDRESS] = leader
        if command.ext.get(EXT_NO_FORWARD) != "1":
            ext.pop(EXT_LEADER_ADDRESS, None)
        connection.reply(command, ResponseCode.SERVICE_NOT_AVAILABLE, ext, "not the leader")

    # --- sends --------------------------------------------------------------------------------

    def _store(self, command: Command) -> tuple[int, int, list[str], dict[str, str]]:
        long_names = command.code == RequestCode.SEND_MESSAGE
        header: SendMessageHeader | SendMessageHeaderV2 = command.header(
            SendMessageHeader if long_names else SendMessageHeaderV2
        )
        self.group.create_topic(header.topic)
        if header.batch:
            items = [
                (bytes(element.body), element.properties, element.flag, 0)
                for element in iter_batch(command.body)
            ]
        else:
            items = [(command.body, header.properties.encode(), header.flag, header.sys_flag)]
        group = self.group
        queue = group.log[header.topic, header.queue_id]
        send = (header.producer_id, header.topic, header.queue_id, header.sequence, len(items))
        group.sends.append(send)
        if group.recognises and header.producer_id and send in group.stored:
            first, ids = group.stored[send]
            return header.queue_id, first, ids, {EXT_DEDUPLICATED: "1"}
        first = len(queue)
        ids = [group.append(header, *item, host=pack_host(HOST, self.port)) for item in items]
        group.batch_sizes.append(len(items))
        group.stored[send] = (first, ids)
        told = {EXT_DEDUPLICATED: "0"} if group.recognises and header.producer_id else {}
        return header.queue_id, first, ids, told

    def _on_send_message(self, connection: Connection, command: Command) -> None:
        topic = command.ext.get("b") or command.ext.get("topic", "")
        if topic in self.group.refused:
            code = self.group.refused[topic]
            connection.reply(command, code, {EXT_OUTCOME: "refused"}, "scripted")
            return
        if any(word in command.body for word in self.group.poison):
            code = ResponseCode.MESSAGE_ILLEGAL
            connection.reply(command, code, {EXT_OUTCOME: "refused"}, "poison")
            return
        queue_id, first, ids, told = self._store(command)
        place = {"msgId": ",".join(ids), "queueId": str(queue_id), "queueOffset": str(first)}
        ext = place | told
        if self.group.send_delay_s:
            loop = asyncio.get_running_loop()
            loop.call_later(self.group.send_delay_s, connection.reply, command, 0, ext)
        else:
            connection.reply(command, 0, ext)

    _on_send_message_v2 = _on_send_message
    _on_send_batch_message = _on_send_message

    def _on_consumer_send_message_back(self, connection: Connection, command: Command) -> None:
        header = command.header(ConsumerSendBackHeader)
        if self.group.refuse_send_back:
            connection.reply(command, 1, {EXT_OUTCOME: "refused"}, "scripted")
            return
        self.group.send_back(header, pack_host(HOST, self.port))
        connection.reply(command)

    # --- pulls --------------------------------------------------------------------------------

    def _on_pull_message(self, connection: Connection, command: Command) -> None:
        header = command.header(PullMessageHeader)
        loop = asyncio.get_running_loop()
        suspend = header.sys_flag & PullFlag.SUSPEND
        deadline = loop.time() + (header.suspend_timeout_ms / 1000 if suspend else 0)
        self._try_pull(connection, command, header, deadline)

    def _try_pull(
        self, connection: Connection, command: Command, header: PullMessageHeader, deadline: float
    ) -> None:
        loop = asyncio.get_running_loop()
        if self.server is None or self.mute or self.holds_pulls:
            return
        queue = self.group.log[header.topic, header.queue_id]
        offset, end = header.queue_offset, len(queue)
        begin = self.group.first_offset.get((header.topic, header.queue_id), 0)
        if begin <= offset < end:
            stop = min(end, offset + header.message_count_max)
            tags = [tag.strip() for tag in header.subscription.split("||")]
            codes = {tag_hash(tag) for tag in tags} if header.subscription != "*" else None
            found = [m for m in queue[offset:stop] if codes is None or m.tag_hash in codes]
            code = ResponseCode.SUCCESS if found else ResponseCode.PULL_RETRY_IMMEDIATELY
            next_offset, body = stop, b"".join(message.raw for message in found)
        elif offset == end:
            if loop.time() < deadline:
                loop.call_later(0.005, self._try_pull, connection, command, header, deadline)
                return
            code, next_offset, body = ResponseCode.PULL_NOT_FOUND, offset, b""
        else:
            code = ResponseCode.PULL_OFFSET_MOVED
            next_offset, body = (begin if offset < begin else end), b""
        ext = {
            "suggestWhichBrokerId": "0",
            "nextBeginOffset": str(next_offset),
            "minOffset": str(begin),
            "maxOffset": str(end),
        }
        connection.reply(command, code, ext, None, body)

    # --- offsets ------------------------------------------------------------------------------

    def _on_query_consumer_offset(self, connection: Connection, command: Command) -> None:
        ext = command.ext
        key = (ext["consumerGroup"], ext["topic"], int(ext["queueId"]))
        offset = self.group.offsets.get(key)
        if offset is None:
            connection.reply(command, ResponseCode.QUERY_NOT_FOUND)
        else:
            connection.reply(command, 0, {"offset": str(offset)})

    def _on_update_consumer_offset(self, connection: Connection, command: Command) -> None:
        ext = command.ext
        key = (ext["consumerGroup"], ext["topic"], int(ext["queueId"]))
        self.group.offsets[key] = int(ext["commitOffset"])
        self.group.commits.append((*key, int(ext["commitOffset"])))
        connection.reply(command)

    def _on_get_max_offset(self, connection: Connection, command: Command) -> None:
        key = (command.ext["topic"], int(command.ext["queueId"]))
        connection.reply(command, 0, {"offset": str(len(self.group.log[key]))})

    def _on_get_min_offset(self, connection: Connection, command: Command) -> None:
        key = (command.ext["topic"], int(command.ext["queueId"]))
        connection.reply(command, 0, {"offset": str(self.group.first_offset.get(key, 0))})

    def _on_search_offset_by_timestamp(self, connection: Connection, command: Command) -> None:
        queue = self.group.log[command.ext["topic"], int(command.ext["queueId"])]
        wanted = int(command.ext["timestamp"])
        earlier = sum(1 for message in queue if message.store_timestamp_ms < wanted)
        connection.reply(command, 0, {"offset": str(earlier)})

    # --- groups -------------------------------------------------------------------------------

    def _on_heart_beat(self, connection: Connection, command: Command) -> None:
        heartbeat = decode_heartbeat(command.body)
        for consumer in heartbeat.consumers:
            members = self.clients[consumer.group]
            new = heartbeat.client_id not in members
            members[heartbeat.client_id] = connection
            if new:
                self._notify(consumer.group)
        connection.reply(command, 0, {"IS_SUPPORT_HEART_BEAT_V2": "true"})

    def _on_unregister_client(self, connection: Connection, command: Command) -> None:
        group = command.ext.get("consumerGroup", "")
        self.clients[group].pop(command.ext["clientID"], None)
        connection.reply(command)
        self._notify(group)

    def _notify(self, group: str) -> None:
        for member in self.clients[group].values():
            member.send_oneway(
                RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": group}, b""
            )

    def _on_get_consumer_list_by_group(self, connection: Connection, command: Command) -> None:
        members = self.clients.get(command.ext["consumerGroup"], {})
        if members:
            connection.reply(command, 0, None, None, encode_consumer_ids(sorted(members)))
        else:
            connection.reply(command, 1, None, "no consumer for this group")

    # --- admin --------------------------------------------------------------------------------

    def _on_update_and_create_topic(self, connection: Connection, command: Command) -> None:
        header = command.header(CreateTopicHeader)
        self.group.topics[header.topic] = TopicConfig(
            name=header.topic,
            read_queue_count=header.read_queue_count,
            write_queue_count=header.write_queue_count,
            permission=header.permission,
        )
        connection.reply(command)

    def _on_delete_topic_in_broker(self, connection: Connection, command: Command) -> None:
        self.group.topics.pop(command.ext["topic"], None)
        connection.reply(command)

    def _on_get_topic_config(self, connection: Connection, command: Command) -> None:
        topic = self.group.topics.get(command.ext["topic"])
        if topic is None:
            connection.reply(command, ResponseCode.TOPIC_NOT_EXIST, None, "no such topic")
        else:
            connection.reply(command, 0, None, None, encode_topic_config(topic))

    def _on_get_all_topic_config(self, connection: Connection, command: Command) -> None:
        body = encode_topic_table(TopicTable(topics=dict(self.group.topics)))
        connection.reply(command, 0, None, None, body)

    def _on_get_consume_stats(self, connection: Connection, command: Command) -> None:
        group = command.ext["consumerGroup"]
        offsets = {
            MessageQueue(topic, self.group.name, queue_id): OffsetWrapper(
                broker_offset=len(self.group.log[topic, queue_id]), consumer_offset=offset
            )
            for (name, topic, queue_id), offset in self.group.offsets.items()
            if name == group
        }
        connection.reply(
            command, 0, None, None, encode_consume_stats(ConsumeStats(offsets=offsets))
        )

    def _on_get_broker_runtime_info(self, connection: Connection, command: Command) -> None:
        table = {
            "replicaId": f"{self.group.name}-{self.number}",
            "raftServing": "true" if self.leads else "false",
        }
        connection.reply(command, 0, None, None, encode_kv_table(table))

    def _on_view_message_by_id(self, connection: Connection, command: Command) -> None:
        wanted = command.header(ViewMessageHeader).physical_offset
        for message in self.group.messages():
            if message.physical_offset == wanted:
                connection.reply(command, 0, None, None, message.raw)
                return
        connection.reply(command, 1, {EXT_OUTCOME: "refused"}, "no such message")

    def _on_query_message(self, connection: Connection, command: Command) -> None:
        header = command.header(QueryMessageHeader)
        found = [
            message
            for message in self.group.messages()
            if (
                header.key == message.unique_key
                if header.is_unique_key
                else header.key in message.keys
            )
        ]
        if not found:
            connection.reply(command, ResponseCode.QUERY_NOT_FOUND, None, "nothing")
            return
        ext = {"indexLastUpdateTimestamp": "0", "indexLastUpdatePhyoffset": "0"}
        connection.reply(command, 0, ext, None, b"".join(message.raw for message in found))


class FakeGroup:
    """A broker group: replicas, one log, a leader."""

    def __init__(self, name: str, replica_count: int, clock_ms: Callable[[], int]) -> None:
        self.name = name
        self.replicas = [FakeReplica(self, number) for number in range(replica_count)]
        self.leader: int | None = 0
        self.term = 1
        self.hint_of_the_dead: str | None = None  # what followers say while they elect
        self.topics: dict[str, TopicConfig] = {}
        self.log: dict[tuple[str, int], list[StoredMessage]] = defaultdict(list)
        self.first_offset: dict[tuple[str, int], int] = {}
        self.offsets: dict[tuple[str, str, int], int] = {}
        self.commits: list[tuple[str, str, int, int]] = []
        self.batch_sizes: list[int] = []
        self.refused: dict[str, int] = {}
        self.poison: list[bytes] = []
        self.send_delay_s = 0.0
        self.refuse_send_back = False
        self.sent_back: list[ConsumerSendBackHeader] = []
        self.recognises = False  # repeated sends, as our broker does
        # (producer id, topic, queue id, sequence, count): every attempt, and where it is stored
        self.sends: list[tuple[str, str, int, int | None, int]] = []
        self.stored: dict[tuple[str, str, int, int | None, int], tuple[int, list[str]]] = {}
        self._clock_ms = clock_ms
        self._physical = 0

    @property
    def believed_leader(self) -> str | None:
        if self.leader is None:
            return self.hint_of_the_dead
        return self.replicas[self.leader].address

    def elect(self, number: int) -> None:
        """Makes a replica the leader of the next term."""
        self.term += 1
        self.leader = number

    def create_topic(self, name: str, queues: int = 4) -> None:
        if name not in self.topics:
            self.topics[name] = TopicConfig(
                name=name, read_queue_count=queues, write_queue_count=queues
            )

    def append(
        self,
        header: SendMessageHeader | SendMessageHeaderV2,
        body: bytes,
        properties: bytes,
        flag: int,
        sys_flag: int,
        *,
        host: bytes,
    ) -> str:
        queue = self.log[header.topic, header.queue_id]
        now_ms = self._clock_ms()
        raw = encode_stored(
            topic=header.topic.encode(),
            queue_id=header.queue_id,
            flag=flag,
            queue_offset=len(queue),
            physical_offset=self._physical,
            sys_flag=sys_flag,
            born_timestamp_ms=header.born_timestamp_ms,
            born_host=host,
            store_timestamp_ms=now_ms,
            store_host=host,
            reconsume_times=header.reconsume_times,
            prepared_transaction_offset=0,
            body=body,
            properties=properties,
        )
        parsed = decode_properties(properties)
        tags = (get_property(properties, b"TAGS") or b"").decode()
        queue.append(
            StoredMessage(
                raw=raw,
                unique_key=parsed.get("UNIQ_KEY", ""),
                keys=parsed.get("KEYS", "").split(),
                tag_hash=tag_hash(tags),
                physical_offset=self._physical,
                store_timestamp_ms=now_ms,
                body=body,
            )
        )
        offset_id = offset_message_id(host, self._physical)
        self._physical += len(raw)
        return offset_id

    def send_back(self, header: ConsumerSendBackHeader, host: bytes) -> None:
        """Stores a failed message for its group again, at once."""
        self.sent_back.append(header)
        (found,) = [m for m in self.messages() if m.physical_offset == header.physical_offset]
        old = decode_stored(found.raw)
        topic = f"%DLQ%{header.group}" if header.delay_level < 0 else f"%RETRY%{header.group}"
        self.create_topic(topic, 1)
        properties = {"RETRY_TOPIC": old.topic, **old.properties}
        again = SendMessageHeaderV2(
            producer_group="", topic=topic, queue_id=0, born_timestamp_ms=old.born_timestamp_ms
        )
        again.reconsume_times = old.reconsume_times + 1
        self.append(again, old.body, encode_properties(properties), 0, 0, host=host)

    def messages(self) -> list[StoredMessage]:
        return [message for queue in self.log.values() for message in queue]

    def bodies(self, topic: str, queue_id: int) -> list[bytes]:
        return [message.body for message in self.log[topic, queue_id]]
