"""Synchronous fronts: each owns one background loop and passes calls on to the async client there.

They decide nothing themselves. All methods may be called from any thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType

from dledger.client.background import SyncFront
from dledger.client.config import (
    ProducerConfig,
    PullConsumerConfig,
    PushConsumerConfig,
)
from dledger.client.encoding import delayed
from dledger.client.filters import Sql
from dledger.client.group_reader import Delivery
from dledger.client.producer import AsyncProducer
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.client.results import ProducerStatistics, SendResult
from dledger.client.topics import Target
from dledger.errors import ClientClosedError, ConfigError
from dledger.message import Message, ReceivedMessage
from dledger.model import ConsumeFrom, MessageModel, MessageQueue

Handler = Callable[[ReceivedMessage], object]


class Producer(SyncFront[AsyncProducer]):
    """Sends messages from a program without an event loop.

    Use as `with Producer("group") as producer`, or call `start` and `close`. Several threads may
    share one: their messages are batched together.
    """

    def __init__(
        self,
        group: str = "DEFAULT_PRODUCER",
        *,
        nameserver: str | Sequence[str] | None = None,
        config: ProducerConfig | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing. See `AsyncProducer`."""
        super().__init__(
            f"producer {group}", AsyncProducer(group, nameserver=nameserver, config=config)
        )
        self._room = threading.BoundedSemaphore(self._inner.config.in_flight_max)

    def send(
        self,
        message: Message,
        *,
        queue: Target = None,
        shard_key: str | None = None,
        delay: float | datetime.timedelta | None = None,
        deliver_at: float | datetime.datetime | None = None,
    ) -> SendResult:
        """Sends one message and returns when it is committed. See `AsyncProducer.send`."""
        return self.submit(
            message, queue=queue, shard_key=shard_key, delay=delay, deliver_at=deliver_at
        ).result()

    def submit(
        self,
        message: Message,
        *,
        queue: Target = None,
        shard_key: str | None = None,
        delay: float | datetime.timedelta | None = None,
        deliver_at: float | datetime.datetime | None = None,
    ) -> concurrent.futures.Future[SendResult]:
        """Sends one message and returns at once; its result comes in the future.

        Blocks while `in_flight_max` messages are under way. Messages of one thread for one queue
        are stored in the order of the calls. Errors as `AsyncProducer.send`, through the future.

        Raises:
            ClientClosedError: (definite) Closed or not started.
            InvalidParameterError, MessageRejectedError: (definite) The delay makes no sense.
        """
        future: concurrent.futures.Future[SendResult] = concurrent.futures.Future()
        message = delayed(message, delay, deliver_at)
        future.set_running_or_notify_cancel()  # it cannot be called back, so not cancelled either
        self._room.acquire()
        try:
            self._loop.call_soon(self._send, future, message, queue, shard_key)
        except BaseException:
            self._room.release()
            raise
        return future

    def send_batch(
        self,
        messages: Sequence[Message],
        *,
        queue: Target = None,
        shard_key: str | None = None,
    ) -> list[SendResult]:
        """Sends messages that are stored next to each other. See `AsyncProducer.send_batch`."""
        return self._loop.run(self._inner.send_batch(messages, queue=queue, shard_key=shard_key))

    def send_oneway(
        self,
        message: Message,
        *,
        queue: Target = None,
        shard_key: str | None = None,
        delay: float | datetime.timedelta | None = None,
        deliver_at: float | datetime.datetime | None = None,
    ) -> None:
        """Sends one message and does not ask what became of it."""
        message = delayed(message, delay, deliver_at)
        self._loop.run(self._inner.send_oneway(message, queue=queue, shard_key=shard_key))

    def request(self, message: Message, *, timeout_s: float = 3.0) -> ReceivedMessage:
        """Sends a message and waits for the answer of a consumer. See `AsyncProducer.request`."""
        return self._loop.run(self._inner.request(message, timeout_s=timeout_s))

    def reply(
        self, request: ReceivedMessage, body: bytes, *, properties: dict[str, str] | None = None
    ) -> None:
        """Answers a request. See `AsyncProducer.reply`."""
        self._loop.run(self._inner.reply(request, body, properties=properties))

    def recall(self, handle: str) -> None:
        """Takes a delayed message back before its time. See `AsyncProducer.recall`."""
        self._loop.run(self._inner.recall(handle))

    def wait_idle(self) -> None:
        """Waits until every message sent so far has its result."""
        self._loop.run(self._inner.wait_idle())

    def queues(self, topic: str) -> list[MessageQueue]:
        """Returns the topic's writable queues. See `AsyncProducer.queues`."""
        return self._loop.run(self._inner.queues(topic))

    def statistics(self) -> ProducerStatistics:
        """Returns counters and the present load."""
        return self._inner.statistics()

    def _send(
        self,
        future: concurrent.futures.Future[SendResult],
        message: Message,
        queue: Target,
        shard_key: str | None,
    ) -> None:
        try:
            inner = self._inner.send(message, queue=queue, shard_key=shard_key)
        except Exception as error:  # a wrong type, say; the caller is in another thread
            self._room.release()
            future.set_exception(error)
            return

        def settle(done: asyncio.Future[SendResult]) -> None:
            self._room.release()
            if done.cancelled():
                future.set_exception(ClientClosedError("the producer was closed"))
            elif (error := done.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(done.result())

        inner.add_done_callback(settle)


class PushConsumer(SyncFront[AsyncPushConsumer]):
    """Delivers a consumer group's messages to a program without an event loop.

    Three forms: `for message in consumer`, `consumer.run(handler)`, `consumer.poll(timeout_s)`.
    Guarantees and arguments as `AsyncPushConsumer`. Several threads may iterate at the same time;
    each message goes to one of them.
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
    ) -> None:
        """Checks the arguments; connects to nothing. See `AsyncPushConsumer`."""
        super().__init__(
            f"consumer {group}",
            AsyncPushConsumer(
                group,
                subscriptions=subscriptions,
                nameserver=nameserver,
                consume_from=consume_from,
                message_model=message_model,
                ordered=ordered,
                config=config,
            ),
        )
        self._reader = self._inner.reader
        self._handed: dict[int, Delivery] = {}  # thread -> message in hand
        self._workers_lock = threading.Lock()
        self._workers_idle = threading.Condition(self._workers_lock)
        self._working = 0

    def stop(self) -> None:
        """Ends iteration and `run` after the message in hand. Any thread, or a handler."""
        self._reader.request_stop()
        if self._loop.is_running:
            self._loop.call_soon(self._inner.stop)

    def close(self) -> None:
        """Leaves the group: stops delivery, waits for handlers, commits what is processed.

        A message in the hands of an iteration counts as unfinished. Twice does nothing.
        """
        if not self._loop.is_running:
            return
        self.stop()
        with self._workers_idle:
            self._workers_idle.wait_for(
                lambda: self._working == 0, self._inner.config.drain_timeout_s
            )
        self._inner.handlers_outside = self._working
        self._loop.run(self._inner.close())
        self._loop.stop()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes; without an exception, this thread's last message counts as processed."""
        if kind is None:
            self._finish_handed()
        self.close()

    def __iter__(self) -> Iterator[ReceivedMessage]:
        """Iterates until `stop` or `close`; see `messages`."""
        return self.messages()

    def messages(self, *, idle_timeout_s: float | None = None) -> Iterator[ReceivedMessage]:
        """Iterates over messages as they come; see `AsyncPushConsumer.messages`.

        Raises:
            ClientClosedError: Not started.
        """
        self._check_started()
        return _Messages(self, idle_timeout_s)

    def poll(self, timeout_s: float) -> ReceivedMessage | None:
        """Returns the next message or, after the timeout, `None`.

        The message that this thread got before counts as processed.
        """
        self._check_started()
        self._finish_handed()
        return self._hand_next(timeout_s)

    def run(self, handler: Handler, *, threads: int = 1) -> None:
        """Hands every message to `handler` until `stop` or `close`; blocks meanwhile.

        A message is processed when the handler returns. If it raises, or has called `nack`, the
        message goes back to the broker and comes again later; others go on meanwhile.

        Args:
            handler: Called with each message, in the calling thread if `threads` is 1.
            threads: Calls at a time; with more than one, the order of a queue is kept only if the
                consumer is `ordered`.
        """
        self._check_started()
        if threads < 1:
            raise ConfigError("threads", threads, "must be at least 1")
        workers = [
            threading.Thread(
                target=self._work, args=(handler,), name=f"handler {self._inner.group} {number}"
            )
            for number in range(1, threads)
        ]
        for worker in workers:
            worker.start()
        try:
            self._work(handler)
        except BaseException:
            self.stop()
            raise
        finally:
            for worker in workers:
                worker.join()

    def commit(self) -> None:
        """Commits what is processed, the message in this thread's hands included."""
        self._check_started()
        self._finish_handed()
        self._loop.run(self._inner.commit())

    @property
    def assignment(self) -> list[MessageQueue]:
        """The queues this member holds now, sorted."""
        return self._inner.assignment

    def wait_assigned(self, timeout_s: float = 10.0) -> bool:
        """Waits until queues were shared out for the first time; `False` after the timeout."""
        return self._loop.run(self._inner.wait_assigned(timeout_s))

    # --- inside -------------------------------------------------------------------------------

    def _check_started(self) -> None:
        if not self._loop.is_running:
            raise ClientClosedError("the consumer is closed or was not started")

    def _take(self, timeout_s: float | None) -> Delivery | None:
        # Only an empty line costs a trip to the loop's thread.
        delivery = self._reader.take_nowait()
        if delivery is None and self._loop.is_running and not self._reader.is_stopping:
            delivery = self._loop.run(self._reader.take(timeout_s))
        return delivery

    def _hand_next(self, timeout_s: float | None) -> ReceivedMessage | None:
        delivery = self._take(timeout_s)
        if delivery is None:
            return None
        self._handed[threading.get_ident()] = delivery
        return delivery.message

    def _finish_handed(self) -> None:
        delivery = self._handed.pop(threading.get_ident(), None)
        if delivery is not None:
            self._reader.finish(delivery)

    def _work(self, handler: Handler) -> None:
        while True:
            delivery = self._take(None)
            if delivery is None:
                return
            with self._workers_lock:
                self._working += 1
            try:
                handler(delivery.message)
            except Exception as error:
                self._loop.call_soon(self._reader.fail, delivery, error)
            else:
                self._reader.finish(delivery)
            finally:
                with self._workers_idle:
                    self._working -= 1
                    self._workers_idle.notify_all()


class _Messages:
    """One iteration in one thread. Asking for the next message finishes the one before."""

    def __init__(self, consumer: PushConsumer, idle_timeout_s: float | None) -> None:
        self._consumer = consumer
        self._idle_timeout_s = idle_timeout_s

    def __iter__(self) -> _Messages:
        return self

    def __next__(self) -> ReceivedMessage:
        self._consumer._finish_handed()
        message = self._consumer._hand_next(self._idle_timeout_s)
        if message is None:
            raise StopIteration
        return message


class PullConsumer(SyncFront[AsyncPullConsumer]):
    """Reads queues explicitly from a program without an event loop. See `AsyncPullConsumer`."""

    def __init__(
        self,
        group: str,
        *,
        nameserver: str | Sequence[str] | None = None,
        consume_from: ConsumeFrom = ConsumeFrom.EARLIEST,
        consume_timestamp_ms: int = 0,
        config: PullConsumerConfig | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing."""
        super().__init__(
            f"consumer {group}",
            AsyncPullConsumer(
                group,
                nameserver=nameserver,
                consume_from=consume_from,
                consume_timestamp_ms=consume_timestamp_ms,
                config=config,
            ),
        )

    def queues(self, topic: str) -> list[MessageQueue]:
        """Returns the topic's readable queues, sorted."""
        return self._loop.run(self._inner.queues(topic))

    def offset_min(self, queue: MessageQueue) -> int:
        """Returns the offset of the oldest message held."""
        return self._loop.run(self._inner.offset_min(queue))

    def offset_max(self, queue: MessageQueue) -> int:
        """Returns the offset of the next message to come."""
        return self._loop.run(self._inner.offset_max(queue))

    def offset_at(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """Returns the offset of the first message stored at or after a time."""
        return self._loop.run(self._inner.offset_at(queue, timestamp_ms))

    def seek(self, queue: MessageQueue, offset: int) -> None:
        """Sets where the next pull of a queue begins."""
        self._inner.seek(queue, offset)

    def seek_to_time(self, queue: MessageQueue, time: int | datetime.datetime) -> int:
        """Has the next pull begin at a time. See `AsyncPullConsumer.seek_to_time`."""
        return self._loop.run(self._inner.seek_to_time(queue, time))

    def seek_to_begin(self, queue: MessageQueue) -> int:
        """Has the next pull begin with the oldest message held; returns its offset."""
        return self._loop.run(self._inner.seek_to_begin(queue))

    def seek_to_end(self, queue: MessageQueue) -> int:
        """Has the next pull begin with the next message to come; returns its offset."""
        return self._loop.run(self._inner.seek_to_end(queue))

    def position(self, queue: MessageQueue) -> int:
        """Returns where the next pull of a queue begins."""
        return self._loop.run(self._inner.position(queue))

    def committed(self, queue: MessageQueue) -> int | None:
        """Returns the group's committed offset of a queue; `None` if there is none."""
        return self._loop.run(self._inner.committed(queue))

    def commit(
        self, queue: MessageQueue | None = None, offset: int | None = None
    ) -> dict[MessageQueue, int]:
        """Commits positions. See `AsyncPullConsumer.commit`."""
        return self._loop.run(self._inner.commit(queue, offset))

    def pull(
        self,
        queue: MessageQueue,
        *,
        count_max: int | None = None,
        timeout_s: float | None = None,
        expression: str | Sql = "*",
    ) -> list[ReceivedMessage]:
        """Returns the next messages of a queue. See `AsyncPullConsumer.pull`."""
        return self._loop.run(
            self._inner.pull(queue, count_max=count_max, timeout_s=timeout_s, expression=expression)
        )
