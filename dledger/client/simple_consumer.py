"""Receives messages one by one and acknowledges each: no queues, no rebalance, no offsets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from dledger.client.config import SimpleConsumerConfig, nameserver_addresses
from dledger.client.filters import Sql, Subscription, subscribe
from dledger.client.heartbeats import Member
from dledger.client.popper import Popper, Source, everything, is_lasting
from dledger.client.retry import backoff_s
from dledger.client.session import ClientSession
from dledger.client.subscription_check import check_subscription, wire
from dledger.clock import Clock, SystemClock
from dledger.codes import RETRY_PREFIX
from dledger.errors import (
    ClientClosedError,
    ConfigError,
    DLedgerError,
    InvalidParameterError,
    RouteNotFoundError,
)
from dledger.lifetime import AsyncLifetime
from dledger.message import ReceivedMessage, validate_group
from dledger.model import ConsumeFrom
from dledger.remoting.bodies import ConsumerData

logger = logging.getLogger(__name__)

COUNT_MAX = 32
INVISIBLE_MAX_S = 3 * 86_400
_RETRY_TOPIC_LOOK_S = 2.0


class AsyncSimpleConsumer(AsyncLifetime):
    """A member of a consumer group that shares every queue with the other members.

    A message received is out: nobody else of the group gets it for `invisible_s` seconds. Then it
    comes again, unless it was acknowledged before; after the group's maximum of deliveries
    (`retry_max` and the first one) it is a dead letter. What is out and what is acknowledged is
    replicated by the brokers: a change of leader costs neither, and receipt handles stay valid.

    At least once: a message whose acknowledgement fails, or comes too late, comes again.

    A group may go from pulling or push consumers to simple ones and back: it goes on where it was.
    Do not mix both at a time; push consumers would reckon with this member.

    Concurrency:
        Methods belong to the loop that `start` ran on; several `receive` may run at a time.
    """

    def __init__(
        self,
        group: str,
        *,
        subscriptions: Mapping[str, str | Sql],
        nameserver: str | Sequence[str] | None = None,
        consume_from: ConsumeFrom = ConsumeFrom.EARLIEST,
        config: SimpleConsumerConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing.

        Args:
            group: Consumer group.
            subscriptions: Topic to tags (`*`, or some joined by `||`), or to a condition in SQL.
            nameserver: As for `AsyncProducer`.
            consume_from: Where the group begins in a queue it has never been in: `EARLIEST` or
                `LATEST`.
            config: Limits.
            clock: For tests.

        Raises:
            ConfigError, InvalidParameterError: An argument is wrong.
        """
        validate_group(group)
        if consume_from is ConsumeFrom.TIMESTAMP:
            raise ConfigError("consume_from", consume_from, "must be EARLIEST or LATEST")
        if not subscriptions:
            raise ConfigError("subscriptions", subscriptions, "must name a topic")
        self.group = group
        self.config = config or SimpleConsumerConfig()
        self._clock = clock or SystemClock()
        self._session = ClientSession(
            self.config.session, nameserver_addresses(nameserver), self._clock
        )
        self._consume_from = consume_from
        self._popper = Popper(self._session, group)
        self._subscriptions: dict[str, Subscription] = {}
        for topic, expression in subscriptions.items():
            self._subscriptions[topic] = subscribe(topic, expression, self._clock.wall_ms())
        self._retry = everything(RETRY_PREFIX + group, self._clock.wall_ms())
        self._retry_looked_s: float | None = None
        self._member: Member | None = None
        # Questions under way, at most one for each place; they outlive the call that asked.
        self._questions: dict[Source, asyncio.Task[bool]] = {}
        self._turn = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<AsyncSimpleConsumer {self.group} topics={sorted(self._subscriptions)}>"

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Joins the group. Needs no broker to be up yet.

        Raises:
            BrokerResponseError: A broker refuses a condition in SQL.
        """
        if self._closed:
            raise ClientClosedError("a closed consumer cannot be started again; make a new one")
        await self._session.start()
        for subscription in self._subscriptions.values():
            await self._look_for(subscription)
        self._member = self._session.join(self._data(), list(self._subscriptions), lambda: None)
        await self._session.heartbeat_now()

    async def close(self) -> None:
        """Disconnects. What is out and not acknowledged comes again. Twice does nothing."""
        self._closed = True
        questions = list(self._questions.values())
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)
        await self._session.close()

    # --- subscriptions --------------------------------------------------------------------------

    async def subscribe(self, topic: str, expression: str | Sql = "*") -> None:
        """Receives from this topic, too, or from now on with another expression.

        Raises:
            ConfigError, InvalidParameterError: The topic or expression makes no sense.
            BrokerResponseError: A broker refuses the condition in SQL.
        """
        subscription = subscribe(topic, expression, self._clock.wall_ms())
        await self._look_for(subscription)
        self._subscriptions[topic] = subscription
        await self._tell()

    async def unsubscribe(self, topic: str) -> None:
        """Receives from this topic no more; what is out can still be acknowledged."""
        self._subscriptions.pop(topic, None)
        await self._tell()

    # --- receiving ------------------------------------------------------------------------------

    async def receive(
        self, max_messages: int = 16, *, invisible_s: float = 30.0, wait_s: float = 20.0
    ) -> list[ReceivedMessage]:
        """Returns messages that nobody else of the group gets meanwhile.

        Args:
            max_messages: At most so many, 1 to 32; usually of one topic and broker group.
            invisible_s: For how long they are out. `change_invisible_duration` prolongs it.
            wait_s: How long to wait if there are none; 0 does not wait.

        Returns:
            Messages, those of a queue in its order; none if the time is over. `reconsume_times`
            counts earlier deliveries.

        Raises:
            InvalidParameterError: (definite) An argument is out of range.
            RouteNotFoundError: (definite) No broker has any of the topics.
            BrokerResponseError: A broker refused.
            ConnectFailedError, ConnectionLostError, RequestTimeoutError: No broker group answered
                in time. Messages may be out; they come again.
        """
        _check(max_messages, invisible_s, wait_s)
        self._session.check_open()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        # Even a receive that shall not wait gets the time that asking takes.
        give_up = loop.time() + max(wait_s, self.config.session.operation_timeout_s)
        failures = 0
        hint: Source | None = None
        while True:
            found, error = await self._pop_once(max_messages, invisible_s, hint, give_up)
            if found:
                return found
            if error is None:
                failures = 0
                left = deadline - loop.time()
                if left <= 0:
                    return []
                hint = await self._wait(left)
                continue
            failures += 1
            limit = deadline if isinstance(error, RouteNotFoundError) else give_up
            if is_lasting(error) or loop.time() >= limit:
                raise error
            await asyncio.sleep(backoff_s(failures, 0.02, 0.5))

    async def ack(self, message: ReceivedMessage) -> None:
        """Says that a message is processed: it does not come again. Repeating it is harmless.

        Raises:
            ReceiptHandleError: (definite) Too late: the message is given out again. Or its time
                was changed by another call, with another handle.
            InvalidParameterError: (definite) The message was not received by a simple consumer.
            BrokerResponseError: The broker refused.
            ConnectFailedError, ConnectionLostError, RequestTimeoutError: Not, or not certainly,
                acknowledged; trying again is harmless.

        Durability:
            On return the acknowledgement is committed by a majority.
        """
        await self._popper.ack(message)

    async def change_invisible_duration(self, message: ReceivedMessage, seconds: float) -> None:
        """Sets for how long, from now on, a message is out; 0 gives it back at once.

        The message object gets its new receipt handle; copies of it made before are stale.

        Raises: as `ack`. After an error of unknown outcome the handle may be stale.
        """
        if not 0 <= seconds <= INVISIBLE_MAX_S:
            raise InvalidParameterError(f"seconds must lie in 0..{INVISIBLE_MAX_S}")
        await self._popper.change(message, round(seconds * 1000))

    # --- inside -------------------------------------------------------------------------------

    async def _pop_once(
        self, count: int, invisible_s: float, hint: Source | None, give_up: float
    ) -> tuple[list[ReceivedMessage], DLedgerError | None]:
        """Asks every place once, until one has something; an error only if none answered."""
        loop = asyncio.get_running_loop()
        try:
            sources = await self._sources()
        except DLedgerError as error:
            return [], error
        if hint in sources:
            sources.remove(hint)
            sources.insert(0, hint)
        answered = False
        last: DLedgerError | None = None
        for source in sources:
            subscription = self._subscription(source)
            if subscription is None:
                continue
            try:
                popped = await self._popper.pop(
                    source,
                    subscription,
                    count_max=count,
                    invisible_ms=max(1, round(invisible_s * 1000)),
                    from_newest=self._consume_from is ConsumeFrom.LATEST,
                    wait_s=0,
                    timeout_s=min(self.config.leader_wait_s, give_up - loop.time()),
                )
            except DLedgerError as error:
                logger.debug("not popped source=%s error=%s", source, error)
                last = error
                continue
            answered = True
            found = [message for message in popped if self._is_wanted(message, subscription)]
            if found:
                return found, None
        return [], None if answered else last

    def _is_wanted(self, message: ReceivedMessage, subscription: Subscription) -> bool:
        """Tests the tag itself; one that only has the same hash does not come again."""
        if subscription.matches(message.tags):
            return True
        task = asyncio.get_running_loop().create_task(self._skip(message))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return False

    async def _skip(self, message: ReceivedMessage) -> None:
        try:
            await self._popper.ack(message)
        except DLedgerError as error:
            logger.debug("not skipped id=%s error=%s", message.message_id, error)

    async def _wait(self, left_s: float) -> Source | None:
        """Waits until some place has something, or the time is over; returns that place."""
        wait_s = min(left_s, self.config.poll_s)
        loop = asyncio.get_running_loop()
        for source in await self._sources():
            subscription = self._subscription(source)
            if source not in self._questions and subscription is not None:
                self._questions[source] = loop.create_task(
                    self._popper.wait(source, subscription, wait_s), name=f"wait {source}"
                )
        questions = dict(self._questions)
        if not questions:  # nothing is subscribed to
            await asyncio.sleep(wait_s)
            return None
        done, _ = await asyncio.wait(
            questions.values(), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
        )
        hint: Source | None = None
        has_failed = False
        for source, question in questions.items():
            if question not in done:
                continue
            self._questions.pop(source, None)
            if question.cancelled() or question.exception() is not None:
                has_failed = True
            elif question.result():
                hint = source
        if has_failed and hint is None:
            await asyncio.sleep(min(left_s, 0.05))  # then the next pop looks for the leader
        return hint

    async def _sources(self) -> list[Source]:
        """Returns where to ask, beginning with another place each time."""
        sources: list[Source] = []
        missing: RouteNotFoundError | None = None
        for topic in self._subscriptions:
            try:
                sources.extend(await self._places(topic))
            except RouteNotFoundError as error:
                missing = error
        if not sources and missing is not None:
            raise missing
        self._turn += 1
        at = self._turn % max(1, len(sources))
        # What failed in other consumers of the group waits in its retry topic.
        return sources[at:] + sources[:at] + await self._retry_places()

    async def _places(self, topic: str) -> list[Source]:
        route = await self._session.route(topic)
        return [
            Source(topic, name) for name in sorted({q.broker_name for q in route.subscribe_queues})
        ]

    async def _retry_places(self) -> list[Source]:
        """Returns where the retry topic is; it comes into being with the group, or never."""
        topic = self._retry.topic
        now = asyncio.get_running_loop().time()
        if self._session.routes.route(topic) is None:
            looked = self._retry_looked_s
            if looked is not None and now - looked < _RETRY_TOPIC_LOOK_S:
                return []
            self._retry_looked_s = now
        try:
            return await self._places(topic)
        except DLedgerError:
            return []

    def _subscription(self, source: Source) -> Subscription | None:
        if source.topic == self._retry.topic:
            return self._retry
        return self._subscriptions.get(source.topic)

    async def _look_for(self, subscription: Subscription) -> None:
        try:
            await self._session.route(subscription.topic)
        except DLedgerError as error:
            logger.info("no route yet topic=%s error=%s", subscription.topic, error)
        await check_subscription(self._session, self.group, subscription)

    def _data(self) -> ConsumerData:
        return ConsumerData(
            group=self.group,
            consume_type="CONSUME_POP",
            consume_from=self._consume_from.value,
            subscriptions=[wire(entry) for entry in self._subscriptions.values()],
        )

    async def _tell(self) -> None:
        if self._member is not None:
            self._member.data, self._member.topics = self._data(), list(self._subscriptions)
            await self._session.heartbeat_now()


def _check(max_messages: int, invisible_s: float, wait_s: float) -> None:
    if not 1 <= max_messages <= COUNT_MAX:
        raise InvalidParameterError(f"max_messages must lie in 1..{COUNT_MAX}")
    if not 0 < invisible_s <= INVISIBLE_MAX_S:
        raise InvalidParameterError(f"invisible_s must lie in 0..{INVISIBLE_MAX_S}, above 0")
    if not 0 <= wait_s < 1 << 31:
        raise InvalidParameterError("wait_s must not be negative")
