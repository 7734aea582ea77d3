"""Reads a consumer group's share of its topics: rebalance, pull loops, commits.

The reader is the part of a push consumer below the forms of delivery. It runs on one loop; what
it has read lies in a line from which any thread may take, and what is finished goes into another
from any thread: both are deques, whose single operations are atomic.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dledger.client.answers import Ended, MemberAnswers, MemberView
from dledger.client.config import PushConsumerConfig
from dledger.client.filters import Subscription, subscribe
from dledger.client.heartbeats import Member
from dledger.client.held_queues import HeldQueues
from dledger.client.local_offsets import open_local_offsets
from dledger.client.ordering import LockKeeper, OrderedLine, QueueLocks
from dledger.client.process_queue import ProcessQueue
from dledger.client.rebalance import Rebalance
from dledger.client.redelivery import BrokerRedelivery, LocalRedelivery
from dledger.client.session import ClientSession
from dledger.client.subscription_check import check_subscription, wire
from dledger.client.tasks import TaskSet
from dledger.client.tracing import Handed, Tracer
from dledger.codes import RETRY_PREFIX, RequestCode
from dledger.errors import DLedgerError
from dledger.message import ReceivedMessage, Rejection
from dledger.model import ConsumeFrom, MessageModel, MessageQueue
from dledger.remoting.bodies import ConsumerData, decode_offset_table
from dledger.remoting.client import ClientConnection
from dledger.remoting.commands import Command

logger = logging.getLogger(__name__)

_CLOSE_DRAIN_S = 5.0


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
        self._redelivery = LocalRedelivery(config.redelivery_min_s, config.redelivery_max_s)
        self._ready: deque[Delivery] = deque()
        self._finished: deque[Delivery] = deque()
        self._something_ready = asyncio.Event()
        self._tracer = Tracer(session, group) if config.trace else None
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks = TaskSet()
        self._member: Member | None = None
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._locks: QueueLocks | None = None
        self._line: OrderedLine[Delivery] | None = None
        if ordered:
            self._redelivery = LocalRedelivery(config.redelivery_min_s, config.redelivery_min_s)
            self._locks = _queue_locks(session, group, config)
            self._line = OrderedLine(self._locks.is_held)
        self._unbalanced = asyncio.Event()
        self._queues = HeldQueues(
            session,
            group,
            self._subscriptions,
            consume_from,
            config,
            self,
            retry_topic=self._retry_topic,
            locks=self._locks,
            line=self._line,
            changed=self._unbalanced.set,
        )
        self._rebalance = Rebalance(
            session,
            group,
            self._subscriptions,
            config,
            message_model,
            self._queues,
            retry_topic=self._retry_topic,
            unbalanced=self._unbalanced,
        )

    def __repr__(self) -> str:
        return (
            f"<GroupReader {self.group} queues={len(self._queues.windows)} "
            f"ready={len(self._ready)} {'stopping' if self._stopping else 'running'}>"
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
            self._queues.offsets = open_local_offsets(self._session, self.group, self._config)
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
        self._session.on_route_change(self._rebalance.route_changed)
        self._session.request_handlers[RequestCode.RESET_CONSUMER_CLIENT_OFFSET] = self._moved
        self._answer_admins(data)
        await self._session.heartbeat_now()
        if self._tracer is not None:
            self._tracer.start()
        self._tasks.spawn(self._rebalance.run(), f"rebalance {self.group}")
        self._tasks.spawn(self._queues.commit_forever(), f"commit {self.group}")
        if self._locks is not None:
            keeper = LockKeeper(
                self._locks,
                lambda: list(self._queues.windows.values()),
                self._queues.forget,
                renew_s=self._config.lock_renew_s,
            )
            self._tasks.spawn(keeper.run(), f"locks {self.group}")

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
        self.apply_finished()
        return self._queues.windows

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
        tasks = self._tasks.cancel()
        await asyncio.gather(*tasks, self._queues.stop_reading(), return_exceptions=True)
        if self._broker_redelivery is not None:
            await self._broker_redelivery.drain(_CLOSE_DRAIN_S)
        await self._queues.close(is_idle=is_idle)
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
        return sorted(queue for queue in self._queues.windows if queue.topic != self._retry_topic)

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
            self._call_soon(self._queues.forget, delivery.window)
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
        return await self._rebalance.wait_balanced(timeout_s)

    async def commit(self, *, timeout_s: float | None = None) -> None:
        """Commits what is finished in all queues held.

        Raises:
            BrokerResponseError, ConnectFailedError, ConnectionLostError, RequestTimeoutError: A
                queue's offset could not be committed; the others were tried all the same.
        """
        await self._queues.commit(timeout_s=timeout_s)

    # --- inside -------------------------------------------------------------------------------

    def _offer(self, deliveries: list[Delivery]) -> None:
        self._ready.extend(deliveries)
        self._something_ready.set()

    def offer(self, window: ProcessQueue, messages: list[ReceivedMessage]) -> None:
        """Puts what was read in line for delivery. Loop only."""
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

    def apply_finished(self) -> None:
        """Tells the windows which of their messages are finished. Loop only."""
        finished = self._finished
        now_ms = self._session.wall_ms()
        while finished:
            delivery = finished.popleft()
            delivery.window.finished_ms = now_ms
            delivery.window.finish(delivery.message.queue_offset)

    def _moved(self, _connection: ClientConnection, command: Command) -> None:
        """A broker says, unasked, where the group is to go on."""
        if command.ext.get("group") != self.group:
            return
        for queue, offset in decode_offset_table(command.body).items():
            window = self._queues.windows.get(queue)
            if window is not None:
                self._tasks.spawn(self._queues.restart_at(window, offset), f"move {self.group}")


def _queue_locks(session: ClientSession, group: str, config: PushConsumerConfig) -> QueueLocks:
    return QueueLocks(
        session, group, valid_s=config.lock_valid_s, now_s=lambda: session.now_ms() / 1000
    )
