"""QUERY_ASSIGNMENT (400) and SET_MESSAGE_REQUEST_MODE (401): the broker shares queues out.

A member asks one broker for its queues of all brokers; the routes come from a nameserver, the
members from this broker's registry, since clients send heartbeats to all of them. Serving leader
only: its registry is the one that new members are announced from.

Source: RocketMQ `QueryAssignmentProcessor`. We differ: the strategies that need settings of the
client (MACHINE_ROOM, CONFIG) are answered like unknown ones: the member keeps what it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from broker.catalog import Catalog, definite_failure
from broker.context import BrokerContext
from broker.feature_commands import encode_feature
from broker.request_modes import MODES, PULL, ModeRow, SetRequestMode, request_mode
from dledger.allocation import strategy
from dledger.codes import RETRY_PREFIX, Permission, RequestCode, ResponseCode
from dledger.errors import (
    DLedgerError,
    GroupNotFoundError,
    InvalidParameterError,
    PermissionDeniedError,
    TopicNotFoundError,
)
from dledger.message import validate_group
from dledger.model import GroupConfig, MessageQueue
from dledger.remoting.bodies import TopicRouteData, decode_topic_route
from dledger.remoting.bodies.popping import (
    decode_query_assignment,
    decode_request_mode,
    encode_assignments,
)
from dledger.remoting.client import RemotingClient
from dledger.remoting.commands import Command
from dledger.remoting.headers import to_ext
from dledger.remoting.nameserver_headers import GetRouteHeader
from dledger.remoting.server import Connection

logger = logging.getLogger(__name__)

SHARED_STRATEGIES: Final = ("AVG", "AVG_BY_CIRCLE", "CONSISTENT_HASH")
ROUTES_MAX: Final = 1024
ROUTE_VALID_S: Final = 5.0
ROUTE_TIMEOUT_S: Final = 1.0
_CLIENT_ID_LENGTH_MAX: Final = 512


class AssignmentProcessor:
    """Shares queues out among the members of groups."""

    def __init__(
        self,
        context: BrokerContext,
        catalog: Catalog,
        client: RemotingClient,
        on_mode_set: Callable[[str], None],
    ) -> None:
        """Prepares the processor.

        Args:
            context: The broker's parts.
            catalog: Topics and groups.
            client: Connections to nameservers.
            on_mode_set: Called with a group whose members are to ask for their queues again.
        """
        self._context = context
        self._catalog = catalog
        self._client = client
        self._on_mode_set = on_mode_set
        # By topic: when it was asked for (monotonic) and its queues, the longest known first.
        self._routes: OrderedDict[str, tuple[float, tuple[MessageQueue, ...]]] = OrderedDict()

    async def query(self, connection: Connection, command: Command) -> None:
        """400: the queues that a member gets, and whether it pulls or pops.

        Without a route, members or a strategy of that name nothing is said, and the member keeps
        what it has.
        """
        body = decode_query_assignment(command.body)
        validate_group(body.group)
        if not 0 < len(body.client_id) <= _CLIENT_ID_LENGTH_MAX:
            raise InvalidParameterError(f"clientId must have 1 to {_CLIENT_ID_LENGTH_MAX} letters")
        mode = ModeRow()
        topic = self._context.store.topic(body.topic)
        if topic is not None and not body.topic.startswith(RETRY_PREFIX):
            mode = request_mode(self._context.store.rows, body.group, topic.topic_id)
        queues = await self._queues(body.topic)
        shared: Sequence[MessageQueue] | None = queues
        if queues is not None and body.message_model != "BROADCASTING":
            members = self._context.clients.client_ids(body.group)
            shared = None
            if members and body.strategy in SHARED_STRATEGIES:
                shared = share(queues, members, body.client_id, body.strategy, mode)
        connection.reply(command, body=encode_assignments(shared, mode.mode))

    async def set_mode(self, connection: Connection, command: Command) -> None:
        """401: sets whether the members of a group pull or pop a topic.

        Durability: when answered, committed on a majority.
        """
        body = decode_request_mode(command.body)
        store = self._context.store
        if body.topic.startswith(RETRY_PREFIX):
            raise PermissionDeniedError("retry topic is not allowed to set mode")
        mode = MODES.get(body.mode)
        if mode is None:
            raise InvalidParameterError(f"mode {body.mode[:32]!r} is neither PULL nor POP")
        if not -1 <= body.share_queue_count < 1 << 31:
            raise InvalidParameterError("popShareQueueNum is out of range")
        if store.topic(body.topic) is None:
            raise TopicNotFoundError(f"topic[{body.topic}] not exist")
        self._context.gate.check()
        await self._ensure_group(body.group)
        is_set = await self._context.raft.submit(
            encode_feature(SetRequestMode(body.group, body.topic, mode, body.share_queue_count))
        )
        if not is_set:
            raise TopicNotFoundError(f"topic[{body.topic}] not exist")
        self._on_mode_set(body.group)
        connection.reply(command)

    async def _ensure_group(self, name: str) -> None:
        """Creates a group that is named before its first member comes, as members do."""
        if self._context.store.group(name) is not None:
            return
        if not self._catalog.may_create_group(name):
            raise GroupNotFoundError("subscription group does not exist")
        made: asyncio.Future[DLedgerError | None] = asyncio.get_running_loop().create_future()

        def done(group: GroupConfig | None, error: DLedgerError | None) -> None:
            if not made.done():
                failed = None if group is not None else definite_failure(error, f"group {name}")
                made.set_result(failed)

        self._catalog.ensure_group(name, done)
        failure = await made
        if failure is not None:
            raise failure

    # --- routes ---------------------------------------------------------------------------------

    async def _queues(self, topic: str) -> tuple[MessageQueue, ...] | None:
        """Returns the topic's readable queues of all brokers, sorted; None if nobody says."""
        now = self._context.clock.monotonic()
        known = self._routes.get(topic)
        if known is not None and now - known[0] < ROUTE_VALID_S:
            return known[1]
        if not self._context.config.nameservers:
            return self._own_queues(topic)
        queues = await self._ask(topic)
        if queues is None:
            return None if known is None else known[1]
        self._routes.pop(topic, None)
        if len(self._routes) >= ROUTES_MAX:
            self._routes.popitem(last=False)
        self._routes[topic] = (now, queues)
        return queues

    def _own_queues(self, topic: str) -> tuple[MessageQueue, ...] | None:
        config = self._context.store.topic(topic)
        if config is None:
            return None
        name = self._context.config.broker_name
        return tuple(MessageQueue(topic, name, n) for n in range(config.read_queue_count))

    async def _ask(self, topic: str) -> tuple[MessageQueue, ...] | None:
        ext = to_ext(GetRouteHeader(topic=topic, accept_standard_json_only=True))
        for address in self._context.config.nameservers:
            try:
                answer = await self._client.request(
                    address,
                    RequestCode.GET_ROUTEINFO_BY_TOPIC,
                    ext,
                    timeout_s=ROUTE_TIMEOUT_S,
                )
                if answer.code == ResponseCode.SUCCESS:
                    return queues_of(topic, decode_topic_route(answer.body))
                if answer.code == ResponseCode.TOPIC_NOT_EXIST:
                    return None
            except asyncio.CancelledError:
                raise
            except DLedgerError as error:
                logger.debug("no route: nameserver=%s topic=%s reason=%s", address, topic, error)
        return None


def queues_of(topic: str, route: TopicRouteData) -> tuple[MessageQueue, ...]:
    """Returns the readable queues of a route, sorted."""
    return tuple(
        sorted(
            {
                MessageQueue(topic, entry.broker_name, number)
                for entry in route.queue_datas
                if entry.permission & Permission.READ
                for number in range(entry.read_queue_count)
            }
        )
    )


def share(
    queues: Sequence[MessageQueue], members: Sequence[str], me: str, name: str, mode: ModeRow
) -> list[MessageQueue]:
    """Returns a member's queues.

    Args:
        queues: All of the topic, sorted.
        members: Client ids, sorted.
        me: Of the member.
        name: The strategy's wire name.
        mode: Whether it pulls or pops. Members that pop may share queues: all of them (then queue
            id -1 stands for a whole broker), or those of so many members that follow.
    """
    allocate = strategy(name)
    if mode.mode == PULL:
        return allocate(queues, members, me)
    count = mode.share_queue_count
    if count <= 0 or count >= len(members) - 1:
        brokers = sorted({queue.broker_name for queue in queues})
        return [MessageQueue(queues[0].topic, broker, -1) for broker in brokers]
    if me not in members:
        return []
    at = list(members).index(me)
    if len(members) > len(queues):
        return [queues[at % len(queues)]]
    near = [members[(at + step) % len(members)] for step in range(count + 1)]
    return sorted({queue for member in near for queue in allocate(queues, members, member)})
