"""The sending side of W5: delays by level and by time; some messages are recalled in time."""

from __future__ import annotations

import asyncio
import random

from dledger.client.config import ProducerConfig, PullConsumerConfig
from dledger.client.producer import AsyncProducer
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.codes import DELAY_LEVELS_MS
from dledger.errors import DLedgerError
from dledger.message import Message, Property
from jepsen_tests.history import Recall, Send, Value
from jepsen_tests.workloads.bodies import body_of
from jepsen_tests.workloads.log_client import session_config
from jepsen_tests.workloads.pacing import Pacer
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Process, Recorder, now_ns, short, status_of

_LEVELS = (1, 2, 3, 4)
_LEVEL_SHARE = 0.4
_RECALL_SHARE = 0.1
_DELAY_S = (0.5, 30.0)
_RECALL_AFTER_S = (0.1, 2.5)
_PROCESSES = 20
_REST_S = 0.02
_OVERDUE_S = 20.0
_PAUSE_S = 0.2


async def run_delayed_send(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Runs until told to stop, then until all that was sent is due and stored, or overdue."""
    config = ProducerConfig(
        attempt_timeout_s=plan.timeout_s,
        send_timeout_s=2 * plan.timeout_s,
        retry_unknown=False,
        session=session_config(plan),
    )
    async with AsyncProducer("jepsen", nameserver=plan.nameserver, config=config) as producer:
        sender = _Sender(plan, recorder, producer)
        async with asyncio.TaskGroup() as tasks:
            for number in range(_PROCESSES):
                chance = random.Random(f"{plan.seed}-delay-{number}")
                pacer = Pacer(plan.rate / _PROCESSES, chance, stopping)
                tasks.create_task(sender.work(chance, pacer))
        await sender.settle()


class _Sender:
    def __init__(self, plan: WorkerPlan, recorder: Recorder, producer: AsyncProducer) -> None:
        self._plan = plan
        self._recorder = recorder
        self._producer = producer
        self._recalls: set[asyncio.Task[None]] = set()
        self._due_ns = 0
        self._to_come = 0  # acknowledged, and not recalled for all we know

    async def work(self, chance: random.Random, pacer: Pacer) -> None:
        """One process: a message after the other."""
        process = Process(self._recorder)
        while await pacer.turn():
            if not await self._one(process, chance):
                await pacer.rest(_REST_S)

    async def _one(self, process: Process, chance: random.Random) -> bool:
        value = process.new_value()
        body = body_of(value, self._plan.body_bytes)
        if chance.random() < _LEVEL_SHARE:
            level = chance.choice(_LEVELS)
            delay_ms, delay_s = DELAY_LEVELS_MS[level - 1], None
            message = Message(self._plan.topic, body, properties={Property.DELAY: str(level)})
        else:
            delay_s = round(chance.uniform(*_DELAY_S), 3)
            delay_ms = round(delay_s * 1000)
            message = Message(self._plan.topic, body)
        record = Send(
            process=process.number,
            topic=self._plan.topic,
            value=value,
            inv=now_ns(),
            ret=0,
            status="ok",
            delay_ms=delay_ms,
        )
        handle = ""
        try:
            handle = (await self._producer.send(message, delay=delay_s)).recall_handle
        except DLedgerError as error:
            record.status, record.error = status_of(error), short(error)
        record.ret = now_ns()
        self._recorder.note("send", record.status, record)
        if record.status == "info":
            process.crashed()
        if record.status != "fail":
            self._due_ns = max(self._due_ns, record.ret + delay_ms * 1_000_000)
        if record.status == "ok":
            self._to_come += 1
            if handle and chance.random() < _RECALL_SHARE:
                wait_s = chance.uniform(*_RECALL_AFTER_S)
                task = asyncio.create_task(self._recall(value, handle, wait_s))
                self._recalls.add(task)
                task.add_done_callback(self._recalls.discard)
        return record.status == "ok"

    async def _recall(self, value: Value, handle: str, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        process = Process(self._recorder)
        record = Recall(process=process.number, value=value, inv=now_ns(), ret=0, status="ok")
        try:
            await self._producer.recall(handle)
        except DLedgerError as error:
            # Refused may mean: recalled by an attempt whose answer was lost.
            record.status, record.error = "info", short(error)
        else:
            self._to_come -= 1
        record.ret = now_ns()
        self._recorder.note("recall", record.status, record)

    async def settle(self) -> None:
        """Waits until everything is due, and then for its being stored, which must not take long.

        What is not stored by then is for the checkers to find lost.
        """
        if self._recalls:
            await asyncio.wait(self._recalls)
        await asyncio.sleep(max(0.0, (self._due_ns - now_ns()) / 1e9))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _OVERDUE_S
        plan = self._plan
        config = PullConsumerConfig(session=session_config(plan))
        async with AsyncPullConsumer(
            plan.group, nameserver=plan.nameserver, config=config
        ) as asker:
            while loop.time() < deadline:
                try:
                    queues = await asker.queues(plan.topic)
                    stored = sum([await asker.offset_max(queue) for queue in queues])
                except DLedgerError:
                    stored = -1
                if stored >= self._to_come:
                    return
                await asyncio.sleep(_PAUSE_S)
