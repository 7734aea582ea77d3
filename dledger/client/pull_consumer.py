"""Reads queues explicitly: where from and when is the caller's business."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence
from functools import partial

from dledger.client.config import PullConsumerConfig, nameserver_addresses
from dledger.client.filters import Sql, Subscription, subscribe
from dledger.client.heartbeats import Member
from dledger.client.offsets import Offsets, epoch_ms
from dledger.client.puller import Puller
from dledger.client.retry import Step, backoff_s, judge
from dledger.client.session import ClientSession
from dledger.client.tasks import side_by_side
from dledger.clock import Clock, SystemClock
from dledger.errors import (
    ClientClosedError,
    DLedgerError,
    OffsetOutOfRangeError,
    RequestTimeoutError,
)
from dledger.lifetime import AsyncLifetime
from dledger.message import ReceivedMessage, validate_group
from dledger.model import ConsumeFrom, MessageQueue, PullStatus
from dledger.remoting.bodies import ConsumerData, SubscriptionData


class AsyncPullConsumer(AsyncLifetime):
    """Reads any queue from any offset, and keeps positions and committed offsets per queue.

    Nothing is shared out: two pull consumers of a group may read the same queue. Do not use a
    group that push consumers use at the same time; they would reckon with this member.

    Concurrency:
        Methods belong to the loop that `start` ran on. One pull per queue at a time.
    """

    def __init__(
        self,
        group: str,
        *,
        nameserver: str | Sequence[str] | None = None,
        consume_from: ConsumeFrom = ConsumeFrom.EARLIEST,
        consume_timestamp_ms: int = 0,
        config: PullConsumerConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing.

        Args:
            group: Consumer group whose committed offsets are used.
            nameserver: As for `AsyncProducer`.
            consume_from: Position in a queue of which the group never committed an offset.
            consume_timestamp_ms: For `ConsumeFrom.TIMESTAMP`, in ms since the epoch.
            config: Limits.
            clock: For tests.

        Raises:
            ConfigError, InvalidParameterError: An argument is wrong.
        """
        validate_group(group)
        self.group = group
        self.config = config or PullConsumerConfig()
        self._clock = clock or SystemClock()
        self._session = ClientSession(
            self.config.session, nameserver_addresses(nameserver), self._clock
        )
        self._consume_from = consume_from
        self._consume_timestamp_ms = consume_timestamp_ms
        self._puller = Puller(self._session, group)
        self._offsets = Offsets(self._session)
        self._positions: dict[MessageQueue, int] = {}
        self._committed: dict[MessageQueue, int] = {}  # by us, the last time
        self._subscriptions: dict[tuple[str, str | Sql], Subscription] = {}
        self._member: Member | None = None
        self._commit_lock = asyncio.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<AsyncPullConsumer {self.group} positions={len(self._positions)}>"

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Makes the consumer ready. Needs no broker to be up yet."""
        if self._closed:
            raise ClientClosedError("a closed consumer cannot be started again; make a new one")
        await self._session.start()

    async def close(self) -> None:
        """Disconnects. Commits nothing: call `commit` first. A second call does nothing."""
        self._closed = True
        await self._session.close()

    # --- queues and offsets -------------------------------------------------------------------

    async def queues(self, topic: str) -> list[MessageQueue]:
        """Returns the topic's readable queues, sorted.

        Raises:
            RouteNotFoundError: (definite) No nameserver knows the topic.
        """
        return list((await self._session.route(topic)).subscribe_queues)

    async def offset_min(self, queue: MessageQueue) -> int:
        """Returns the offset of the oldest message held. Raises as `Offsets`."""
        return await self._offsets.minimum(queue)

    async def offset_max(self, queue: MessageQueue) -> int:
        """Returns the offset of the next message to come. Raises as `Offsets`."""
        return await self._offsets.maximum(queue)

    async def offset_at(self, queue: MessageQueue, timestamp_ms: int) -> int:
        """Returns the offset of the first message stored at or after a time."""
        return await self._offsets.at_time(queue, timestamp_ms)

    def seek(self, queue: MessageQueue, offset: int) -> None:
        """Sets where the next pull of a queue begins. Checked by the broker, at the pull."""
        self._positions[queue] = offset

    async def seek_to_time(self, queue: MessageQueue, time: int | datetime.datetime) -> int:
        """Has the next pull of a queue begin with the first message stored at or after a time.

        Args:
            queue: The queue.
            time: Milliseconds since the epoch, or a datetime with a zone. A time later than the
                newest message means the end of the queue.

        Returns:
            The offset found, which is also the new position.

        Raises:
            InvalidParameterError: (definite) A datetime without a zone.
            Otherwise as `Offsets`; then the position is unchanged.
        """
        offset = await self._offsets.at_time(queue, epoch_ms(time))
        self.seek(queue, offset)
        return offset

    async def seek_to_begin(self, queue: MessageQueue) -> int:
        """Has the next pull begin with the oldest message held; returns its offset."""
        offset = await self._offsets.minimum(queue)
        self.seek(queue, offset)
        return offset

    async def seek_to_end(self, queue: MessageQueue) -> int:
        """Has the next pull begin with the next message to come; returns its offset."""
        offset = await self._offsets.maximum(queue)
        self.seek(queue, offset)
        return offset

    async def position(self, queue: MessageQueue) -> int:
        """Returns where the next pull of a queue begins.

        At first that is the committed offset, or what `consume_from` says.
        """
        position = self._positions.get(queue)
        if position is None:
            position = await self._offsets.committed(self.group, queue)
            if position is None:
                position = await self._offsets.first(
                    queue, self._consume_from, self._consume_timestamp_ms
                )
            position = self._positions.setdefault(queue, position)
        return position

    async def committed(self, queue: MessageQueue) -> int | None:
        """Returns the group's committed offset of a queue; `None` if there is none."""
        return await self._offsets.committed(self.group, queue)

    async def commit(
        self, queue: MessageQueue | None = None, offset: int | None = None
    ) -> dict[MessageQueue, int]:
        """Commits positions: all messages pulled so far count as processed.

        Args:
            queue: Only this queue; by default all that were pulled from or sought in.
            offset: Another value than the position; only together with `queue`.

        Returns:
            What was committed.

        Raises:
            BrokerResponseError, ConnectFailedError, ConnectionLostError, RequestTimeoutError:
                Not, or not certainly, committed; trying again is harmless.

        Durability:
            On return the offsets are committed by a majority.
        """
        async with self._commit_lock:
            if queue is None:
                due = dict(self._positions)
            else:
                due = {queue: await self.position(queue) if offset is None else offset}
            for name in dict.fromkeys(entry.topic for entry in due):
                await self._join(name)
            if queue is None:
                # What has not moved since would cost as much as what has.
                moved = [item for item in due.items() if self._committed.get(item[0]) != item[1]]
            else:
                moved = list(due.items())
            await self._commit_together(moved)
            return due

    async def _commit_together(self, offsets: list[tuple[MessageQueue, int]]) -> None:
        """Commits offsets side by side: brokers gather them into one entry of their log."""
        for queue, _ in offsets:
            self._committed.pop(queue, None)  # after an error it may be either
        results = await side_by_side(
            [partial(self._offsets.commit, self.group, queue, value) for queue, value in offsets]
        )
        for (queue, value), result in zip(offsets, results, strict=True):
            if result is None:
                self._committed[queue] = value
        for result in results:
            if result is not None:
                raise result

    # --- reading ------------------------------------------------------------------------------

    async def pull(
        self,
        queue: MessageQueue,
        *,
        count_max: int | None = None,
        timeout_s: float | None = None,
        expression: str | Sql = "*",
    ) -> list[ReceivedMessage]:
        """Returns the next messages of a queue and moves its position behind them.

        Args:
            queue: The queue to read.
            count_max: At most so many; by default `pull_count_max`.
            timeout_s: How long to wait if there is none; 0 does not wait.
            expression: Tags wanted: `*`, or some joined by `||`; or a condition, see `Sql`.

        Returns:
            Messages in queue order; none if the time is over.

        Raises:
            OffsetOutOfRangeError: (definite) The position lies outside the queue; the error
                carries the bounds. `seek` and go on.
            BrokerResponseError: The broker refused.
            ConnectFailedError, ConnectionLostError, RequestTimeoutError: No replica answered in
                time.
        """
        config = self.config
        loop = asyncio.get_running_loop()
        limit = config.pull_timeout_s if timeout_s is None else timeout_s
        deadline = loop.time() + limit
        # Even a pull that shall not wait gets the time that asking takes.
        give_up = loop.time() + max(limit, config.session.operation_timeout_s)
        subscription = await self._subscription(queue.topic, expression)
        failures = 0
        while True:
            position = await self.position(queue)
            try:
                result = await self._puller.pull(
                    queue,
                    position,
                    subscription,
                    count_max=config.pull_count_max if count_max is None else count_max,
                    bytes_max=config.pull_bytes_max,
                    suspend_s=max(0.0, deadline - loop.time()),
                )
            except DLedgerError as error:
                failures += 1
                retry = judge(error).step in (Step.FIND_LEADER, Step.WAIT)
                if not retry or loop.time() >= give_up:
                    raise
                await asyncio.sleep(backoff_s(failures, 0.02, 0.5))
                continue
            if result.status is PullStatus.OFFSET_ILLEGAL:
                raise OffsetOutOfRangeError(position, result.offset_min, result.offset_max)
            if result.status is PullStatus.NO_NEW_MESSAGE and result.offset_max < position:
                # A replica that is behind, such as one that rebuilds its state: no answer at all.
                # Beyond the end of the queue the leader would have said so.
                failures += 1
                if loop.time() >= give_up:
                    raise RequestTimeoutError(f"no replica asked holds {queue} up to {position}")
                await asyncio.sleep(backoff_s(failures, 0.02, 0.5))
                continue
            self._positions[queue] = max(position, result.next_offset)
            if result.messages:
                return result.messages
            if result.status is PullStatus.NO_NEW_MESSAGE and loop.time() >= deadline:
                return []
            if result.next_offset <= position and result.status is not PullStatus.NO_NEW_MESSAGE:
                await asyncio.sleep(0.02)  # told to ask again at once, to no avail
                if loop.time() >= deadline:
                    return []

    # --- inside -------------------------------------------------------------------------------

    async def _subscription(self, topic: str, expression: str | Sql) -> Subscription:
        known = self._subscriptions.get((topic, expression))
        if known is None:
            known = subscribe(topic, expression, self._clock.wall_ms())
            await self._session.route(topic)
            self._subscriptions[topic, expression] = known
            await self._join(topic)
        return known

    async def _join(self, topic: str) -> None:
        """Tells brokers of the group, which makes them create it: commits need it to exist."""
        member = self._member
        if member is not None and topic in member.topics:
            return
        topics = [topic] if member is None else [*member.topics, topic]
        await self._session.route(topic)
        data = ConsumerData(
            group=self.group,
            consume_type="CONSUME_ACTIVELY",
            consume_from=self._consume_from.value,
            subscriptions=[
                SubscriptionData(topic=name, version=self._clock.wall_ms()) for name in topics
            ],
        )
        if member is None:
            self._member = self._session.join(data, topics, lambda: None)
        else:
            member.data, member.topics = data, topics
        await self._session.heartbeat_now()
