"""One client's ties to a cluster: connections, routes, who leads, heartbeats.

Every producer, consumer and admin client has one. It asks nameservers, keeps the route cache
fresh, finds a group's leader when it has gone, and tells brokers that the client lives.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, Sequence

import msgspec

from dledger.client.config import SessionConfig
from dledger.client.finder import LeaderFinder
from dledger.client.heartbeats import Heartbeats, Member
from dledger.client.requests import Requests, handle_push
from dledger.client.retry import Step, backoff_s, judge
from dledger.client.routes import RouteCache, TopicRoute, topic_route
from dledger.client.tasks import TaskSet
from dledger.client.watch import LeaderWatch
from dledger.clock import Clock
from dledger.codes import (
    AUTO_CREATE_TOPIC,
    EXT_LEADER_ADDRESS,
    EXT_NO_FORWARD,
    EXT_OUTCOME,
    EXT_TERM,
    OUTCOME_UNKNOWN,
    RequestCode,
    ResponseCode,
)
from dledger.errors import (
    BrokerResponseError,
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    DLedgerError,
    RequestTimeoutError,
    RouteNotFoundError,
)
from dledger.remoting.bodies import (
    ClusterInfo,
    ConsumerData,
    decode_cluster_info,
    decode_kv_table,
    decode_topic_route,
)
from dledger.remoting.client import ClientConfig, ClientConnection, RemotingClient
from dledger.remoting.commands import Command, Ext
from dledger.remoting.errors import response_error
from dledger.remoting.headers import to_ext
from dledger.remoting.nameserver_headers import GetRouteHeader

logger = logging.getLogger(__name__)

_ATTEMPT_MIN_S = 0.2
SILENCE_S = 0.5  # without an answer, until the other replicas are asked
_GUESS_REFRESH_S = 1.0  # a topic that is about to be created gets its real route soon


def make_client_id() -> str:
    """Returns an identity that no other client has: host, process, chance."""
    return f"{socket.gethostname()[:64]}@{os.getpid()}#{secrets.token_hex(6)}"


class ClientSession:
    """Shared by the parts of one client. Belongs to the loop that `start` ran on."""

    def __init__(
        self,
        config: SessionConfig,
        nameservers: Sequence[str],
        clock: Clock,
        *,
        producer_group: str = "",
    ) -> None:
        self.config = config
        self.client_id = config.client_id or make_client_id()
        self.routes = RouteCache()
        self.remoting = RemotingClient(
            ClientConfig(
                connect_timeout_s=config.connect_timeout_s,
                request_timeout_s=config.request_timeout_s,
            ),
            on_request=self._on_request,
            on_connection_lost=self._on_connection_lost,
        )
        self._clock = clock
        self._nameservers = list(nameservers)
        self._nameserver_at = 0
        self._tasks = TaskSet()
        self._finder = LeaderFinder(
            self.routes, config, clock, probe=self._probe, refresh=self._refresh_groups
        )
        self._heartbeats = Heartbeats(
            self.routes, self.remoting, self.client_id, config.heartbeat_s, producer_group
        )
        self._watch = LeaderWatch(
            probe=self._probe,
            find_successor=self._find_successor,
            give_up=lambda address: self.remoting.give_up(address, "it leads no more"),
            spawn=self._tasks.spawn,
        )
        self.requests: Requests | None = None  # set by who asks
        self._fetching: dict[str, asyncio.Task[TopicRoute]] = {}
        # What brokers ask of clients, by code; set by the parts that can answer.
        self.request_handlers: dict[int, Callable[[ClientConnection, Command], None]] = {}
        self._route_listeners: list[Callable[[str], None]] = []
        self._started = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<ClientSession {self.client_id} {self.routes!r}>"

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begins to poll routes and send heartbeats. Needs nobody to be reachable yet."""
        if self._closed:
            raise ClientClosedError("the client is closed")
        if not self._started:
            self._started = True
            self._tasks.spawn(self._poll_routes(), "route poll")
            self._tasks.spawn(self._heartbeats.run(), "heartbeats")

    async def close(self) -> None:
        """Says goodbye to the brokers and disconnects. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        tasks = [*self._tasks.cancel(), *self._fetching.values()]
        for task in self._fetching.values():
            task.cancel()
        await self._finder.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._started:
            await self._heartbeats.close()
        await self.remoting.close()

    def check_open(self) -> None:
        """Raises `ClientClosedError` unless started and not closed."""
        if self._closed or not self._started:
            raise ClientClosedError("the client is closed or was not started")

    # --- routes -------------------------------------------------------------------------------

    async def route(
        self, topic: str, *, guess_queues: int = 0, refresh: bool = False
    ) -> TopicRoute:
        """Returns a topic's route, asking a nameserver if there is none yet.

        Args:
            topic: The topic's name.
            guess_queues: For a topic that does not exist yet, return the queues (at most so many
                of each broker) that its first send will create; 0: do not.
            refresh: Ask even if a route is known.

        Raises:
            RouteNotFoundError: (definite) No broker has the topic, none would create it.
            ConnectFailedError, RequestTimeoutError: No nameserver answers and no route is known.
        """
        self.check_open()
        known = self.routes.route(topic)
        if known is not None and not refresh and not (known.guessed and not guess_queues):
            return known
        task = self._fetching.get(topic)
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._fetch_route(topic, guess_queues), name=f"route {topic}"
            )
            self._fetching[topic] = task
            task.add_done_callback(lambda done: self._fetched(topic, done))
        return await asyncio.shield(task)

    def refresh_soon(self, topic: str) -> None:
        """Asks for a topic's route again, in the background."""
        if not self._closed and topic not in self._fetching:
            known = self.routes.route(topic)
            guess = len(known.publish_queues) if known is not None and known.guessed else 0
            self._tasks.spawn(self._refresh_quietly(topic, guess), f"refresh {topic}")

    def on_route_change(self, callback: Callable[[str], None]) -> None:
        """Calls back with the topic whenever its queues or addresses changed."""
        self._route_listeners.append(callback)

    async def ask_nameserver(
        self, code: RequestCode, ext: Ext = None, body: bytes = b""
    ) -> Command:
        """Returns a nameserver's answer; goes to the next one if one cannot be reached.

        Raises:
            BrokerResponseError: The answer is an error.
            ConnectFailedError, ConnectionLostError, RequestTimeoutError: None answers.
        """
        last: DLedgerError | None = None
        for _ in self._nameservers:
            address = self._nameservers[self._nameserver_at % len(self._nameservers)]
            try:
                response = await self.remoting.request(address, code, ext, body)
            except (ConnectFailedError, ConnectionLostError, RequestTimeoutError) as error:
                last = error
                self._nameserver_at += 1
                continue
            if response.code != ResponseCode.SUCCESS:
                raise response_error(response, address)
            return response
        raise last or ConnectFailedError("no nameserver is known")

    async def every_nameserver(self, code: RequestCode, ext: Ext = None, body: bytes = b"") -> None:
        """Sends a request to all nameservers; they do not tell each other. Raises as one would."""
        for address in self._nameservers:
            response = await self.remoting.request(address, code, ext, body)
            if response.code != ResponseCode.SUCCESS:
                raise response_error(response, address)

    async def cluster_info(self) -> ClusterInfo:
        """Returns all broker groups a nameserver knows, and notes their addresses."""
        response = await self.ask_nameserver(RequestCode.GET_BROKER_CLUSTER_INFO)
        info = decode_cluster_info(response.body)
        now_ms = self.now_ms()
        for name, data in info.brokers.items():
            self.routes.note_group(name, data.addresses, now_ms)
        return info

    # --- leaders ------------------------------------------------------------------------------

    def has_leader(self, broker_name: str) -> bool:
        """Whether some address is believed to lead that group now."""
        return self.routes.book(broker_name).leader is not None

    def seek_leader(self, broker_name: str) -> None:
        """Looks for the group's leader in the background."""
        self._finder.seek_soon(broker_name)

    async def leader(self, broker_name: str, deadline: float, *, confirm: bool = False) -> str:
        """Returns the address believed to lead a group; looks for it if there is none.

        Args:
            broker_name: The group.
            deadline: On the loop's clock.
            confirm: Believe nothing: ask round until one says that it leads.

        Raises:
            ConnectFailedError: (definite) Nobody leads the group until the deadline.
            ClientClosedError: (definite) Closed meanwhile.
        """
        self.check_open()
        book = self.routes.book(broker_name)
        if confirm:
            book.leader = None
        return book.leader or await self._finder.find(broker_name, deadline)

    def note_answer(self, broker_name: str, address: str, response: Command) -> None:
        """Learns from an answer to something that only a leader does."""
        book = self.routes.book(broker_name)
        if response.code == ResponseCode.SERVICE_NOT_AVAILABLE:
            ext = response.ext
            term = ext.get(EXT_TERM, "")
            book.hinted(
                address,
                ext.get(EXT_LEADER_ADDRESS) or None,
                int(term) if term.isascii() and term.isdigit() else 0,
                self.now_ms(),
            )
        elif response.ext.get(EXT_OUTCOME) != OUTCOME_UNKNOWN:
            book.succeeded(address)

    def note_failure(self, broker_name: str, address: str, error: DLedgerError) -> None:
        """Learns from an attempt that got no answer."""
        if isinstance(error, (ConnectFailedError, ConnectionLostError, RequestTimeoutError)):
            self.routes.book(broker_name).failed(address, self.now_ms())

    async def ask_leader(
        self,
        broker_name: str,
        address: str,
        code: RequestCode,
        ext: Ext,
        body: bytes,
        *,
        timeout_s: float,
    ) -> Command:
        """Sends a request to a leader, but does not wait long for one that has been replaced.

        A process that is stopped, or beyond a broken network, keeps its connection and just does
        not answer. So after a while of silence the other replicas are asked; once one of them says
        that it serves as leader, the attempt is given up.

        Raises:
            RequestTimeoutError: No answer, or another replica leads meanwhile. Indefinite.
            Otherwise as `RemotingClient.request`.
        """
        request = asyncio.get_running_loop().create_task(
            self.remoting.request(address, code, ext, body, timeout_s=timeout_s)
        )
        return await self.await_answer(broker_name, address, request, silent_s=0.0)

    def ready(self, broker_name: str) -> ClientConnection | None:
        """Returns the connection to a group's leader if a request would leave there at once."""
        if self._closed or not self._started:
            return None
        leader = self.routes.book(broker_name).leader
        return None if leader is None else self.remoting.ready(leader)

    async def await_answer(
        self,
        broker_name: str,
        address: str,
        request: asyncio.Future[Command],
        *,
        silent_s: float,
    ) -> Command:
        """Waits for a leader's answer as `ask_leader` does; cancels the request if it gives up.

        Args:
            broker_name, address: Who was asked.
            request: Under way.
            silent_s: For how long there has been no answer.
        """
        try:
            pause_s = max(0.0, SILENCE_S - silent_s)
            done, _ = await asyncio.wait({request}, timeout=pause_s)
            while not done:
                if await self._find_successor(broker_name, address):
                    raise RequestTimeoutError(f"no answer from {address}, which leads no more")
                done, _ = await asyncio.wait({request}, timeout=SILENCE_S)
            return request.result()
        finally:
            request.cancel()

    async def long_poll(
        self, broker_name: str, address: str, code: RequestCode, ext: Ext, *, timeout_s: float
    ) -> Command:
        """Sends a request that a replica may hold for long; see the module `watch`.

        Raises:
            ConnectionLostError: Also if the replica fell silent and another one leads.
            Otherwise as `RemotingClient.request`.
        """
        self._watch.enter(broker_name, address)
        try:
            return await self.remoting.request(address, code, ext, timeout_s=timeout_s)
        finally:
            self._watch.leave(broker_name, address)

    async def _find_successor(self, broker_name: str, silent: str) -> bool:
        """Whether a replica other than the silent one says that it serves as leader."""
        book = self.routes.book(broker_name)
        others = [address for address in book.addresses if address != silent]
        answers = await asyncio.gather(*(self._serves(address) for address in others))
        for address, serves in zip(others, answers, strict=True):
            if serves:
                book.failed(silent, self.now_ms())
                book.succeeded(address)
                return True
        return False

    async def _serves(self, address: str) -> bool:
        try:
            response = await self.remoting.request(
                address,
                RequestCode.GET_BROKER_RUNTIME_INFO,
                timeout_s=self.config.probe_timeout_s,
            )
            return decode_kv_table(response.body).get("raftServing") == "true"
        except DLedgerError:
            return False

    async def call_leader(
        self,
        broker_name: str,
        code: RequestCode,
        header: msgspec.Struct | None = None,
        body: bytes = b"",
        *,
        timeout_s: float | None = None,
    ) -> Command:
        """Asks a group's leader, following it through a fail-over, until it answers.

        For requests that may be made twice without harm: attempts of unknown outcome are repeated.

        Raises:
            BrokerResponseError: The leader refused; `code` and `remark` say why.
            ConnectFailedError, ConnectionLostError, RequestTimeoutError: Not answered in time.
        """
        loop = asyncio.get_running_loop()
        limit = timeout_s if timeout_s is not None else self.config.operation_timeout_s
        deadline = loop.time() + limit
        ext: dict[str, object] = dict(to_ext(header)) if header is not None else {}
        ext[EXT_NO_FORWARD] = "1"
        failures = hints = 0
        while True:
            address = await self.leader(broker_name, deadline, confirm=hints >= 2)
            left = max(0.001, min(self.config.request_timeout_s, deadline - loop.time()))
            error: DLedgerError
            unknown = False
            try:
                response = await self.ask_leader(
                    broker_name, address, code, ext, body, timeout_s=left
                )
                unknown = response.ext.get(EXT_OUTCOME) == OUTCOME_UNKNOWN
                self.note_answer(broker_name, address, response)
                if response.code == ResponseCode.SUCCESS:
                    return response
                error = response_error(response, address)
            except DLedgerError as exc:
                self.note_failure(broker_name, address, exc)
                error = exc
            failures += 1
            step = judge(error).step
            # A serving leader's "system error" is final, unless it says that leadership was lost on
            # the way: then the next leader is worth asking.
            final = step is Step.ELSEWHERE or (
                isinstance(error, BrokerResponseError)
                and error.code == ResponseCode.SYSTEM_ERROR
                and not unknown
            )
            if final:
                raise error
            # One more attempt that cannot be answered in time would hide what the last one said.
            if step is Step.GIVE_UP or loop.time() >= deadline - min(_ATTEMPT_MIN_S, limit / 4):
                raise error
            hints = hints + 1 if step is Step.FIND_LEADER else 0
            if step is Step.WAIT:
                await asyncio.sleep(backoff_s(failures))

    # --- groups -------------------------------------------------------------------------------

    def join(
        self, data: ConsumerData, topics: Sequence[str], on_change: Callable[[], None]
    ) -> Member:
        """Makes this client a member of a consumer group and tells all replicas at once.

        Args:
            data: Group and subscriptions, as heartbeats carry them.
            topics: Topics whose brokers are to be told.
            on_change: Called when a broker says that members came or went.
        """
        return self._heartbeats.join(data, topics, on_change)

    async def heartbeat_now(self) -> None:
        """Sends heartbeats to all brokers that this client deals with and awaits the answers."""
        await self._heartbeats.send_all()

    # --- inside -------------------------------------------------------------------------------

    async def _fetch_route(self, topic: str, guess_queues: int) -> TopicRoute:
        known = self.routes.route(topic)
        try:
            route = await self._ask_route(topic, topic)
        except BrokerResponseError as error:
            if error.code != ResponseCode.TOPIC_NOT_EXIST:
                raise
            if known is not None and not known.guessed:
                return known  # see the module `routes`
            if not guess_queues:
                raise RouteNotFoundError(f"no broker has topic {topic}") from error
            route = await self._guess_route(topic, guess_queues)
        except DLedgerError:
            if known is not None:
                return known
            raise
        if self.routes.update(route, self.now_ms()):
            self._heartbeats.soon()
            for listener in self._route_listeners:
                listener(topic)
        return route

    async def _ask_route(self, topic: str, answer_of: str, queues_max: int = 0) -> TopicRoute:
        header = GetRouteHeader(topic=answer_of, accept_standard_json_only=True, own_addresses=True)
        response = await self.ask_nameserver(RequestCode.GET_ROUTEINFO_BY_TOPIC, to_ext(header))
        data = decode_topic_route(response.body)
        return topic_route(topic, data, queues_max=queues_max or None, guessed=answer_of != topic)

    async def _guess_route(self, topic: str, queues_max: int) -> TopicRoute:
        try:
            return await self._ask_route(topic, AUTO_CREATE_TOPIC, queues_max)
        except BrokerResponseError as error:
            if error.code != ResponseCode.TOPIC_NOT_EXIST:
                raise
            raise RouteNotFoundError(
                f"no broker has topic {topic} or creates topics by itself; create it first"
            ) from error

    def _fetched(self, topic: str, task: asyncio.Task[TopicRoute]) -> None:
        self._fetching.pop(topic, None)
        if not task.cancelled():
            task.exception()  # seen; whoever awaits the task gets it

    async def _refresh_quietly(self, topic: str, guess_queues: int = 0) -> None:
        try:
            await self.route(topic, guess_queues=guess_queues, refresh=True)
        except DLedgerError as error:
            logger.debug("route refresh failed topic=%s error=%s", topic, error)

    async def _refresh_groups(self) -> None:
        try:
            await self.cluster_info()
        except DLedgerError as error:
            logger.debug("cluster refresh failed error=%s", error)

    async def _poll_routes(self) -> None:
        waited = 0.0
        while True:
            pause = min(self.config.route_poll_s, _GUESS_REFRESH_S)
            await asyncio.sleep(pause)
            waited += pause
            due = waited >= self.config.route_poll_s
            waited = 0.0 if due else waited
            for topic in self.routes.topics:
                route = self.routes.route(topic)
                if route is not None and (due or route.guessed):
                    guess = len(route.publish_queues) if route.guessed else 0
                    await self._refresh_quietly(topic, guess)

    async def _probe(self, address: str) -> Command:
        """Asks a replica something that only the leader answers."""
        ext = {"consumerGroup": "CLIENT_INNER_PRODUCER", EXT_NO_FORWARD: "1"}
        return await self.remoting.request(
            address,
            RequestCode.GET_CONSUMER_LIST_BY_GROUP,
            ext,
            timeout_s=self.config.probe_timeout_s,
        )

    def _on_request(self, connection: ClientConnection, command: Command) -> None:
        if command.code == RequestCode.NOTIFY_CONSUMER_IDS_CHANGED:
            self._heartbeats.members_changed(command.ext.get("consumerGroup", ""))
        elif command.code == RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT:
            error = handle_push(self.requests, command)
            if error is not None:
                connection.reply(command, ResponseCode.SYSTEM_ERROR, remark=str(error))
            else:
                connection.reply(command)
        elif (handler := self.request_handlers.get(command.code)) is not None:
            handler(connection, command)
        elif not command.is_oneway:
            connection.reply(
                command,
                ResponseCode.REQUEST_CODE_NOT_SUPPORTED,
                remark=f" request type {command.code} not supported",
            )

    def _on_connection_lost(self, connection: ClientConnection) -> None:
        self._heartbeats.connection_lost(connection.address)

    @property
    def nameservers(self) -> list[str]:
        """The nameservers' addresses."""
        return list(self._nameservers)

    def wall_ms(self) -> int:
        """Returns milliseconds since the epoch."""
        return self._clock.wall_ms()

    def now_ms(self) -> int:
        """Returns the monotonic time that the leader books reckon in."""
        return int(self._clock.monotonic() * 1000)
