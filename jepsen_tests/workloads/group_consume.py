"""W3 and the reading side of W2: members of a consumer group that come and go, then a drain.

All members live in one process with a session each, so that the process knows what the group has
been given. When told to stop, it goes on until the group was given everything, or a time is over.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

from dledger.client.config import PullConsumerConfig, PushConsumerConfig
from dledger.client.group_reader import Delivery
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.errors import DLedgerError
from dledger.model import ConsumeFrom, MessageQueue
from jepsen_tests.history import Assign, Deliver, Done, Group, Revoke, queue_name
from jepsen_tests.workloads.bodies import value_of
from jepsen_tests.workloads.log_client import session_config
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Recorder, now_ns

GROUP = "jepsen-group"
MEMBERS = 3
_TAKE_S = 0.1
_DRAIN_S = 60.0
_STAY_S = (4.0, 9.0)
_AWAY_S = (0.2, 2.0)
_PAUSE_S = 0.2


async def run_group_consume(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Three members share the queues; one after the other leaves and comes back as another."""
    await _consume(plan, recorder, stopping, MEMBERS, ordered=False)


async def run_ordered_consume(
    plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event
) -> None:
    """One member reads everything in order."""
    await _consume(plan, recorder, stopping, 1, ordered=True)


async def _consume(
    plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event, members: int, *, ordered: bool
) -> None:
    recorder.event(Group(group=GROUP, topics=[plan.topic], ordered=ordered))
    seen = Seen()
    drained = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for number in range(members):
            chance = random.Random(f"{plan.seed}-member-{number}")
            member = _Member(plan, recorder, seen, number, chance)
            # Only while nothing drains: a group that shrinks to nothing would never be done.
            tasks.create_task(member.run(None if members == 1 else stopping, drained))
        await stopping.wait()
        complete = await _wait_drained(plan, seen)
        drained.set()
    recorder.event(Group(group=GROUP, topics=[plan.topic], ordered=ordered, drained=complete))


class Seen:
    """What the group has been given: one past the highest offset of each queue."""

    def __init__(self) -> None:
        self.next: dict[MessageQueue, int] = defaultdict(int)


async def _wait_drained(plan: WorkerPlan, seen: Seen) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _DRAIN_S
    config = PullConsumerConfig(session=session_config(plan))
    async with AsyncPullConsumer(plan.group, nameserver=plan.nameserver, config=config) as asker:
        while loop.time() < deadline:
            try:
                queues = await asker.queues(plan.topic)
                ends = {queue: await asker.offset_max(queue) for queue in queues}
            except DLedgerError:
                await asyncio.sleep(_PAUSE_S)
                continue
            if all(seen.next[queue] >= end for queue, end in ends.items()):
                return True
            await asyncio.sleep(_PAUSE_S)
    return False


class _Member:
    """One place in the group: consumers follow each other there."""

    def __init__(
        self,
        plan: WorkerPlan,
        recorder: Recorder,
        seen: Seen,
        number: int,
        chance: random.Random,
    ) -> None:
        self._plan = plan
        self._recorder = recorder
        self._seen = seen
        self._number = number
        self._chance = chance
        self._lives = 0
        self._windows: dict[MessageQueue, object] = {}

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
        name = f"member-{self._number}.{self._lives}"
        config = PushConsumerConfig(
            commit_interval_s=0.5,
            rebalance_interval_s=2.0,
            suspend_s=2.0,
            drain_timeout_s=2.0,
            session=session_config(self._plan),
        )
        consumer = AsyncPushConsumer(
            GROUP,
            subscriptions={self._plan.topic: "*"},
            nameserver=self._plan.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
            config=config,
        )
        try:
            await consumer.start()
            while not drained.is_set():
                is_over = leave_at is not None and loop.time() >= leave_at
                if is_over and not (settled is not None and settled.is_set()):
                    break
                delivery = await consumer.reader.take(_TAKE_S)
                self._note_revoked(consumer, name)
                if delivery is not None:
                    self._handle(consumer, name, delivery)
        finally:
            await consumer.close()
            for queue in list(self._windows):
                self._revoke(queue, name, "closed")

    def _handle(self, consumer: AsyncPushConsumer, name: str, delivery: Delivery) -> None:
        message = delivery.message
        queue = MessageQueue(message.topic, message.broker_name, message.queue_id)
        place, value = _name_of(queue), value_of(message.body)
        if self._windows.get(queue) is not delivery.window:
            if queue in self._windows:
                self._revoke(queue, name, "rebalance")
            self._windows[queue] = delivery.window
            self._recorder.event(Assign(group=GROUP, consumer=name, queue=place, t=now_ns()))
        offset = message.queue_offset
        self._recorder.event(
            Deliver(group=GROUP, consumer=name, queue=place, offset=offset, value=value, t=now_ns())
        )
        self._recorder.event(
            Done(group=GROUP, consumer=name, queue=place, offset=offset, value=value, t=now_ns())
        )
        self._recorder.counts["deliver-ok"] += 1
        consumer.reader.finish(delivery)
        self._seen.next[queue] = max(self._seen.next[queue], offset + 1)

    def _note_revoked(self, consumer: AsyncPushConsumer, name: str) -> None:
        if not self._windows:
            return
        held = set(consumer.assignment)
        for queue in [queue for queue in self._windows if queue not in held]:
            self._revoke(queue, name, "rebalance")

    def _revoke(self, queue: MessageQueue, name: str, reason: str) -> None:
        self._windows.pop(queue, None)
        place = _name_of(queue)
        self._recorder.event(
            Revoke(group=GROUP, consumer=name, queue=place, t=now_ns(), reason=reason)
        )


def _name_of(queue: MessageQueue) -> str:
    return queue_name(queue.topic, queue.broker_name, queue.queue_id)
