"""Heartbeats and group membership: 34, 35, 38, 40, 46, and the connection lists 203 and 204.

Heartbeats are handled where they arrive: clients send them to every replica. Only the serving
leader tells the members of a group about changes (40) and answers who they are (38), so that all
of them divide the queues by the same list.
"""

from __future__ import annotations

import asyncio

from broker import names
from broker.catalog import Catalog
from broker.consumers import GUARD, REFUSE, ClientIdentity, SubscriptionDiffersError
from broker.context import BrokerContext
from broker.filters import check_subscription_size, is_sql
from broker.sql_filter import compile_sql
from dledger.codes import LANGUAGE, RequestCode, ResponseCode
from dledger.errors import (
    FlowControlError,
    InvalidParameterError,
    RequestError,
)
from dledger.message import validate_group
from dledger.model import GroupConfig
from dledger.remoting.bodies import (
    ConnectionInfo,
    ConnectionList,
    ConsumerData,
    HeartbeatData,
    SubscriptionData,
    decode_heartbeat,
    encode_connection_list,
    encode_consumer_ids,
    parse_lenient_json,
)
from dledger.remoting.commands import Command
from dledger.remoting.headers import (
    GetConsumerConnectionsHeader,
    GetConsumerListHeader,
    GetProducerConnectionsHeader,
    UnregisterClientHeader,
)
from dledger.remoting.server import Connection
from store.state_keys import group_prefix
from store.state_rows import LOCKS

GROUPS_PER_HEARTBEAT_MAX = 1024
CLIENT_ID_LENGTH_MAX = 512
# What a heartbeat says is kept in memory as long as the client is there.
HEARTBEAT_BYTES_MAX = 1024 * 1024
# Joins and leaves within this time are told together.
NOTIFY_DELAY_S = 0.02
# Go and Java 4.9 wait for the answer to a pull for 30 s, also when its connection is gone. A member
# that does not find itself among the members gives its queues back; when it does again, it takes
# them anew, and pulls anew. So, when a leader has died, such clients are shown a list without
# members for this long. It costs what any rebalance costs: what a member works on comes again.
RELEASE_S = 0.5
# A member asks the leader of any of its broker groups, and the others know of nothing: again, then.
RELEASE_REMINDERS = 3
_NOBODY = "nobody"
# The first version known to give up what waits on a connection that is gone.
_JAVA_GIVES_UP = 479


class NobodyOnlineError(RequestError):
    """No member of the group is connected."""

    response_code = ResponseCode.SYSTEM_ERROR


class ConsumerNotOnlineError(RequestError):
    """No consumer of the group is connected."""

    response_code = ResponseCode.CONSUMER_NOT_ONLINE


class ClientProcessor:
    """Keeps the registry of clients up to date and tells members about changes."""

    def __init__(self, context: BrokerContext, catalog: Catalog) -> None:
        self._context = context
        self._catalog = catalog
        self._connections: dict[int, Connection] = {}
        self._fingerprints: dict[int, int] = {}
        self._changed: set[str] = set()
        self._asked = 0
        self._leader_before = ""
        self._released: set[str] = set()
        self._reminder: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None

    def heartbeat(self, connection: Connection, command: Command) -> None:
        """34: registers the client in its groups.

        Raises:
            DLedgerError: A name or number breaks a rule, or a limit is reached.
        """
        if len(command.body) > HEARTBEAT_BYTES_MAX:
            raise InvalidParameterError(
                f"heartbeat of {len(command.body)} bytes exceeds {HEARTBEAT_BYTES_MAX}"
            )
        heartbeat = decode_heartbeat(command.body)
        _check_heartbeat(heartbeat)
        identity = ClientIdentity(
            connection_id=connection.id,
            client_id=heartbeat.client_id,
            address=f"{connection.peer_host}:{connection.peer_port}",
            language=str(command.language),
            version=command.version,
        )
        self._connections[connection.id] = connection
        now_ms = self._now_ms()
        clients = self._context.clients
        for group in heartbeat.producers:
            clients.register_producer(identity, group, now_ms)
        refusal: SubscriptionDiffersError | None = None
        for consumer in heartbeat.consumers:
            try:
                self._register_consumer(identity, consumer, heartbeat, now_ms)
            except SubscriptionDiffersError as error:
                # The client's other groups are none the worse for it.
                refusal = error
        if refusal is not None:
            raise refusal
        known = self._fingerprints.get(connection.id)
        if not heartbeat.without_subscriptions:
            self._fingerprints[connection.id] = heartbeat.fingerprint
        changed = heartbeat.fingerprint == 0 or known != heartbeat.fingerprint
        ext = {
            "IS_SUPPORT_HEART_BEAT_V2": "true",
            "IS_SUB_CHANGE": "true" if changed else "false",
        }
        connection.reply(command, 0, ext)

    def unregister(self, connection: Connection, command: Command) -> None:
        """35: a client leaves a group."""
        header = command.header(UnregisterClientHeader)
        changed = self._context.clients.unregister(
            connection.id,
            header.client_id,
            producer_group=header.producer_group or None,
            consumer_group=header.consumer_group or None,
        )
        if changed:
            self._notify_later(header.consumer_group)
        connection.reply(command)

    def consumer_list(self, connection: Connection, command: Command) -> None:
        """38: the client ids of a group's consumers. Serving leader only.

        Raises:
            NobodyOnlineError: The group has no consumers.
        """
        header = command.header(GetConsumerListHeader)
        ids = self._context.clients.client_ids(header.consumer_group)
        if header.consumer_group in self._released and _waits_in_vain(command):
            ids = [_NOBODY]
        if not ids:
            raise NobodyOnlineError(f"no consumer for this group, {header.consumer_group}")
        connection.reply(command, body=encode_consumer_ids(ids))

    def check_config(self, connection: Connection, command: Command) -> None:
        """46: whether the broker can serve a subscription.

        Raises:
            FilterNotSupportedError: Its filter language is neither TAG nor SQL92.
            SubscriptionParseError: Its SQL condition makes no sense.
        """
        body = parse_lenient_json(command.body) if command.body else None
        wanted = body.get("subscriptionData") if isinstance(body, dict) else None
        if isinstance(wanted, dict) and is_sql(str(wanted.get("expressionType") or "")):
            compile_sql(str(wanted.get("subString") or ""))
        connection.reply(command)

    def consumer_connections(self, connection: Connection, command: Command) -> None:
        """203: the consumers of a group as connected to this replica.

        Raises:
            ConsumerNotOnlineError: There are none.
        """
        header = command.header(GetConsumerConnectionsHeader)
        group = self._context.clients.consumer_group(header.consumer_group)
        if group is None:
            raise ConsumerNotOnlineError(f"the consumer group[{header.consumer_group}] not online")
        members = self._context.clients.consumer_members(header.consumer_group)
        body = ConnectionList(
            connections=connections_of(members),
            subscriptions={
                topic: wanted
                for topic, wanted in sorted(group.subscriptions.items())
                if isinstance(wanted, SubscriptionData)
            },
            consume_type=group.consume_type,
            message_model=group.message_model,
            consume_from=group.consume_from,
        )
        connection.reply(command, body=encode_connection_list(body))

    def producer_connections(self, connection: Connection, command: Command) -> None:
        """204: the producers of a group as connected to this replica.

        Raises:
            NobodyOnlineError: There are none.
        """
        header = command.header(GetProducerConnectionsHeader)
        members = self._context.clients.producer_members(header.producer_group)
        if not members:
            raise NobodyOnlineError(
                f"the producer group[{header.producer_group}] not exist or not online"
            )
        body = ConnectionList(connections=connections_of(members))
        connection.reply(command, body=encode_connection_list(body))

    def connection(self, number: int) -> Connection | None:
        """Returns a client's connection by its number."""
        return self._connections.get(number)

    def connection_of_producer(self, client_id: str) -> Connection | None:
        """Returns the connection over which a producer says that it is here."""
        number = self._context.clients.producer_connection_id(client_id)
        return None if number is None else self._connections.get(number)

    def ask_producer(
        self, group: str, code: RequestCode, ext: dict[str, object], body: bytes
    ) -> bool:
        """Sends a one-way request to a live producer of a group, to another each time.

        Returns:
            Whether there was one.
        """
        members = self._context.clients.producer_members(group)
        self._asked += 1
        for number in range(len(members)):
            member = members[(self._asked + number) % len(members)]
            connection = self._connections.get(member.connection_id)
            if connection is not None and not connection.is_closing:
                connection.send_oneway(code, ext, body)
                return True
        return False

    # --- events -----------------------------------------------------------------------------

    def connection_lost(self, connection: Connection) -> None:
        """Takes a connection out of all groups."""
        self._connections.pop(connection.id, None)
        self._fingerprints.pop(connection.id, None)
        for group in self._context.clients.connection_lost(connection.id):
            self._notify_later(group)

    def expire(self) -> None:
        """Takes out clients that have been silent for too long."""
        for group in self._context.clients.expire(self._now_ms()):
            self._notify_later(group)

    # --- RaftListener -----------------------------------------------------------------------

    def on_serving(self, term: int) -> None:
        """Does nothing: the broker calls `notify_all` when it is ready for it."""

    def on_stopped_serving(self) -> None:
        """Does nothing: what is due is left out when this replica does not serve."""

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Remembers who led before this replica."""
        if leader_id is not None and leader_id != self._context.config.replica_id:
            self._leader_before = leader_id

    # --- changes of members -----------------------------------------------------------------

    def notify_all(self) -> None:
        """Lets the members of all groups look at one another anew, under a new leader.

        Who joined or left while there was none has not been told to anybody.
        """
        groups = self._context.clients.consumer_groups()
        before = self._context.raft.peer_progress().get(self._leader_before)
        if before is not None and not before["connected"]:
            # The leader before us is gone, and with it the pulls that were parked there.
            self._released = {group for group in groups if not self._is_ordered(group)}
            self._remind(RELEASE_REMINDERS)
        for group in groups:
            self._notify_later(group)

    def shares_changed(self, group: str) -> None:
        """Lets the members of a group ask for their queues again."""
        self._notify_later(group)

    def close(self) -> None:
        """Stops telling anybody anything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reminder is not None:
            self._reminder.cancel()
            self._reminder = None

    # --- inside -----------------------------------------------------------------------------

    def _is_ordered(self, group: str) -> bool:
        # Members that hold locks give them back only some time after they gave their queues back.
        prefix = group_prefix(group.encode())
        return any(True for _ in self._context.store.rows.scan(LOCKS, prefix, limit=1))

    def _remind(self, left: int) -> None:
        self._reminder = None
        for group in sorted(self._released):
            self._notify_later(group)
        if left == 0:
            self._released = set()
        elif self._released:
            loop = asyncio.get_running_loop()
            pause_s = RELEASE_S / RELEASE_REMINDERS
            self._reminder = loop.call_later(pause_s, self._remind, left - 1)

    def _register_consumer(
        self,
        identity: ClientIdentity,
        consumer: ConsumerData,
        heartbeat: HeartbeatData,
        now_ms: int,
    ) -> None:
        if not self._prepare_group(consumer):
            return
        config = self._context.store.group(consumer.group)
        changed = self._context.clients.register_consumer(
            identity,
            consumer.group,
            kind=(consumer.consume_type, consumer.message_model, consumer.consume_from),
            subscriptions=None if heartbeat.without_subscriptions else consumer.subscriptions,
            now_ms=now_ms,
            refuse_different=config is not None and config.attributes.get(GUARD) == REFUSE,
        )
        if changed:
            self._notify_later(consumer.group)

    def _prepare_group(self, consumer: ConsumerData) -> bool:
        """Sees to it that the group and its retry topic exist; False if it may not exist."""
        store = self._context.store
        group = store.group(consumer.group)
        if group is None:
            if not self._catalog.may_create_group(consumer.group):
                return False
            self._catalog.ensure_group_soon(consumer.group)
            group = GroupConfig(name=consumer.group)
        if group.retry_queue_count > 0 and store.topic(names.retry_topic(group.name)) is None:
            self._catalog.ensure_topic_soon(
                names.retry_topic_config(group.name, group.retry_queue_count)
            )
        return True

    def _notify_later(self, group: str) -> None:
        if not self._context.raft.is_serving:
            return
        config = self._context.store.group(group)
        if config is not None and not config.notify_consumer_ids_changed_enable:
            return
        self._changed.add(group)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(NOTIFY_DELAY_S, self._notify)

    def _notify(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, set()
        for group in sorted(changed):
            for connection_id in self._context.clients.connection_ids(group):
                connection = self._connections.get(connection_id)
                if connection is not None and not connection.is_closing:
                    code = RequestCode.NOTIFY_CONSUMER_IDS_CHANGED
                    connection.send_oneway(code, {"consumerGroup": group})

    def _now_ms(self) -> int:
        return int(self._context.clock.monotonic() * 1000)


def _waits_in_vain(command: Command) -> bool:
    """Whether the asking client waits for answers on a connection that is gone."""
    gives_up = command.language == "JAVA" and command.version >= _JAVA_GIVES_UP
    return command.language != LANGUAGE and not gives_up


def _check_heartbeat(heartbeat: HeartbeatData) -> None:
    if not 0 < len(heartbeat.client_id) <= CLIENT_ID_LENGTH_MAX:
        raise InvalidParameterError(f"clientID must have 1 to {CLIENT_ID_LENGTH_MAX} characters")
    if len(heartbeat.producers) + len(heartbeat.consumers) > GROUPS_PER_HEARTBEAT_MAX:
        raise FlowControlError(f"a client may be in {GROUPS_PER_HEARTBEAT_MAX} groups at most")
    for group in heartbeat.producers:
        validate_group(group)
    for consumer in heartbeat.consumers:
        validate_group(consumer.group)
        for subscription in consumer.subscriptions:
            _check_subscription(subscription)


def _check_subscription(subscription: SubscriptionData) -> None:
    tag_count = max(len(subscription.tags), len(subscription.codes))
    check_subscription_size(subscription.topic, tag_count)
    check_subscription_size(subscription.topic, subscription.expression.count("||"))


def connections_of(members: list[ClientIdentity]) -> list[ConnectionInfo]:
    """Returns members as admin tools read them."""
    return [
        ConnectionInfo(
            client_id=member.client_id,
            client_address=member.address,
            language=member.language,
            version=member.version,
        )
        for member in members
    ]
