"""Loads that read."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import Any

from dledger.bench.figures import Figures
from dledger.bench.load import Load
from dledger.bench.sending import producer, ticks
from dledger.client.admin import AsyncAdmin
from dledger.client.config import PullConsumerConfig
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import RemoteProtocolError, RequestTimeoutError
from dledger.message import Message, ReceivedMessage
from dledger.model import ConsumeFrom, MessageQueue
from dledger.remoting.client import RemotingClient
from dledger.remoting.headers import PullMessageHeader, PullMessageResponse, to_ext

_GROUP = "dledger_bench_consumer"
_COMMIT_S = 0.1
_PULL_COUNT = 2000
_PULL_BYTES = 2 * 1024 * 1024
_DRAIN_S = 30.0
_RATE_MIN = 500  # messages/s below which a load is given up


async def read_backlog(load: Load) -> Figures:
    """One consumer reads what the topic holds, decoded, and commits every 100 ms.

    Queues take turns, each with one pull under way.
    """
    read = size = 0
    config = PullConsumerConfig(pull_count_max=_PULL_COUNT, pull_bytes_max=_PULL_BYTES)
    async with AsyncPullConsumer(_GROUP, nameserver=load.nameserver, config=config) as consumer:
        queues = await consumer.queues(load.topic)
        for queue in queues:
            await consumer.seek_to_begin(queue)

        async def drain(queue: MessageQueue) -> None:
            nonlocal read, size
            while read < load.messages:
                messages = await consumer.pull(queue, timeout_s=0)
                if not messages:
                    return
                read += len(messages)
                size += sum([len(message.body) for message in messages])

        async def commit() -> None:
            while True:
                await asyncio.sleep(_COMMIT_S)
                await consumer.commit()

        started = time.perf_counter()
        committing = asyncio.create_task(commit())
        try:
            async with asyncio.TaskGroup() as group:
                for queue in queues:
                    group.create_task(drain(queue))
        finally:
            committing.cancel()
        await consumer.commit()
        seconds = time.perf_counter() - started
    return Figures.of("read", messages=read, payload_bytes=size, seconds=seconds)


async def read_raw(load: Load) -> Figures:
    """Pulls what the topic holds and looks at nothing but the lengths of the answers.

    The payload is the stored messages with their headers and properties.
    """
    read = size = 0
    async with AsyncAdmin(nameserver=load.nameserver) as admin:
        brokers = (await admin.cluster()).brokers
        places = [
            (brokers[queue.broker_name].addresses[0], queue, await admin.offset_min(queue))
            for queue in await admin.queues(load.topic)
        ]
    client = RemotingClient()

    async def drain(address: str, queue: MessageQueue, offset: int) -> None:
        nonlocal read, size
        while read < load.messages:
            size_read, next_offset = await pull_raw(client, address, queue, offset)
            if next_offset == offset:
                return
            read += next_offset - offset
            size += size_read
            offset = next_offset

    try:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for place in places:
                group.create_task(drain(*place))
        seconds = time.perf_counter() - started
    finally:
        await client.close()
    return Figures.of("raw", messages=read, payload_bytes=size, seconds=seconds)


async def pull_raw(
    client: RemotingClient, address: str, queue: MessageQueue, offset: int
) -> tuple[int, int]:
    """Pulls once without waiting and looks at nothing but the bounds.

    Returns:
        The bytes of the stored messages, and the offset to go on at: the same one at the end.

    Raises:
        RemoteProtocolError: The answer does not lead anywhere.
        DLedgerError: There is none.
    """
    header = PullMessageHeader(
        consumer_group=_GROUP,
        topic=queue.topic,
        queue_id=queue.queue_id,
        queue_offset=offset,
        message_count_max=_PULL_COUNT,
        sys_flag=4,
        subscription="*",
        bytes_max=_PULL_BYTES,
    )
    response = await client.request(address, RequestCode.PULL_MESSAGE, to_ext(header))
    if response.code != ResponseCode.SUCCESS:
        return 0, offset
    next_offset = response.header(PullMessageResponse).next_begin_offset
    if next_offset <= offset:
        raise RemoteProtocolError(f"a pull at {offset} goes on at the same place")
    return len(response.body), next_offset


async def end_to_end(load: Load) -> Figures:
    """From when a message was due to be sent to the handler of a push consumer."""
    latencies: list[float] = []
    clock = time.perf_counter
    done = asyncio.Event()

    async def handle(message: ReceivedMessage) -> None:
        due, blank, _ = message.body.partition(b" ")
        if not blank:
            return  # left from another load
        latencies.append(clock() - float(due))
        if len(latencies) == load.messages:
            done.set()

    async with (
        producer(load) as sender,
        AsyncPushConsumer(
            f"{_GROUP}_{uuid.uuid4().hex[:8]}",
            subscriptions={load.topic: "*"},
            nameserver=load.nameserver,
            consume_from=ConsumeFrom.LATEST,
        ) as consumer,
    ):
        running = asyncio.create_task(consumer.run(handle))
        await consumer.wait_assigned()
        # A group that is new begins at the end as it is now, also where it reads nothing yet.
        await consumer.commit()
        started = clock()

        async def write() -> None:
            async for due in ticks(load, started):
                body = b"%.9f " % due
                sender.send(Message(load.topic, body.ljust(load.size_bytes, b"x")))

        await _until(done, [running, asyncio.create_task(write())], load.messages)
        seconds = clock() - started
    return Figures.of(
        "end-to-end",
        messages=len(latencies),
        payload_bytes=len(latencies) * load.size_bytes,
        seconds=seconds,
        latencies_s=latencies,
    )


async def _until(done: asyncio.Event, tasks: list[asyncio.Task[None]], messages: int) -> None:
    """Waits for the end of a load, or for the failure of one of its tasks; cancels them.

    Raises:
        RequestTimeoutError: Not all messages came.
        DLedgerError: Of the task that failed.
    """
    waiting = asyncio.create_task(done.wait())
    unfinished: set[asyncio.Task[Any]] = {waiting, *tasks}
    deadline = time.perf_counter() + _DRAIN_S + messages / _RATE_MIN
    try:
        while not waiting.done():
            ended, unfinished = await asyncio.wait(
                unfinished,
                timeout=deadline - time.perf_counter(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not ended:
                raise RequestTimeoutError(f"not all of {messages} messages came in time")
            for task in ended:
                task.result()
    finally:
        for task in (waiting, *tasks):
            task.cancel()
        await asyncio.gather(waiting, *tasks, return_exceptions=True)


async def fan_out(load: Load) -> Figures:
    """Several groups read at the end of the topic while it is written; their messages together.

    All in this process: it measures the client as much as the cluster.
    """
    read = 0
    expected = load.messages * load.groups
    done = asyncio.Event()
    body = b"x" * load.size_bytes

    async def follow(consumer: AsyncPullConsumer, queue: MessageQueue) -> None:
        nonlocal read
        while True:
            messages = await consumer.pull(queue, timeout_s=1.0)
            read += len(messages)
            # Kept until the next ones come, those of so many readers would fill all caches.
            del messages
            if read >= expected:
                done.set()

    config = PullConsumerConfig(pull_count_max=_PULL_COUNT, pull_bytes_max=_PULL_BYTES)
    async with contextlib.AsyncExitStack() as stack:
        sender = await stack.enter_async_context(producer(load))
        await sender.send(Message(load.topic, body))
        readers = []
        for number in range(load.groups):
            consumer = await stack.enter_async_context(
                AsyncPullConsumer(f"{_GROUP}_{number}", nameserver=load.nameserver, config=config)
            )
            for queue in await consumer.queues(load.topic):
                await consumer.seek_to_end(queue)
                readers.append(asyncio.create_task(follow(consumer, queue)))
        message = Message(load.topic, body)

        async def write() -> None:
            for _ in range(load.messages):
                await sender.wait_room()
                sender.send(message)

        started = time.perf_counter()
        await _until(done, [*readers, asyncio.create_task(write())], load.messages * load.groups)
        seconds = time.perf_counter() - started
    return Figures.of(
        "fan-out", messages=read, payload_bytes=read * load.size_bytes, seconds=seconds
    )
