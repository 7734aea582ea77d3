"""The sending side of W2: messages of one key are sent one after the other, each by one process."""

from __future__ import annotations

import asyncio
import random

from dledger.client.config import ProducerConfig
from dledger.client.producer import AsyncProducer
from dledger.errors import DLedgerError
from dledger.message import Message
from jepsen_tests.history import Append, queue_name
from jepsen_tests.workloads.bodies import body_of
from jepsen_tests.workloads.log_client import session_config
from jepsen_tests.workloads.pacing import Pacer
from jepsen_tests.workloads.plan import WorkerPlan
from jepsen_tests.workloads.recorder import Process, Recorder, now_ns, short, status_of

KEYS_PER_PROCESS = 4
_SEND_TIMEOUTS = 5
_REST_S = 0.02


async def run_ordered_send(plan: WorkerPlan, recorder: Recorder, stopping: asyncio.Event) -> None:
    """Runs until told to stop."""
    config = ProducerConfig(
        attempt_timeout_s=plan.timeout_s,
        send_timeout_s=_SEND_TIMEOUTS * plan.timeout_s,
        # What is sent again is recognised: one operation from the first attempt to the last answer.
        retry_unknown=True,
        session=session_config(plan),
    )
    async with (
        AsyncProducer("jepsen", nameserver=plan.nameserver, config=config) as producer,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(plan.processes):
            chance = random.Random(f"{plan.seed}-order-{number}")
            pacer = Pacer(plan.rate / plan.processes, chance, stopping)
            tasks.create_task(_send_keys(plan, recorder, producer, number, chance, pacer))


async def _send_keys(
    plan: WorkerPlan,
    recorder: Recorder,
    producer: AsyncProducer,
    number: int,
    chance: random.Random,
    pacer: Pacer,
) -> None:
    process = Process(recorder)
    queues = await producer.queues(plan.topic)
    while await pacer.turn():
        key_number = number * KEYS_PER_PROCESS + chance.randrange(KEYS_PER_PROCESS)
        key = f"k{key_number}"
        queue = queues[key_number % len(queues)]
        value = process.new_value()
        record = Append(
            process=process.number,
            queue=queue_name(queue.topic, queue.broker_name, queue.queue_id),
            value=value,
            inv=now_ns(),
            ret=0,
            status="ok",
            shard=key,
        )
        message = Message(plan.topic, body_of(value, plan.body_bytes), keys=(key,))
        try:
            result = await producer.send(message, queue=queue)
        except DLedgerError as error:
            record.ret = now_ns()
            record.status, record.error = status_of(error), short(error)
        else:
            record.ret = now_ns()
            record.offset = result.queue_offset
            record.node = recorder.node_of(result.offset_message_id)
        recorder.note("append", record.status, record)
        if record.status == "info":
            process.crashed()
        if record.status != "ok":
            await pacer.rest(_REST_S)
