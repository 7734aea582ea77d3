"""Loads that send."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator

from dledger.bench.figures import Figures
from dledger.bench.load import Load
from dledger.client.admin import AsyncAdmin
from dledger.client.config import ProducerConfig
from dledger.client.producer import AsyncProducer
from dledger.client.results import SendResult
from dledger.message import Message

_GROUP = "dledger_bench_producer"


async def prepare(load: Load) -> None:
    """Makes the topic of a load if it does not exist.

    Raises:
        DLedgerError: No cluster answers.
    """
    async with AsyncAdmin(nameserver=load.nameserver) as admin:
        if load.topic not in await admin.topics():
            await admin.create_topic(load.topic, queue_count=load.queues)


def producer(load: Load) -> AsyncProducer:
    """Returns a producer with as many messages under way as the load says.

    It does not compress: bodies of one letter would make large messages small ones.
    """
    config = ProducerConfig(in_flight_max=max(load.window, load.batch), compress_min_bytes=0)
    return AsyncProducer(_GROUP, nameserver=load.nameserver, config=config)


async def send(load: Load) -> Figures:
    """As many tasks as the window is wide, each awaiting one message after the other."""
    return await _send_from_tasks("send", load, load.window)


async def send_in_turn(load: Load) -> Figures:
    """One message after the other: the latency of a single send."""
    return await _send_from_tasks("latency", load, 1)


async def _send_from_tasks(case: str, load: Load, tasks: int) -> Figures:
    message = Message(load.topic, b"x" * load.size_bytes)
    latencies: list[float] = []
    clock = time.perf_counter
    async with producer(load) as sender:
        await sender.send(message)  # connects

        async def work(share: int) -> None:
            for _ in range(share):
                begun = clock()
                await sender.send(message)
                latencies.append(clock() - begun)

        share, more = divmod(load.messages, tasks)
        started = clock()
        async with asyncio.TaskGroup() as group:
            for number in range(tasks):
                group.create_task(work(share + (number < more)))
        seconds = clock() - started
    return _figures(case, load, len(latencies), seconds, latencies)


async def send_batches(load: Load) -> Figures:
    """Explicit batches, of which as many are under way as fit the window; at least two a queue."""
    messages = [Message(load.topic, b"x" * load.size_bytes) for _ in range(load.batch)]
    tasks = max(2 * load.queues, load.window // load.batch)
    left = max(1, load.messages // load.batch)
    sent = 0
    latencies: list[float] = []
    clock = time.perf_counter
    async with producer(load) as sender:
        await sender.send(messages[0])

        async def work() -> None:
            nonlocal left, sent
            while left > 0:
                left -= 1
                begun = clock()
                await sender.send_batch(messages)
                latencies.append(clock() - begun)
                sent += len(messages)

        started = clock()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(work())
        seconds = clock() - started
    return _figures("batch", load, sent, seconds, latencies)


async def send_paced(load: Load) -> Figures:
    """Messages at a steady rate, whether or not earlier ones are acknowledged.

    A latency begins when the message was due, so that a pause of the cluster is seen by every
    message that it delays.
    """
    message = Message(load.topic, b"x" * load.size_bytes)
    latencies: list[float] = []
    failures: list[BaseException] = []
    clock = time.perf_counter
    async with producer(load) as sender:
        await sender.send(message)
        started = clock()

        # No future is kept: the collector's pauses for hundreds of thousands would be measured.
        def note(due: float, sent: asyncio.Future[SendResult]) -> None:
            failure = sent.exception()
            if failure is not None:
                failures.append(failure)
            latencies.append(clock() - due)

        async for due in ticks(load, started):
            sender.send(message).add_done_callback(functools.partial(note, due))
        await sender.wait_idle()
        seconds = clock() - started
    if failures:
        raise failures[0]
    return _figures("paced", load, len(latencies), seconds, latencies)


async def ticks(load: Load, started: float) -> AsyncIterator[float]:
    """Yields when each message is due, not before that time; all that are due without a pause.

    Args:
        load: Its rate and number of messages count.
        started: On the clock of `time.perf_counter`.
    """
    for number in range(load.messages):
        due = started + number / load.rate_per_s
        pause = due - time.perf_counter()
        if pause > 0:
            # Timers are no finer than this; a little early would be a little flattering.
            await asyncio.sleep(pause)
        elif number % 64 == 0:
            await asyncio.sleep(0)  # behind: let answers in
        yield due


def _figures(
    case: str, load: Load, messages: int, seconds: float, latencies: list[float]
) -> Figures:
    return Figures.of(
        case,
        messages=messages,
        payload_bytes=messages * load.size_bytes,
        seconds=seconds,
        latencies_s=latencies,
    )
