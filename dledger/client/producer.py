"""Sends messages: batches by itself, keeps order per queue, survives fail-overs.

How a message travels: `send` encodes it and, if there is room, puts it where it belongs: into the
lane of its queue, or into the topic's common line if any queue will do. At the end of the loop's
turn every idle lane takes a batch. Its first attempt is made at once; unless that succeeds, a task
goes on with attempts until it is acknowledged, refused for good, or out of time; only then may the
lane send again, so a queue's messages are stored in the order they were sent even across retries.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections import deque
from collections.abc import Mapping, Sequence

from dledger.client.attempt import Attempt
from dledger.client.batching import Lane, Pending, share_count, take_batch, total_messages
from dledger.client.config import ProducerConfig, nameserver_addresses
from dledger.client.encoding import MessageEncoder, delayed
from dledger.client.requests import Question, send_reply
from dledger.client.results import ProducerStatistics, SendResult
from dledger.client.retry import backoff_s
from dledger.client.routes import TopicRoute
from dledger.client.sending import (
    BatchSender,
    Outcome,
    final_error,
    producer_id_of,
    send_header,
)
from dledger.client.session import ClientSession
from dledger.client.tasks import TaskSet
from dledger.client.topics import Target, TopicLines
from dledger.client.tracing import Tracer
from dledger.clock import Clock, SystemClock
from dledger.codes import MessageFlag, RequestCode
from dledger.errors import (
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    DLedgerError,
    FlowControlError,
    InvalidParameterError,
    RequestTimeoutError,
    RouteNotFoundError,
)
from dledger.lifetime import AsyncLifetime
from dledger.message import (
    Message,
    ReceivedMessage,
    UniqueKeyGenerator,
    decode_handle,
    encode_properties,
    validate_group,
    validate_topic,
)
from dledger.model import MessageQueue
from dledger.remoting.headers import RecallMessageHeader

logger = logging.getLogger(__name__)

_NAMESERVER_PATIENCE_S = 3.0


class AsyncProducer(AsyncLifetime):
    """Sends messages from an asyncio program.

    Use as `async with AsyncProducer("group") as producer`, or call `start` and `close`.

    Concurrency:
        Methods belong to the loop that `start` ran on.
    """

    def __init__(
        self,
        group: str = "DEFAULT_PRODUCER",
        *,
        nameserver: str | Sequence[str] | None = None,
        config: ProducerConfig | None = None,
        clock: Clock | None = None,
        unique_keys: UniqueKeyGenerator | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing.

        Args:
            group: Producer group; a name for the application, seen by operators.
            nameserver: `host:port`, several joined by `;`, or a sequence; by default the variable
                `DLEDGER_NAMESERVER`.
            config: Timeouts and limits.
            clock: For tests.
            unique_keys: For tests.

        Raises:
            ConfigError, InvalidParameterError: An argument is wrong.
        """
        validate_group(group)
        self.group = group
        self.config = config or ProducerConfig()
        clock = clock or SystemClock()
        self._session = ClientSession(
            self.config.session, nameserver_addresses(nameserver), clock, producer_group=group
        )
        self._clock = clock
        unique_keys = unique_keys or UniqueKeyGenerator(clock)
        self._encoder = MessageEncoder(self.config, unique_keys)
        self._sender = BatchSender(
            self._session, self.config, group, clock, producer_id_of(unique_keys())
        )
        self._tracer = Tracer(self._session, group) if self.config.trace else None
        self._topics: dict[str, TopicLines] = {}
        self._dirty: dict[str, None] = {}  # in the order of their first message
        self._overflow: deque[tuple[TopicLines, Pending, Target, str | None]] = deque()
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._sent = 0
        self._failed = 0
        self._tasks = TaskSet()
        self._idle = asyncio.Event()
        self._room = asyncio.Event()
        self._full = False  # whether `_room` is cleared
        self._idle.set()
        self._room.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._now = clock.monotonic  # that of the loop, once there is one
        self._closing = False

    def __repr__(self) -> str:
        return (
            f"<AsyncProducer {self.group} in_flight={self._in_flight} "
            f"waiting={len(self._overflow)} {'closed' if self._closing else 'open'}>"
        )

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Makes the producer ready. Needs no broker or nameserver to be up yet."""
        if self._closing:
            raise ClientClosedError("a closed producer cannot be started again; make a new one")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._now = self._loop.time
            await self._session.start()
            if self._tracer is not None:
                self._tracer.start()

    async def close(self) -> None:
        """Waits until every message accepted has its result, then disconnects.

        New sends are refused at once. Bounded by the send timeout of the last message under way.
        A second call does nothing.
        """
        if self._loop is None:
            self._closing = True
            return
        self._closing = True
        await self._idle.wait()
        if self._tracer is not None:
            await self._tracer.close()
        await self._session.close()

    # --- sending ------------------------------------------------------------------------------

    def send(
        self,
        message: Message,
        *,
        queue: Target = None,
        shard_key: str | None = None,
        delay: float | datetime.timedelta | None = None,
        deliver_at: float | datetime.datetime | None = None,
    ) -> asyncio.Future[SendResult]:
        """Sends one message; await the returned future for its result.

        At most `in_flight_max` messages are under way; others wait their turn in order. Messages
        for one queue are stored in the order of these calls.

        Args:
            message: What to send.
            queue: Send to exactly this queue (or the queue of this id).
            shard_key: Send to the queue of this key: equal keys, same queue.
            delay: Seconds, or a timedelta, after which consumers get it, from when the broker
                gets it. At most what the cluster allows, 45 days by default.
            deliver_at: Seconds since the epoch, or a datetime with a zone, at which they get it; a
                time in the past means at once.

        Returns:
            A future, already scheduled. Cancelling it stops the waiting, not the message.

        Raises:
            ClientClosedError: (definite) Closed or not started.
            MessageRejectedError, InvalidParameterError: (definite) Badly formed, or no such queue.
            FlowControlError: (definite) `waiting_max` messages wait already.
            RouteNotFoundError: (definite) No nameserver knows a broker for the topic.
            BrokerResponseError: The broker refused the message for good; see `definite`.
            SendFailedError: Attempts ended without success; `definite` says whether the message may
                be stored all the same.

        Durability:
            A result means: committed, on the disks of a majority of replicas.
        """
        if self._loop is None or self._closing:
            refused: asyncio.Future[SendResult] = asyncio.get_running_loop().create_future()
            refused.set_exception(ClientClosedError("the producer is closed or was not started"))
            return refused
        future: asyncio.Future[SendResult] = self._loop.create_future()
        try:
            if delay is not None or deliver_at is not None:
                message = delayed(message, delay, deliver_at)
            pending = self._encoder.encode(message, future)
            self._accept(message.topic, pending, queue, shard_key)
            if self._tracer is not None:
                self._encoder.give_keys((pending,))
                self._tracer.sending(message, pending.key, future)
        except DLedgerError as error:
            future.set_exception(error)
        return future

    def send_half(
        self,
        message: Message,
        extra: Mapping[str, str],
        *,
        queue: Target = None,
        shard_key: str | None = None,
    ) -> asyncio.Future[SendResult]:
        """Sends a half message, for `AsyncTransactionProducer`.

        Args:
            message: The message, without reserved properties.
            extra: Reserved properties that make it a half message.
            queue, shard_key: As `send`.

        Raises:
            As `send`.
        """
        loop = self._check_open()
        future: asyncio.Future[SendResult] = loop.create_future()
        try:
            pending = self._encoder.encode(message, future)
            self._encoder.give_keys((pending,))
            pending.properties += encode_properties(extra)
            pending.sys_flag |= int(MessageFlag.TRANSACTION_PREPARED)
            pending.alone = True
            self._accept(message.topic, pending, queue, shard_key)
        except DLedgerError as error:
            future.set_exception(error)
        return future

    async def send_batch(
        self,
        messages: Sequence[Message],
        *,
        queue: Target = None,
        shard_key: str | None = None,
    ) -> list[SendResult]:
        """Sends messages of one topic to one queue, stored next to each other or not at all.

        Ordinary sends are batched anyway; this is for messages that belong together.

        Returns:
            One result a message, in order, with consecutive queue offsets.

        Raises:
            MessageRejectedError: (definite) Empty, several topics, too large, or not batchable.
            Otherwise as `send`.
        """
        loop = self._check_open()
        future: asyncio.Future[list[SendResult]] = loop.create_future()
        pending = self._encoder.encode_batch(messages, future)
        self._accept(messages[0].topic, pending, queue, shard_key)
        return await future

    async def send_oneway(
        self,
        message: Message,
        *,
        queue: Target = None,
        shard_key: str | None = None,
        delay: float | datetime.timedelta | None = None,
        deliver_at: float | datetime.datetime | None = None,
    ) -> None:
        """Sends one message and does not ask what became of it: no result, no retry.

        Raises:
            ClientClosedError, MessageRejectedError, RouteNotFoundError, ConnectFailedError:
                (definite) It was not sent.
        """
        loop = self._check_open()
        future: asyncio.Future[SendResult] = loop.create_future()
        pending = self._encoder.encode(delayed(message, delay, deliver_at), future)
        self._encoder.give_keys((pending,))
        future.cancel()
        topic = self._topic(message.topic)
        route = await self._session.route(
            message.topic, guess_queues=self.config.default_topic_queue_count
        )
        topic.use(route)
        target = topic.choose(queue, shard_key)
        deadline = loop.time() + self.config.send_timeout_s
        address = await self._session.leader(target.broker_name, deadline)
        # Without the wish not to be forwarded: nobody would hear a refusal.
        header = send_header(self.config, self.group, target, [pending], self._clock.wall_ms())
        await self._session.remoting.send_oneway(
            address, RequestCode.SEND_MESSAGE_V2, header, pending.body
        )

    async def request(self, message: Message, *, timeout_s: float = 3.0) -> ReceivedMessage:
        """Sends a message and waits for the answer of a consumer that processes it.

        Args:
            message: The question.
            timeout_s: For sending, processing and the answer.

        Returns:
            The answer: its body, and the properties that `reply` gave it.

        Raises:
            RequestTimeoutError: No answer in time; the question may have been processed.
            Otherwise as `send`.

        Durability:
            The question is a message like others; the answer is not stored.
        """
        self._check_open()
        question = Question(self._session, message, timeout_s)
        return await question.ask(self.send, guess_queues=self.config.default_topic_queue_count)

    async def reply(
        self, request: ReceivedMessage, body: bytes, *, properties: dict[str, str] | None = None
    ) -> None:
        """Answers a request.

        Args:
            request: The question, as a consumer got it.
            body: The answer, at most 4 MiB.
            properties: Of the answer.

        Raises:
            InvalidParameterError: (definite) The message is no request.
            BrokerResponseError: (definite) Who asked is not connected any more.
            ConnectFailedError, ConnectionLostError, RequestTimeoutError: Not answered in time.
        """
        self._check_open()
        await send_reply(
            self._session, self.group, request, body, properties or {}, self._clock.wall_ms()
        )

    async def recall(self, handle: str) -> None:
        """Takes a delayed message back before its time.

        Args:
            handle: `recall_handle` of the result of its send.

        Raises:
            InvalidParameterError: (definite) It is no handle.
            BrokerResponseError: (definite) The message does not wait any more: it was delivered,
                or recalled before (code 22); or recalling is not allowed.
            ConnectFailedError, ConnectionLostError, RequestTimeoutError: Not answered in time; it
                may be recalled all the same.

        Durability:
            On return it is committed that the message will never be delivered.
        """
        self._check_open()
        named = decode_handle(handle)
        await self._session.route(named.topic)
        header = RecallMessageHeader(
            producer_group=self.group, topic=named.topic, recall_handle=handle
        )
        await self._session.call_leader(named.broker_name, RequestCode.RECALL_MESSAGE, header)

    async def wait_room(self) -> None:
        """Waits until a message could be under way at once: for producers faster than the cluster.

        Concurrency: safe to cancel.
        """
        while not self._room.is_set() and not self._closing:
            await self._room.wait()

    async def wait_idle(self) -> None:
        """Waits until every message accepted so far and meanwhile has its result."""
        await self._idle.wait()

    def statistics(self) -> ProducerStatistics:
        """Returns counters since the start and the present load."""
        return ProducerStatistics(
            sent=self._sent,
            failed=self._failed,
            requests=self._sender.requests,
            retries=self._sender.retries,
            in_flight=self._in_flight,
            waiting=len(self._overflow),
        )

    async def queues(self, topic: str) -> list[MessageQueue]:
        """Returns the topic's writable queues, sorted.

        Raises:
            RouteNotFoundError: (definite) No nameserver knows the topic.
        """
        route = await self._session.route(topic)
        return list(route.publish_queues)

    # --- inside -------------------------------------------------------------------------------

    @property
    def session(self) -> ClientSession:
        """The client's ties to the cluster, for the transaction producer."""
        return self._session

    @property
    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is None:
            raise ClientClosedError("the producer was not started")
        return loop

    def _check_open(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._closing:
            raise ClientClosedError("the producer is closed or was not started")
        return self._loop

    def _topic(self, name: str) -> TopicLines:
        topic = self._topics.get(name)
        if topic is None:
            validate_topic(name)
            topic = self._topics[name] = TopicLines(name)
        return topic

    def _accept(self, name: str, pending: Pending, queue: Target, shard_key: str | None) -> None:
        topic = self._topics.get(name) or self._topic(name)
        if queue is not None and shard_key is not None:
            raise InvalidParameterError("give a queue or a shard key, not both")
        if not self._full:
            self._admit(topic, pending, queue, shard_key)
            return
        if len(self._overflow) >= self.config.waiting_max:
            raise FlowControlError(f"{self.config.waiting_max} messages wait to be sent")
        self._overflow.append((topic, pending, queue, shard_key))

    def _admit(
        self, topic: TopicLines, pending: Pending, queue: Target, shard_key: str | None
    ) -> None:
        config = self.config
        pending.deadline = self._now() + config.send_timeout_s
        if queue is None and shard_key is None and not pending.keys:
            topic.line.append(pending)  # what `place` would do
        else:
            topic.place(pending, queue, shard_key)
        count = self._in_flight = self._in_flight + 1
        size = self._in_flight_bytes = self._in_flight_bytes + len(pending.body)
        if count >= config.in_flight_max or size >= config.in_flight_bytes_max:
            self._full = True
            self._room.clear()
        dirty = self._dirty
        if not dirty:
            self._idle.clear()
            self._running_loop.call_soon(self._flush)
        dirty[topic.name] = None

    def _flush(self) -> None:
        """Runs once at the end of a loop turn that brought messages."""
        dirty, self._dirty = self._dirty, {}
        for name in dirty:
            self._dispatch(self._topics[name])

    def _dispatch(self, topic: TopicLines) -> None:
        """Gives every idle lane of the topic what it may send now."""
        route = self._session.routes.route(topic.name)
        if route is not None and route is not topic.route:
            topic.use(route)
        if topic.needs_route and not topic.resolving:
            topic.resolving = True
            self._tasks.spawn(self._resolve(topic), f"route of {topic.name}")
        config = self.config
        for lane in topic.take_ready():
            batch = take_batch(
                lane.waiting, count_max=config.batch_messages_max, bytes_max=config.batch_bytes_max
            )
            self._start(topic, lane, batch)
        count_min = topic.count_min(config.batch_messages_min)
        while topic.line:
            # More lanes than this would get nothing of what waits.
            useful = -(-topic.waiting // count_min)
            lanes = topic.free_lanes(useful, self._sender.is_quick, self._session.has_leader)
            if not lanes:
                return
            share = share_count(
                topic.waiting,
                len(lanes),
                count_min=count_min,
                count_max=config.batch_messages_max,
            )
            topic.turn_taken(lanes[0])
            batch = topic.take_batch(count_max=share, bytes_max=config.batch_bytes_max)
            self._start(topic, lanes[0], batch)

    async def _resolve(self, topic: TopicLines) -> None:
        """Gets a route for what has no place; ends what has none in a fresh one either."""
        try:
            route = await self._ask_route(topic)
        except DLedgerError as error:
            self._refuse_all(topic.take_unroutable(), error)
            return
        finally:
            topic.resolving = False
        topic.use(route)
        for pending, refusal in topic.place_unplaced():
            self._refuse_all([pending], refusal)
        if topic.line and not route.publish_queues:
            refusal = RouteNotFoundError(f"topic {topic.name} has no writable queue")
            self._refuse_all(topic.take_unroutable(), refusal)
        self._dispatch(topic)

    async def _ask_route(self, topic: TopicLines) -> TopicRoute:
        """Asks for a route; nameservers that cannot be reached get a moment to come back."""
        loop = self._running_loop
        give_up = loop.time() + min(self.config.send_timeout_s, _NAMESERVER_PATIENCE_S)
        failures = 0
        while True:
            try:
                return await self._session.route(
                    topic.name,
                    guess_queues=self.config.default_topic_queue_count,
                    refresh=topic.route is not None,
                )
            except (ConnectFailedError, ConnectionLostError, RequestTimeoutError):
                failures += 1
                if loop.time() >= give_up:
                    raise
            await asyncio.sleep(backoff_s(failures, 0.05, 0.5))

    def _start(self, topic: TopicLines, lane: Lane, batch: list[Pending]) -> None:
        lane.busy = True
        self._encoder.give_keys(batch)

        def ended(found: Attempt | Outcome | None) -> None:
            if isinstance(found, Outcome):
                self._settle(topic, lane, found)
                return
            name = f"send {topic.name}/{lane.queue.queue_id}"
            self._tasks.spawn(self._run(topic, lane, batch, found), name)

        if not self._sender.begin(lane.queue, batch, ended):
            ended(None)

    async def _run(
        self, topic: TopicLines, lane: Lane, batch: list[Pending], attempt: Attempt | None
    ) -> None:
        try:
            outcome = await self._sender.deliver(
                lane.queue, batch, may_leave=topic.has_elsewhere(lane), attempt=attempt
            )
        except Exception as error:
            # A bug of ours; nobody may wait for ever because of it.
            logger.exception("send failed unexpectedly queue=%s", lane.queue)
            outcome = Outcome(done=batch)
            for item in batch:
                if not item.future.done():
                    item.future.set_exception(error)
        self._settle(topic, lane, outcome)

    def _settle(self, topic: TopicLines, lane: Lane, outcome: Outcome) -> None:
        """Takes what became of a lane's batch; the lane goes on."""
        if outcome.again:
            if outcome.again[0].pinned:
                topic.put_back(lane, outcome.again)
            else:
                topic.return_batch(outcome.again)
        topic.settled(lane)
        self._sent += outcome.sent
        self._failed += total_messages(outcome.done) - outcome.sent
        self._release(outcome.done)
        self._dispatch(topic)

    def _refuse_all(self, items: list[Pending], error: DLedgerError) -> None:
        """Ends messages that never left."""
        for item in items:
            if not item.future.done():
                item.future.set_exception(final_error(item, error))
        self._failed += total_messages(items)
        self._release(items)

    def _release(self, items: list[Pending]) -> None:
        config = self.config
        self._in_flight -= len(items)
        self._in_flight_bytes -= sum([len(item.body) for item in items])
        if (
            self._in_flight < config.in_flight_max
            and self._in_flight_bytes < config.in_flight_bytes_max
        ):
            self._full = False
            self._room.set()
        overflow = self._overflow
        while overflow and not self._full:
            self._admit(*overflow.popleft())
        if not self._in_flight:
            self._idle.set()
