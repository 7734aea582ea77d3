"""The queues that one member of a group holds: taken over, read, committed, given up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from dledger.client.config import PushConsumerConfig
from dledger.client.filters import Subscription
from dledger.client.offsets import Offsets
from dledger.client.ordering import OrderedLine, QueueLocks
from dledger.client.process_queue import ProcessQueue
from dledger.client.puller import Puller
from dledger.client.retry import backoff_s
from dledger.client.session import ClientSession
from dledger.client.tasks import log_failure, side_by_side
from dledger.errors import DLedgerError
from dledger.message import Property, ReceivedMessage
from dledger.model import ConsumeFrom, MessageQueue, PullStatus

logger = logging.getLogger(__name__)

_FLOW_PAUSE_S = 0.02
_PULL_FAILURE_MIN_S = 0.05
_PULL_FAILURE_MAX_S = 3.0
_CLOSE_COMMIT_S = 5.0
_HAND_PAUSE_S = 0.01


class Delivery(Protocol):
    """What is done with the messages that are read."""

    @property
    def is_stopping(self) -> bool:
        """Whether no more messages are handed out."""

    def offer(self, window: ProcessQueue, messages: list[ReceivedMessage]) -> None:
        """Takes what was read, in order."""

    def apply_finished(self) -> None:
        """Tells the windows what is finished."""


class HeldQueues:
    """Reads the queues a member holds into their windows. One loop."""

    def __init__(
        self,
        session: ClientSession,
        group: str,
        subscriptions: Mapping[str, Subscription],
        consume_from: ConsumeFrom,
        config: PushConsumerConfig,
        delivery: Delivery,
        *,
        retry_topic: str,
        locks: QueueLocks | None,
        line: OrderedLine[Any] | None,
        changed: Callable[[], None],
    ) -> None:
        """Holds nothing yet.

        Args:
            session: Speaks with the brokers.
            group: The consumer group.
            subscriptions: By topic.
            consume_from: Where to begin in a queue without a committed offset.
            config: Intervals and limits.
            delivery: Gets what is read.
            retry_topic: The group's; empty if it reads none.
            locks: If ordered: without its lock a queue is neither read nor committed.
            line: If ordered: what is in hand of each queue.
            changed: Called when a queue was lost that should be taken anew.
        """
        self._session = session
        self._group = group
        self._subscriptions = subscriptions
        self._consume_from = consume_from
        self._config = config
        self._delivery = delivery
        self._retry_topic = retry_topic
        self._locks = locks
        self._line = line
        self._changed = changed
        self._puller = Puller(session, group)
        self._readers: dict[MessageQueue, asyncio.Task[None]] = {}
        self._commit_lock = asyncio.Lock()
        self.windows: dict[MessageQueue, ProcessQueue] = {}
        self.offsets = Offsets(session)

    async def stop_reading(self) -> None:
        """Ends the readers; the windows stay."""
        tasks = list(self._readers.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self, *, is_idle: bool) -> None:
        """Commits what is finished and lets go of everything. Nothing is read any more.

        Args:
            is_idle: No handler runs any more: locks on queues with a message in hand can be given
                back too.
        """
        try:
            await self.commit(timeout_s=_CLOSE_COMMIT_S)
        except DLedgerError as error:
            logger.warning("last commit failed group=%s error=%s", self._group, error)
        for window in self.windows.values():
            window.dropped = True
        await self._unlock(self.windows, in_hand_too=is_idle)
        self.offsets.close()

    async def commit(self, *, timeout_s: float | None = None) -> None:
        """Commits what is finished in all queues held; errors as `GroupReader.commit`."""
        await self._commit(list(self.windows.values()), timeout_s)

    async def commit_forever(self) -> None:
        """Commits at its interval until cancelled."""
        while True:
            await asyncio.sleep(self._config.commit_interval_s)
            try:
                await self.commit()
            except DLedgerError as error:
                logger.warning("commit failed group=%s error=%s", self._group, error)

    async def _commit(self, windows: list[ProcessQueue], timeout_s: float | None = None) -> None:
        # One at a time: an older value must never follow a newer one.
        async with self._commit_lock:
            self._delivery.apply_finished()
            due = [
                (window, window.commit_offset)
                for window in windows
                if window.commit_offset != window.committed_offset
                # Without its lock, another member may have come further already.
                and (self._locks is None or self._locks.is_held(window.queue))
            ]
            results = await asyncio.gather(
                *(
                    self.offsets.commit(self._group, window.queue, offset, timeout_s=timeout_s)
                    for window, offset in due
                ),
                return_exceptions=True,
            )
            failure: BaseException | None = None
            for (window, offset), result in zip(due, results, strict=True):
                if isinstance(result, BaseException):
                    failure = result
                else:
                    window.committed_offset = offset
            await self.offsets.flush()
            if failure is not None:
                raise failure

    async def lockable(self, queues: list[MessageQueue]) -> list[MessageQueue]:
        """Returns those of some queues that may be read: all, or if ordered the locked ones."""
        if self._locks is None or self._line is None:
            return queues
        # What is in hand from an earlier time with a queue must be finished first.
        line = self._line
        free = [queue for queue in queues if not line.is_in_hand(queue)]
        granted = await self._locks.lock(free) if free else set()
        return [queue for queue in free if queue in granted]

    async def give_up(self, queues: list[MessageQueue]) -> None:
        """Stops reading some queues and commits what is finished in them."""
        windows: list[ProcessQueue] = []
        tasks: list[asyncio.Task[None]] = []
        self._delivery.apply_finished()
        for queue in queues:
            window = self.windows.pop(queue)
            window.dropped = True
            windows.append(window)
            task = self._readers.pop(queue, None)
            if task is not None:
                task.cancel()
                tasks.append(task)
        if not windows:
            return
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._wait_hands(windows)
        try:
            found = await side_by_side(
                [partial(self.offsets.committed, self._group, window.queue) for window in windows]
            )
            for window, known in zip(windows, found, strict=True):
                if isinstance(known, DLedgerError):
                    raise known
                # The new owner may be reading already; do not set back what it committed.
                if known is not None and known >= window.commit_offset:
                    window.committed_offset = window.commit_offset
            await self._commit(windows, _CLOSE_COMMIT_S)
        except DLedgerError as error:
            logger.warning("commit of given up queues failed error=%s", error)
        await self._unlock(window.queue for window in windows)

    async def _wait_hands(self, windows: list[ProcessQueue]) -> None:
        """If ordered, waits for the messages in hand: a new owner may begin only behind them."""
        line = self._line
        if line is None:
            return
        for window in windows:
            line.forget(window)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.drain_timeout_s
        while any(line.is_in_hand(window.queue) for window in windows):
            if loop.time() > deadline:
                logger.warning("queues given up with a message in hand group=%s", self._group)
                break
            await asyncio.sleep(_HAND_PAUSE_S)
        self._delivery.apply_finished()

    async def _unlock(self, queues: Iterable[MessageQueue], *, in_hand_too: bool = False) -> None:
        """If ordered, gives back the locks of queues with no message in hand, or of all."""
        if self._locks is not None and self._line is not None:
            line = self._line
            await self._locks.unlock(
                [queue for queue in queues if in_hand_too or not line.is_in_hand(queue)]
            )

    async def take_over(self, queue: MessageQueue, *, is_ours: bool) -> None:
        """Begins to read a queue where the group has come to.

        Args:
            queue: Which.
            is_ours: Nothing in it is older than the group's or this member's being here: where
                nothing was committed, all of it is to be read.

        Raises:
            DLedgerError: It is not known where to begin.
        """
        start = await self.offsets.committed(self._group, queue)
        known = start is not None
        if start is None:
            start = await self.offsets.first(
                queue,
                ConsumeFrom.EARLIEST if is_ours else self._consume_from,
                self._config.consume_timestamp_ms,
            )
        window = ProcessQueue(
            queue,
            start,
            messages_max=self._config.queue_messages_max,
            bytes_max=self._config.queue_bytes_max,
        )
        if known:
            window.committed_offset = start
        else:
            # Or a member that begins at the end, and dies before it has read anything, would
            # begin at a later end next time and skip what came between.
            await self.offsets.commit(self._group, queue, start)
            await self.offsets.flush()
            window.committed_offset = start
        self.windows[queue] = window
        task = asyncio.get_running_loop().create_task(self._read(window), name=f"pull {queue}")
        task.add_done_callback(lambda done: self._reader_ended(window, done))
        self._readers[queue] = task

    async def _read(self, window: ProcessQueue) -> None:
        config = self._config
        subscription = self._subscriptions[window.queue.topic]
        failures = 0
        while not window.dropped:
            self._delivery.apply_finished()
            if window.is_full:
                await asyncio.sleep(_FLOW_PAUSE_S)
                continue
            try:
                result = await self._puller.pull(
                    window.queue,
                    window.next_offset,
                    subscription,
                    count_max=config.pull_count_max,
                    bytes_max=config.pull_bytes_max,
                    suspend_s=config.suspend_s,
                )
            except DLedgerError as error:
                failures += 1
                level = logging.WARNING if failures % 20 == 5 else logging.DEBUG
                logger.log(level, "pull failed queue=%s error=%s", window.queue, error)
                await asyncio.sleep(backoff_s(failures, _PULL_FAILURE_MIN_S, _PULL_FAILURE_MAX_S))
                continue
            failures = 0
            if result.status is PullStatus.OFFSET_ILLEGAL:
                await self.restart_at(window, result.next_offset)
                return
            before = window.next_offset
            fresh = window.add(result.messages, result.next_offset)
            if window.queue.topic == self._retry_topic:
                for message in fresh:
                    message.topic = message.properties.get(Property.RETRY_TOPIC, message.topic)
            if fresh:
                self._delivery.offer(window, fresh)
            elif window.next_offset == before and result.status is not PullStatus.NO_NEW_MESSAGE:
                await asyncio.sleep(_FLOW_PAUSE_S)  # told to ask again at once, to no avail

    async def restart_at(self, window: ProcessQueue, offset: int) -> None:
        """The broker does not have our offset (any more): go on where it says."""
        logger.warning(
            "offset out of range queue=%s offset=%s continued_at=%s",
            window.queue,
            window.next_offset,
            offset,
        )
        window.dropped = True
        try:
            async with self._commit_lock:
                await self.offsets.commit(self._group, window.queue, offset)
        except DLedgerError as error:
            # Whoever reads the queue next begins at the old offset and comes here again.
            logger.warning("commit of the new offset failed error=%s", error)
        self.forget(window)

    def _reader_ended(self, window: ProcessQueue, task: asyncio.Task[None]) -> None:
        log_failure(task)
        if not task.cancelled() and not self._delivery.is_stopping:
            self.forget(window)

    def forget(self, window: ProcessQueue) -> None:
        """Gives a queue up so that the next share-out takes it anew."""
        window.dropped = True
        if self._line is not None:
            self._line.forget(window)
        if self.windows.get(window.queue) is window:
            del self.windows[window.queue]
            reader = self._readers.pop(window.queue, None)
            if reader is not None and reader is not asyncio.current_task():
                reader.cancel()
            self._changed()
