"""Reads a consumer group's share of its topics: rebalance, pull loops, commits.

The reader is the part of a push consumer below the forms of delivery. It runs on one loop; what
it has read lies in a line from which any thread may take, and what is finished goes into another
from any thread: both are deques, whose single operations are atomic.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dledger.allocation import difference, strategy
from dledger.client.answers import Ended, MemberAnswers, MemberView
from dledger.client.config import PushConsumerConfig
from dledger.client.filters import Subscription, subscribe
from dledger.client.heartbeats import Member
from dledger.client.local_offsets import open_local_offsets
from dledger.client.offsets import Offsets
from dledger.client.ordering import LockKeeper, OrderedLine, QueueLocks
from dledger.client.process_queue import ProcessQueue
from dledger.client.puller import Puller
from dledger.client.redelivery import BrokerRedelivery, LocalRedelivery
from dledger.client.retry import backoff_s
from dledger.client.session import ClientSession
from dledger.client.subscription_check import check_subscription, wire
from dledger.client.tracing import Handed, Tracer
from dledger.codes import RETRY_PREFIX, RequestCode
from dledger.errors import BrokerResponseError, DLedgerError, RouteNotFoundError
from dledger.message import Property, ReceivedMessage, Rejection
from dledger.model import ConsumeFrom, MessageModel, MessageQueue, PullStatus
from dledger.remoting.bodies import ConsumerData, decode_consumer_ids, decode_offset_table
from dledger.remoting.client import ClientConnection
from dledger.remoting.commands import Command
from dledger.remoting.headers import GetConsumerListHeader

logger = logging.getLogger(__name__)

_UNBALANCED_S = 1.0
_RETRY_TOPIC_MIN_S = 0.25
_FLOW_PAUSE_S = 0.02
_PULL_FAILURE_MIN_S = 0.05
_PULL_FAILURE_MAX_S = 3.0
_CLOSE_COMMIT_S = 5.0
_HAND_PAUSE_S = 0.01


@dataclass(eq=False, slots=True)
class Delivery:
    """One message handed out, with the window that must hear of its end.

    One that was handed over out of turn has `ended`, and only that is told. One that is traced has
    `handed` while a handler has it.
    """

    window: ProcessQueue
    message: ReceivedMessage
    ended: Ended | None = None
    handed: Handed | None = None


class GroupReader:
    """One member of a consumer group."""

    def __init__(
        self,
        session: ClientSession,
        group: str,
        subscriptions: Mapping[str, Subscription],
        consume_from: ConsumeFrom,
        config: PushConsumerConfig,
        message_model: MessageModel = MessageModel.CLUSTERING,
        *,
        ordered: bool = False,
    ) -> None:
        self.group = group
        self._session = session
        self._subscriptions = dict(subscriptions)
        self._message_model = message_model
        self._retry_topic = ""
        self._broker_redelivery: BrokerRedelivery | None = None
        if message_model is MessageModel.CLUSTERING and config.failed_messages == "broker":
            if not ordered:  # what is retried elsewhere would lose its place
                self._retry_topic = RETRY_PREFIX + group
                version = max(entry.version for entry in subscriptions.values())
                self._subscriptions[self._retry_topic] = subscribe(self._retry_topic, "*", version)
            self._broker_redelivery = BrokerRedelivery(
                session,
                group,
                reconsume_max=config.reconsume_max,
                timeout_s=config.session.operation_timeout_s,
            )
        self._consume_from = consume_from
        self._config = config
        self._first_groups: dict[
            str, set[str]
        ] = {}  # broker groups of a topic when it was new to us
        self._allocate = strategy(
            config.strategy,
            virtual_nodes=config.strategy_virtual_nodes,
            rooms=config.strategy_rooms,
            configured=config.strategy_queues,
        )
        self._puller = Puller(session, group)
        self._offsets = Offsets(session)
        self._redelivery = LocalRedelivery(config.redelivery_min_s, config.redelivery_max_s)
        self._windows: dict[MessageQueue, ProcessQueue] = {}
        self._readers: dict[MessageQueue, asyncio.Task[None]] = {}
        self._ready: deque[Delivery] = deque()
        self._finished: deque[Delivery] = deque()
        self._something_ready = asyncio.Event()
        self._unbalanced = asyncio.Event()
        self._balanced_once = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._tracer = Tracer(session, group) if config.trace else None
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._member: Member | None = None
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._locks: QueueLocks | None = None
        self._line: OrderedLine[Delivery] | None = None
        if ordered:
            self._redelivery = LocalRedelivery(config.redelivery_min_s, config.redelivery_min_s)
            self._locks = QueueLocks(
                session,
                group,
                valid_s=config.lock_valid_s,
                now_s=lambda: session.now_ms() / 1000,
            )
            self._line = OrderedLine(self._locks.is_held)

    def __repr__(self) -> str:
        return (
            f"<GroupReader {self.group} queues={len(self._windows)} ready={len(self._ready)} "
            f"{'stopping' if self._stopping else 'running'}>"
        )

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Joins the group and begins to read. Needs no broker to be up yet.

        Raises:
            BrokerResponseError: A broker refuses a condition in SQL.
            ConfigError: The file for the offsets of a broadcasting consumer cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        if self._message_model is MessageModel.BROADCASTING:
            self._offsets = open_local_offsets(self._session, self.group, self._config)
        for topic, subscription in self._subscriptions.items():
            try:
                await self._session.route(topic)
            except DLedgerError as error:
                logger.info("no route yet topic=%s error=%s", topic, error)
            await check_subscription(self._session, self.group, subscription)
        data = ConsumerData(
            group=self.group,
            consume_type="CONSUME_PASSIVELY",
            message_model=self._message_model.value,
            consume_from=self._consume_from.value,
            subscriptions=[wire(entry) for entry in self._subscriptions.values()],
        )
        self._member = self._session.join(data, list(self._subscriptions), self._unbalanced.set)
        self._session.on_route_change(self._route_changed)
        self._session.request_handlers[RequestCode.RESET_CONSUMER_CLIENT_OFFSET] = self._moved
        self._answer_admins(data)
        await self._session.heartbeat_now()
        if self._tracer is not None:
            self._tracer.start()
        self._spawn(self._rebalance_forever(), "rebalance")
        self._spawn(self._commit_forever(), "commit")
        if self._locks is not None:
            keeper = LockKeeper(
                self._locks,
                lambda: list(self._windows.values()),
                self._forget,
                renew_s=self._config.lock_renew_s,
            )
            self._spawn(keeper.run(), "locks")

    def _answer_admins(self, data: ConsumerData) -> None:
        def hand_over(window: ProcessQueue, message: ReceivedMessage, ended: Ended) -> None:
            self._ready.appendleft(Delivery(window, message, ended))
            self._something_ready.set()

        view = MemberView(
            group=self.group,
            ordered=self._line is not None,
            started_ms=self._session.wall_ms(),
            subscriptions=data.subscriptions,
            windows=self._current_windows,
            hand_over=hand_over if self._line is None else None,
        )
        MemberAnswers(self._session, view).register()

    def _current_windows(self) -> Mapping[MessageQueue, ProcessQueue]:
        self._apply_finished()
        return self._windows

    def request_stop(self) -> None:
        """Hands out no more messages from now on. Any thread; wakes nobody, as `stop` does."""
        self._stopping = True

    def stop(self) -> None:
        """Ends delivery: whoever waits for a message is told that there is none. Loop only."""
        self._stopping = True
        self._something_ready.set()

    async def close(self, *, is_idle: bool = True) -> None:
        """Stops reading and commits what is finished. The membership ends with the session.

        Args:
            is_idle: No handler runs any more: locks on queues with a message in hand can be given
                back too.
        """
        self.stop()
        for timer in self._timers:
            timer.cancel()
        tasks = [*self._tasks, *self._readers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._broker_redelivery is not None:
            await self._broker_redelivery.drain(_CLOSE_COMMIT_S)
        try:
            await self.commit(timeout_s=_CLOSE_COMMIT_S)
        except DLedgerError as error:
            logger.warning("last commit failed group=%s error=%s", self.group, error)
        for window in self._windows.values():
            window.dropped = True
        if self._locks is not None and self._line is not None:
            line = self._line
            await self._locks.unlock(
                [queue for queue in self._windows if is_idle or not line.is_in_hand(queue)]
            )
        self._offsets.close()
        if self._tracer is not None:
            await self._tracer.close()

    # --- delivery -----------------------------------------------------------------------------

    @property
    def is_stopping(self) -> bool:
        """Whether no more messages are handed out."""
        return self._stopping

    @property
    def assignment(self) -> list[MessageQueue]:
        """The queues this member holds now, sorted; without those of the group's retry topic."""
        return sorted(queue for queue in self._windows if queue.topic != self._retry_topic)

    def take_nowait(self) -> Delivery | None:
        """Takes the next message, if one is there. Any thread."""
        while not self._stopping:
            try:
                delivery = self._ready.popleft()
            except IndexError:
                return None
            if delivery.window.dropped:
                continue
            if self._line is None or self._line.take(delivery):
                if self._tracer is not None:
                    delivery.handed = self._tracer.handed(delivery.message)
                return delivery
            self._call_soon(self._forget, delivery.window)
        return None

    async def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Waits until a message may be there; `False` after the timeout or when stopping."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._ready and not self._stopping:
                    self._something_ready.clear()
                    await self._something_ready.wait()
        except TimeoutError:
            return False
        return not self._stopping

    async def take(self, timeout_s: float | None = None) -> Delivery | None:
        """Takes the next message, waiting for it; `None` after the timeout or when stopping."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        while True:
            delivery = self.take_nowait()
            if delivery is not None:
                return delivery
            left = None if deadline is None else max(0.0, deadline - loop.time())
            if not await self.wait_ready(left):
                return None

    def finish(self, delivery: Delivery) -> None:
        """Notes that a message is processed, or rejected by `nack`. Any thread."""
        rejection = delivery.message.rejection
        if rejection is None:
            self._note_end(delivery, success=True)
        if rejection is None and delivery.ended is not None:
            self._call_soon(delivery.ended, None)
        elif rejection is None:
            self._finish(delivery)
        else:
            self._call_soon(self._reject, delivery, rejection)

    def _note_end(self, delivery: Delivery, *, success: bool) -> None:
        if self._tracer is not None and delivery.handed is not None:
            self._tracer.finished(delivery.handed, delivery.message, success=success)
            delivery.handed = None

    def _finish(self, delivery: Delivery) -> None:
        self._finished.append(delivery)
        if self._line is not None:
            following = self._line.finish(delivery)
            if following is not None:
                self._ready.append(following)
                self._call_soon(self._something_ready.set)

    def fail(self, delivery: Delivery, error: BaseException) -> None:
        """Notes that processing failed: the message comes again later. Loop only."""
        rejection = delivery.message.rejection
        if rejection is None:
            rejection = Rejection(reason=f"{type(error).__name__}: {error}")
        self._reject(delivery, rejection)

    def _reject(self, delivery: Delivery, rejection: Rejection) -> None:
        delivery.message.rejection = None
        self._note_end(delivery, success=False)
        if delivery.ended is not None:
            delivery.ended(rejection.reason or "rejected")
            return
        redelivery = self._broker_redelivery
        # An ordered queue waits for its message; only a dead letter lets the others pass.
        if redelivery is not None and (self._line is None or rejection.dead_letter):
            redelivery.spawn(
                delivery.message,
                delivery.window.queue.broker_name,
                rejection,
                taken=lambda: self._finish(delivery),
                kept=lambda: self._offer_later(delivery, rejection),
            )
        elif rejection.dead_letter:
            self._finish(delivery)  # nobody keeps dead letters for us
        else:
            self._offer_later(delivery, rejection)

    def _offer_later(self, delivery: Delivery, rejection: Rejection) -> None:
        if self._line is not None:
            self._line.fail(delivery)
        delay_s = self._redelivery.failed(delivery.message)
        logger.warning(
            "message comes again topic=%s queue=%s offset=%s in_s=%.1f reason=%s",
            delivery.message.topic,
            delivery.message.queue_id,
            delivery.message.queue_offset,
            delay_s,
            rejection.reason,
        )
        if not self._stopping:
            loop = asyncio.get_running_loop()
            self._timers = {timer for timer in self._timers if timer.when() > loop.time()}
            self._timers.add(loop.call_later(delay_s, self._offer, [delivery]))

    async def wait_assigned(self, timeout_s: float) -> bool:
        """Waits for the first share-out; `False` after the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._balanced_once.wait()
        except TimeoutError:
            return False
        return True

    async def commit(self, *, timeout_s: float | None = None) -> None:
        """Commits what is finished in all queues held.

        Raises:
            BrokerResponseError, ConnectFailedError, ConnectionLostError, RequestTimeoutError: A
                queue's offset could not be committed; the others were tried all the same.
        """
        await self._commit(list(self._windows.values()), timeout_s)

    # --- inside -------------------------------------------------------------------------------

    def _offer(self, deliveries: list[Delivery]) -> None:
        self._ready.extend(deliveries)
        self._something_ready.set()

    def _offer_read(self, window: ProcessQueue, messages: list[ReceivedMessage]) -> None:
        deliveries = [Delivery(window, message) for message in messages]
        if self._line is not None:
            first = self._line.offer(window, deliveries)
            deliveries = [] if first is None else [first]
        if deliveries:
            self._offer(deliveries)

    def _call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Has a function called on the loop; from any thread."""
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop has been closed: nobody waits
            return

    def _apply_finished(self) -> None:
        finished = self._finished
        now_ms = self._session.wall_ms()
        while finished:
            delivery = finished.popleft()
            delivery.window.finished_ms = now_ms
            delivery.window.finish(delivery.message.queue_offset)

    async def _commit(self, windows: list[ProcessQueue], timeout_s: float | None = None) -> None:
        # One at a time: an older value must never follow a newer one.
        async with self._commit_lock:
            self._apply_finished()
            due = [
                (window, window.commit_offset)
                for window in windows
                if window.commit_offset != window.committed_offset
                # Without its lock, another member may have come further already.
                and (self._locks is None or self._locks.is_held(window.queue))
            ]
            results = await asyncio.gather(
                *(
                    self._offsets.commit(self.group, window.queue, offset, timeout_s=timeout_s)
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
            await self._offsets.flush()
            if failure is not None:
                raise failure

    async def _commit_forever(self) -> None:
        while True:
            await asyncio.sleep(self._config.commit_interval_s)
            try:
                await self._commit(list(self._windows.values()))
            except DLedgerError as error:
                logger.warning("commit failed group=%s error=%s", self.group, error)

    def _route_changed(self, topic: str) -> None:
        if topic in self._subscriptions:
            self._unbalanced.set()

    async def _rebalance_forever(self) -> None:
        retry_misses = 0
        while True:
            self._unbalanced.clear()
            ready = True
            for topic in sorted(self._subscriptions):
                try:
                    done = await self._rebalance(topic)
                except DLedgerError as error:
                    logger.info("rebalance failed topic=%s error=%s", topic, error)
                    done = False
                if topic == self._retry_topic:
                    retry_misses = 0 if done else retry_misses + 1
                else:
                    ready &= done
            if ready:
                self._balanced_once.set()
            pause = self._config.rebalance_interval_s
            if not ready:
                pause = min(pause, _UNBALANCED_S)
            elif retry_misses:
                # It comes into being with the group, a moment after its first member, or never.
                pause = min(pause, backoff_s(retry_misses, _RETRY_TOPIC_MIN_S, pause))
            try:
                async with asyncio.timeout(pause):
                    await self._unbalanced.wait()
            except TimeoutError:
                pass

    async def _rebalance(self, topic: str) -> bool:
        """Takes and gives up queues of one topic; returns whether all is as it should be."""
        try:
            route = await self._session.route(topic)
        except RouteNotFoundError:
            return False  # it may come; asked again soon
        names = sorted({queue.broker_name for queue in route.subscribe_queues})
        if not names:
            self._session.refresh_soon(topic)
            return False
        self._first_groups.setdefault(topic, {*names, *route.groups})
        wanted: Sequence[MessageQueue] = route.subscribe_queues
        members = [self._session.client_id]
        if self._message_model is MessageModel.CLUSTERING:
            members = await self._members(names[0])
            if self._session.client_id not in members:
                # The leader does not know us (yet), so no one else reckons with us either.
                await self._session.heartbeat_now()
                members = await self._members(names[0])
            wanted = self._allocate(route.subscribe_queues, members, self._session.client_id)
        held = [queue for queue in self._windows if queue.topic == topic]
        change = difference(held, wanted)
        await self._give_up(change.revoked)
        complete = self._session.client_id in members
        takeable = await self._lockable(change.added)
        complete = complete and len(takeable) == len(change.added)
        for queue in takeable:
            try:
                await self._take_over(queue)
            except DLedgerError as error:
                logger.info("queue not taken yet queue=%s error=%s", queue, error)
                complete = False
        if change.revoked or change.added:
            logger.info(
                "rebalanced group=%s topic=%s members=%d taken=%s given_up=%s",
                self.group,
                topic,
                len(members),
                [tuple(queue[1:]) for queue in takeable],
                [tuple(queue[1:]) for queue in change.revoked],
            )
        return complete

    async def _lockable(self, queues: list[MessageQueue]) -> list[MessageQueue]:
        """Returns those of some queues that may be read: all, or if ordered the locked ones."""
        if self._locks is None or self._line is None:
            return queues
        # What is in hand from an earlier time with a queue must be finished first.
        line = self._line
        free = [queue for queue in queues if not line.is_in_hand(queue)]
        granted = await self._locks.lock(free) if free else set()
        return [queue for queue in free if queue in granted]

    async def _members(self, broker_name: str) -> list[str]:
        try:
            response = await self._session.call_leader(
                broker_name,
                RequestCode.GET_CONSUMER_LIST_BY_GROUP,
                GetConsumerListHeader(consumer_group=self.group),
            )
        except BrokerResponseError as error:
            logger.debug("no members group=%s error=%s", self.group, error)
            return []
        return decode_consumer_ids(response.body)

    async def _give_up(self, queues: list[MessageQueue]) -> None:
        windows: list[ProcessQueue] = []
        tasks: list[asyncio.Task[None]] = []
        self._apply_finished()
        for queue in queues:
            window = self._windows.pop(queue)
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
            for window in windows:
                # The new owner may be reading already; do not set back what it committed.
                known = await self._offsets.committed(self.group, window.queue)
                if known is not None and known >= window.commit_offset:
                    window.committed_offset = window.commit_offset
            await self._commit(windows, _CLOSE_COMMIT_S)
        except DLedgerError as error:
            logger.warning("commit of given up queues failed error=%s", error)
        if self._locks is not None and self._line is not None:
            line = self._line
            given = [window.queue for window in windows if not line.is_in_hand(window.queue)]
            await self._locks.unlock(given)

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
                logger.warning("queues given up with a message in hand group=%s", self.group)
                break
            await asyncio.sleep(_HAND_PAUSE_S)
        self._apply_finished()

    async def _take_over(self, queue: MessageQueue) -> None:
        start = await self._offsets.committed(self.group, queue)
        known = start is not None
        if start is None:
            # A retry topic holds what the group has begun already; and a broker group that joins
            # the topic while we run has nothing that is older than our being here.
            is_ours = queue.topic == self._retry_topic or (
                queue.broker_name not in self._first_groups[queue.topic]
            )
            start = await self._offsets.first(
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
            await self._offsets.commit(self.group, queue, start)
            await self._offsets.flush()
            window.committed_offset = start
        self._windows[queue] = window
        task = asyncio.get_running_loop().create_task(self._read(window), name=f"pull {queue}")
        task.add_done_callback(lambda done: self._reader_ended(window, done))
        self._readers[queue] = task

    async def _read(self, window: ProcessQueue) -> None:
        config = self._config
        subscription = self._subscriptions[window.queue.topic]
        failures = 0
        while not window.dropped:
            self._apply_finished()
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
                await self._restart_at(window, result.next_offset)
                return
            before = window.next_offset
            fresh = window.add(result.messages, result.next_offset)
            if window.queue.topic == self._retry_topic:
                for message in fresh:
                    message.topic = message.properties.get(Property.RETRY_TOPIC, message.topic)
            if fresh:
                self._offer_read(window, fresh)
            elif window.next_offset == before and result.status is not PullStatus.NO_NEW_MESSAGE:
                await asyncio.sleep(_FLOW_PAUSE_S)  # told to ask again at once, to no avail

    def _moved(self, _connection: ClientConnection, command: Command) -> None:
        """A broker says, unasked, where the group is to go on."""
        if command.ext.get("group") != self.group:
            return
        for queue, offset in decode_offset_table(command.body).items():
            window = self._windows.get(queue)
            if window is not None:
                self._spawn(self._restart_at(window, offset), "move")

    async def _restart_at(self, window: ProcessQueue, offset: int) -> None:
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
                await self._offsets.commit(self.group, window.queue, offset)
        except DLedgerError as error:
            # Whoever reads the queue next begins at the old offset and comes here again.
            logger.warning("commit of the new offset failed error=%s", error)
        self._forget(window)

    def _reader_ended(self, window: ProcessQueue, task: asyncio.Task[None]) -> None:
        _log_failure(task)
        if not task.cancelled() and not self._stopping:
            self._forget(window)

    def _forget(self, window: ProcessQueue) -> None:
        """Gives a queue up so that the next share-out takes it anew."""
        window.dropped = True
        if self._line is not None:
            self._line.forget(window)
        if self._windows.get(window.queue) is window:
            del self._windows[window.queue]
            reader = self._readers.pop(window.queue, None)
            if reader is not None and reader is not asyncio.current_task():
                reader.cancel()
            self._unbalanced.set()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{name} {self.group}")
        task.add_done_callback(_log_failure)
        self._tasks.append(task)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("consumer task failed name=%s", task.get_name(), exc_info=error)
