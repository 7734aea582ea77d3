"""W1, the log, through the public client: appends, tail reads, reads of old parts, lengths."""

from __future__ import annotations

import asyncio
import random

from dledger.client.config import ProducerConfig, PullConsumerConfig, SessionConfig
from dledger.client.producer import AsyncProducer
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.errors import DLedgerError, OffsetOutOfRangeError
from dledger.message import Message
from dledger.model import MessageQueue
from jepsen_tests.history import Append, BatchAppend, Read, queue_name
from jepsen_tests.workloads.bodies import body_of, value_of
from jepsen_tests.workloads.pacing import Pacer
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Process, Recorder, now_ns, short, status_of

READERS_SHARE = 4  # one reader with a connection of its own for so many processes
PULL_COUNT = 32
_LENGTH_SHARE = 0.35
_OLD_SHARE = 0.1
_BATCH_SHARE = 0.05
_BATCH = (2, 6)
_REST_S = 0.02


def session_config(plan: WorkerPlan) -> SessionConfig:
    """Returns short limits: an operation must end before the fault that troubles it does."""
    return SessionConfig(
        connect_timeout_s=min(0.5, plan.timeout_s),
        request_timeout_s=plan.timeout_s,
        operation_timeout_s=2 * plan.timeout_s,
        probe_timeout_s=0.3,
        route_poll_s=5.0,
        heartbeat_s=5.0,
    )


async def run_log_client(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Runs until told to stop."""
    # A retry sends the same value again; each operation is one attempt, so that it has one fate.
    config = ProducerConfig(
        attempt_timeout_s=plan.timeout_s,
        send_timeout_s=2 * plan.timeout_s,
        retry_unknown=False,
        session=session_config(plan),
    )
    readers = max(1, plan.processes // READERS_SHARE)
    appenders = max(1, plan.processes - readers)
    async with AsyncProducer("jepsen", nameserver=plan.nameserver, config=config) as producer:
        queues = await producer.queues(plan.topic)
        async with asyncio.TaskGroup() as tasks:
            for number in range(appenders):
                chance = random.Random(f"{plan.seed}-append-{number}")
                pacer = Pacer(plan.rate * plan.append_share / appenders, chance, stopping)
                writer = _Appender(plan, recorder, producer, queues, chance)
                tasks.create_task(writer.run(pacer))
            for number in range(readers):
                chance = random.Random(f"{plan.seed}-read-{number}")
                pacer = Pacer(plan.rate * (1 - plan.append_share) / readers, chance, stopping)
                reader = _Reader(plan, recorder, queues, chance)
                tasks.create_task(reader.run(pacer))


class _Appender:
    def __init__(
        self,
        plan: WorkerPlan,
        recorder: Recorder,
        producer: AsyncProducer,
        queues: list[MessageQueue],
        chance: random.Random,
    ) -> None:
        self._plan = plan
        self._recorder = recorder
        self._producer = producer
        self._queues = queues
        self._names = [queue_name(q.topic, q.broker_name, q.queue_id) for q in queues]
        self._chance = chance
        self._process = Process(recorder)

    async def run(self, pacer: Pacer) -> None:
        while await pacer.turn():
            batch = self._chance.random() < _BATCH_SHARE
            if not await (self._append_batch() if batch else self._append()):
                await pacer.rest(_REST_S)

    async def _append(self) -> bool:
        at = self._chance.randrange(len(self._queues))
        process, plan = self._process, self._plan
        value = process.new_value()
        record = Append(
            process=process.number, queue=self._names[at], value=value, inv=0, ret=0, status="ok"
        )
        message = Message(plan.topic, body_of(value, plan.body_bytes))
        record.inv = now_ns()
        try:
            result = await self._producer.send(message, queue=self._queues[at])
        except DLedgerError as error:
            record.ret = now_ns()
            record.status, record.error = status_of(error), short(error)
        else:
            record.ret = now_ns()
            record.offset = result.queue_offset
            record.node = self._recorder.node_of(result.offset_message_id)
        self._recorder.note("append", record.status, record)
        if record.status == "info":
            process.crashed()
        return record.status == "ok"

    async def _append_batch(self) -> bool:
        """Sends messages that must be stored together or not at all."""
        at = self._chance.randrange(len(self._queues))
        process, plan = self._process, self._plan
        values = [process.new_value() for _ in range(self._chance.randint(*_BATCH))]
        record = BatchAppend(
            process=process.number,
            queue=self._names[at],
            values=list(values),
            inv=now_ns(),
            ret=0,
            status="ok",
        )
        messages = [Message(plan.topic, body_of(value, plan.body_bytes)) for value in values]
        try:
            results = await self._producer.send_batch(messages, queue=self._queues[at])
            record.offset = results[0].queue_offset
            record.node = self._recorder.node_of(results[0].offset_message_id)
        except DLedgerError as error:
            record.status, record.error = status_of(error), short(error)
        record.ret = now_ns()
        self._recorder.note("append", record.status, record)
        if record.status == "info":
            process.crashed()
        return record.status == "ok"


class _Reader:
    """Reads every queue as it grows; now and then an old part again, or asks for the length."""

    def __init__(
        self,
        plan: WorkerPlan,
        recorder: Recorder,
        queues: list[MessageQueue],
        chance: random.Random,
    ) -> None:
        self._plan = plan
        self._recorder = recorder
        self._queues = queues
        self._chance = chance
        self._process = Process(recorder)
        self._positions = dict.fromkeys(queues, 0)

    async def run(self, pacer: Pacer) -> None:
        config = PullConsumerConfig(pull_timeout_s=0.0, session=session_config(self._plan))
        plan = self._plan
        async with AsyncPullConsumer(plan.group, nameserver=plan.nameserver, config=config) as pull:
            while await pacer.turn():
                queue = self._chance.choice(self._queues)
                is_length = self._chance.random() < _LENGTH_SHARE
                action = self._length(pull, queue) if is_length else self._read(pull, queue)
                if not await action:
                    await pacer.rest(_REST_S)

    async def _length(self, pull: AsyncPullConsumer, queue: MessageQueue) -> bool:
        record = self._record(queue, 0, 0)
        try:
            record.end = await pull.offset_max(queue)
        except DLedgerError as error:
            record.status, record.error = status_of(error), short(error)
        return self._note("length", record)

    async def _read(self, pull: AsyncPullConsumer, queue: MessageQueue) -> bool:
        position = self._positions[queue]
        start = position
        if position and self._chance.random() < _OLD_SHARE:
            start = self._chance.randrange(position)
        record = self._record(queue, start, PULL_COUNT)
        record.eventual = True
        pull.seek(queue, start)
        try:
            found = await pull.pull(queue, count_max=PULL_COUNT, timeout_s=0)
        except OffsetOutOfRangeError as error:
            record.status, record.error = "fail", short(error)
            # Dropped by retention: read on where the queue begins now.
            self._positions[queue] = max(position, error.offset_min)
        except DLedgerError as error:
            record.status, record.error = status_of(error), short(error)
        else:
            if found:
                record.first = found[0].queue_offset
                record.values = [value_of(message.body) for message in found]
                offsets = [message.queue_offset for message in found]
                if offsets != list(range(offsets[0], offsets[0] + len(offsets))):
                    record.offsets = offsets
                self._positions[queue] = max(position, offsets[-1] + 1)
        return self._note("read", record)

    def _record(self, queue: MessageQueue, start: int, count: int) -> Read:
        return Read(
            process=self._process.number,
            queue=queue_name(queue.topic, queue.broker_name, queue.queue_id),
            inv=now_ns(),
            ret=0,
            status="ok",
            start=start,
            max=count,
        )

    def _note(self, kind: str, record: Read) -> bool:
        record.ret = now_ns()
        self._recorder.note(kind, record.status, record)
        if record.status == "info":
            self._process.crashed()
        return record.status == "ok"
