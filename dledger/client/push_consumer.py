"""Delivers the messages of a consumer group to an asyncio program.

Two forms: `async for message in consumer`, where a message counts as processed when the next one is
asked for; and `await consumer.run(handler)`, where it does when the handler returns. Either way
processing comes before committing, so each message is delivered at least once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType

from dledger.client.config import PushConsumerConfig, nameserver_addresses
from dledger.client.filters import Sql, subscribe
from dledger.client.group_reader import Delivery, GroupReader
from dledger.client.session import ClientSession
from dledger.clock import Clock, SystemClock
from dledger.errors import ClientClosedError, ConfigError
from dledger.lifetime import AsyncLifetime
from dledger.message import ReceivedMessage, validate_group
from dledger.model import ConsumeFrom, MessageModel, MessageQueue

AsyncHandler = Callable[[ReceivedMessage], Awaitable[object]]


class AsyncPushConsumer(AsyncLifetime):
    """A member of a consumer group; its share of the queues follows who else is there.

    Use as `async with AsyncPushConsumer(...) as consumer`, or call `start` and `close`.

    Delivery guarantees: every message at least once, in the order of its queue except for those
    that come again after a failure; with `ordered` those too. After a fail-over of brokers nothing
    is skipped, and nothing that was committed comes again.

    Concurrency:
        Methods belong to the loop that `start` ran on.
    """

    def __init__(
        self,
        group: str,
        *,
        subscriptions: Mapping[str, str | Sql],
        nameserver: str | Sequence[str] | None = None,
        consume_from: ConsumeFrom = ConsumeFrom.LATEST,
        message_model: MessageModel = MessageModel.CLUSTERING,
        ordered: bool = False,
        config: PushConsumerConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing.

        Args:
            group: Consumer group; its members share the messages, and its offsets are kept.
            subscriptions: Topic to tag expression: `*`, or tags joined by `||`; or to a condition
                on properties, `Sql("a > 5")`. The same for all members of the group.
            nameserver: `host:port`, several joined by `;`, or a sequence; by default the variable
                `DLEDGER_NAMESERVER`.
            consume_from: Where the group begins in a queue of which it never committed an offset.
            message_model: `BROADCASTING`: every member gets every message, and each keeps its own
                offsets in a local file.
            ordered: Keep the order of every queue: one message of it in hand at a time, also across
                members; a message that fails holds up those behind it. The same for all members.
            config: Intervals and limits.
            clock: For tests.

        Raises:
            ConfigError, InvalidParameterError: An argument is wrong.
        """
        validate_group(group)
        if ordered and message_model is MessageModel.BROADCASTING:
            raise ConfigError("ordered", True, "is for groups that share queues, not broadcasting")
        if not subscriptions:
            raise ConfigError("subscriptions", dict(subscriptions), "must name at least one topic")
        self.group = group
        self.config = config or PushConsumerConfig()
        clock = clock or SystemClock()
        self._session = ClientSession(self.config.session, nameserver_addresses(nameserver), clock)
        version = clock.wall_ms()
        self._reader = GroupReader(
            self._session,
            group,
            {
                topic: subscribe(topic, expression, version)
                for topic, expression in subscriptions.items()
            },
            consume_from,
            self.config,
            message_model,
            ordered=ordered,
        )
        self._handed: dict[Delivery, None] = {}  # by iteration, not yet followed by another
        self._running = 0
        self._handlers_idle = asyncio.Event()
        self._handlers_idle.set()
        self._started = False
        self._closed = False
        self.handlers_outside = 0  # that a synchronous front has in its own threads

    def __repr__(self) -> str:
        return f"<AsyncPushConsumer {self.group} {self._reader!r}>"

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Joins the group and begins to read. Needs no broker to be up yet.

        Raises:
            BrokerResponseError: A broker refuses a condition in SQL. The consumer is closed then.
            ConfigError: The file for the offsets of a broadcasting consumer cannot be used. As
                before.
        """
        if self._closed:
            raise ClientClosedError("a closed consumer cannot be started again; make a new one")
        if not self._started:
            self._started = True
            await self._session.start()
            try:
                await self._reader.start()
            except BaseException:
                self._closed = True
                self._reader.stop()
                await self._session.close()
                raise

    def stop(self) -> None:
        """Ends iteration and `run` after the message in hand; `close` is still to be called."""
        self._reader.stop()

    async def close(self) -> None:
        """Leaves the group: stops delivery, waits for handlers, commits what is finished.

        Handlers get `drain_timeout_s`; what they have not finished then comes again, to another
        member or later. A message in the hands of an iteration counts as unfinished. A second
        call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        if not self._started:
            return
        self._reader.stop()
        try:
            async with asyncio.timeout(self.config.drain_timeout_s):
                await self._handlers_idle.wait()
        except TimeoutError:
            pass
        is_idle = not self._running and not self.handlers_outside
        await self._reader.close(is_idle=is_idle)
        await self._session.close()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes; without an exception, the message iterated last counts as processed."""
        if kind is None:
            self._finish_handed()
        await super().__aexit__(kind, error, trace)

    # --- delivery -----------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[ReceivedMessage]:
        """Iterates until `stop` or `close`; see `messages`."""
        return self.messages()

    def messages(self, *, idle_timeout_s: float | None = None) -> AsyncIterator[ReceivedMessage]:
        """Iterates over messages as they come.

        A message counts as processed when the next one is asked for, when `commit` is called, or
        when the `async with` block ends without an exception. After an exception in the loop's
        body it does not, and comes again.

        Args:
            idle_timeout_s: End when no message came for so long; by default only `stop` ends it.

        Raises:
            ClientClosedError: Not started.
        """
        self._check_started()
        return _Messages(self, idle_timeout_s)

    async def poll(self, timeout_s: float) -> ReceivedMessage | None:
        """Returns the next message or, after the timeout, `None`; see `messages`."""
        self._check_started()
        self._finish_handed()
        return await self._next(timeout_s)

    async def run(self, handler: AsyncHandler, *, concurrency: int = 1) -> None:
        """Hands every message to `handler` until `stop` or `close`.

        A message is processed when the handler returns. If it raises, or has called `nack`, the
        message goes back to the broker and comes again later; others go on meanwhile.

        Args:
            handler: Awaited with each message.
            concurrency: Calls at a time; with more than one, the order of a queue is kept only if
                the consumer is `ordered`.

        Concurrency: cancelling it leaves the messages in hand unfinished.
        """
        self._check_started()
        if concurrency < 1:
            raise ConfigError("concurrency", concurrency, "must be at least 1")
        async with asyncio.TaskGroup() as group:
            for number in range(concurrency):
                group.create_task(self._work(handler), name=f"handler {self.group} {number}")

    async def commit(self) -> None:
        """Commits what is processed, the message in the hands of an iteration included.

        Raises:
            DLedgerError: Some queue's offset could not be committed; it is tried again with the
                next commit.

        Durability:
            On return the offsets are committed by a majority.
        """
        self._check_started()
        self._finish_handed()
        await self._reader.commit()

    # --- looking ------------------------------------------------------------------------------

    @property
    def assignment(self) -> list[MessageQueue]:
        """The queues this member holds now, sorted."""
        return self._reader.assignment

    async def wait_assigned(self, timeout_s: float = 10.0) -> bool:
        """Waits until queues were shared out for the first time; `False` after the timeout."""
        self._check_started()
        return await self._reader.wait_assigned(timeout_s)

    # --- inside -------------------------------------------------------------------------------

    @property
    def reader(self) -> GroupReader:
        """The part below delivery, for the synchronous front."""
        return self._reader

    def _check_started(self) -> None:
        if not self._started or self._closed:
            raise ClientClosedError("the consumer is closed or was not started")

    async def _next(self, timeout_s: float | None) -> ReceivedMessage | None:
        delivery = await self._reader.take(timeout_s)
        if delivery is None:
            return None
        self._handed[delivery] = None
        return delivery.message

    def _finish_handed(self) -> None:
        for delivery in self._handed:
            self._reader.finish(delivery)
        self._handed.clear()

    async def _work(self, handler: AsyncHandler) -> None:
        while True:
            delivery = await self._reader.take()
            if delivery is None:
                return
            self._running += 1
            self._handlers_idle.clear()
            try:
                await handler(delivery.message)
            except Exception as error:
                self._reader.fail(delivery, error)
            else:
                self._reader.finish(delivery)
            finally:
                self._running -= 1
                if not self._running:
                    self._handlers_idle.set()


class _Messages:
    """One iteration. Asking for the next message finishes the one before."""

    def __init__(self, consumer: AsyncPushConsumer, idle_timeout_s: float | None) -> None:
        self._consumer = consumer
        self._idle_timeout_s = idle_timeout_s
        self._current: Delivery | None = None

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> ReceivedMessage:
        consumer = self._consumer
        if self._current is not None:
            if self._current in consumer._handed:
                del consumer._handed[self._current]
                consumer._reader.finish(self._current)
            self._current = None
        delivery = await consumer._reader.take(self._idle_timeout_s)
        if delivery is None:
            raise StopAsyncIteration
        self._current = delivery
        consumer._handed[delivery] = None
        return delivery.message
