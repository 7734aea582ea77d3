"""A place in a consumer group, where consumers follow each other, and all that they do is noted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from dledger.client.config import PushConsumerConfig
from dledger.client.group_reader import Delivery
from dledger.client.offsets import Offsets
from dledger.client.process_queue import ProcessQueue
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.client.session import ClientSession
from dledger.errors import DLedgerError
from dledger.message import ReceivedMessage
from dledger.model import ConsumeFrom, MessageQueue
from jepsen_tests.history import Assign, Commit, Deliver, Done, Revoke, Value, queue_name
from jepsen_tests.workloads.bodies import value_of
from jepsen_tests.workloads.log_client import session_config
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Process, Recorder, now_ns, short

_TAKE_S = 0.1
_STAY_S = (4.0, 9.0)
_AWAY_S = (0.2, 2.0)
_WORK_S = 0.0005

Handle = Callable[[ReceivedMessage, Value], bool]
"""Gets a message; returns whether it is done with. If not, it must have called `nack`."""


def accept(_message: ReceivedMessage, _value: Value) -> bool:
    """Handles a message without trouble."""
    return True


class NotedOffsets(Offsets):
    """A consumer's offsets; every commit is written down."""

    def __init__(self, session: ClientSession, recorder: Recorder, consumer: str) -> None:
        super().__init__(session)
        self._recorder = recorder
        self._consumer = consumer
        self._processes: dict[MessageQueue, Process] = {}

    async def commit(
        self, group: str, queue: MessageQueue, offset: int, *, timeout_s: float | None = None
    ) -> None:
        """Commits as `Offsets`."""
        process = self._processes.get(queue)
        if process is None:
            process = self._processes[queue] = Process(self._recorder)
        record = Commit(
            process=process.number,
            group=group,
            queue=name_of(queue),
            offset=offset,
            inv=now_ns(),
            ret=0,
            status="info",
            consumer=self._consumer,
        )
        try:
            await super().commit(group, queue, offset, timeout_s=timeout_s)
            record.status = "ok"
        except DLedgerError as error:
            record.error = short(error)  # made again until it is answered: `info` in any case
            raise
        finally:
            record.ret = now_ns()
            self._recorder.note("commit", record.status, record)
            if record.status == "info":
                process.crashed()


class Member:
    """One place in the group."""

    def __init__(
        self,
        plan: WorkerPlan,
        recorder: Recorder,
        number: int,
        *,
        ordered: bool = False,
        handle: Handle = accept,
    ) -> None:
        """Takes the place.

        Args:
            plan, recorder: Of the worker.
            number: Of the place, in this worker.
            ordered: As all of the group.
            handle: What is done with a message.
        """
        self._plan = plan
        self._recorder = recorder
        self._name = f"member-{plan.index}-{number}"
        self._chance = random.Random(f"{plan.seed}-member-{number}")
        self._ordered = ordered
        self._handle_message = handle
        self._lives = 0
        self._windows: dict[MessageQueue, ProcessQueue] = {}

    async def run(self, settled: asyncio.Event | None, drained: asyncio.Event) -> None:
        """Lives again and again until `drained`; the last life is a long one.

        Args:
            settled: From when on it stays; None: it never leaves.
            drained: When to end.
        """
        loop = asyncio.get_running_loop()
        while not drained.is_set():
            stays = settled is None or settled.is_set()
            leave_at = None if stays else loop.time() + self._chance.uniform(*_STAY_S)
            await self._live(leave_at, settled, drained)
            if not drained.is_set():
                await asyncio.sleep(self._chance.uniform(*_AWAY_S))

    async def _live(
        self, leave_at: float | None, settled: asyncio.Event | None, drained: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        self._lives += 1
        name = f"{self._name}.{self._lives}"
        consumer = AsyncPushConsumer(
            self._plan.consumers,
            subscriptions={self._plan.topic: "*"},
            nameserver=self._plan.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
            ordered=self._ordered,
            config=PushConsumerConfig(
                commit_interval_s=0.5,
                rebalance_interval_s=2.0,
                suspend_s=2.0,
                drain_timeout_s=2.0,
                redelivery_max_s=4.0,
                session=session_config(self._plan),
            ),
        )
        # The only seam through which the commits of a push consumer can be seen.
        queues = consumer.reader._queues
        queues.offsets = NotedOffsets(queues._session, self._recorder, name)
        try:
            await consumer.start()
            while not drained.is_set():
                is_over = leave_at is not None and loop.time() >= leave_at
                if is_over and not (settled is not None and settled.is_set()):
                    break
                delivery = await consumer.reader.take(_TAKE_S)
                self._note_revoked(name)
                if delivery is not None:
                    await self.process(consumer, name, delivery)
        finally:
            await consumer.close()
            for queue in list(self._windows):
                self._revoke(queue, name, "closed")

    async def process(self, consumer: AsyncPushConsumer, name: str, delivery: Delivery) -> None:
        """Does with a message what an application does."""
        value = self.note_delivered(name, delivery)
        if self._ordered:
            await asyncio.sleep(_WORK_S)  # so that two at a time can be seen
        done = self._handle_message(delivery.message, value)
        self.note_done(name, delivery, value, is_done=done)
        consumer.reader.finish(delivery)

    def note_delivered(self, name: str, delivery: Delivery) -> Value:
        """Writes down that a message came; returns its value."""
        message, queue = delivery.message, delivery.window.queue
        value = value_of(message.body)
        place, group = name_of(queue), self._plan.consumers
        if self._windows.get(queue) is not delivery.window:
            if queue in self._windows:
                self._revoke(queue, name, "rebalance")
            self._windows[queue] = delivery.window
            self._recorder.event(Assign(group=group, consumer=name, queue=place, t=now_ns()))
        self._recorder.event(
            Deliver(
                group=group,
                consumer=name,
                queue=place,
                offset=message.queue_offset,
                value=value,
                t=now_ns(),
                attempt=message.reconsume_times + 1,
            )
        )
        return value

    def note_done(self, name: str, delivery: Delivery, value: Value, *, is_done: bool) -> None:
        """Writes down what the application did with it."""
        self._recorder.event(
            Done(
                group=self._plan.consumers,
                consumer=name,
                queue=name_of(delivery.window.queue),
                offset=delivery.message.queue_offset,
                value=value,
                t=now_ns(),
                result="ok" if is_done else "retry",
            )
        )
        self._recorder.counts["deliver-ok"] += 1
        # A process that may be killed must not have done more than its history says.
        self._recorder.flush()

    def _note_revoked(self, name: str) -> None:
        for queue in [queue for queue, window in self._windows.items() if window.dropped]:
            self._revoke(queue, name, "rebalance")

    def _revoke(self, queue: MessageQueue, name: str, reason: str) -> None:
        self._windows.pop(queue, None)
        self._recorder.event(
            Revoke(
                group=self._plan.consumers,
                consumer=name,
                queue=name_of(queue),
                t=now_ns(),
                reason=reason,
            )
        )


def name_of(queue: MessageQueue) -> str:
    """Returns the name of a queue in histories."""
    return queue_name(queue.topic, queue.broker_name, queue.queue_id)
