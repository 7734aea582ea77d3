"""Checks of consuming, of retries, dead letters and filters; see `checks`."""

from __future__ import annotations

import asyncio
import tempfile
import time

from dledger import (
    AsyncSimpleConsumer,
    ConsumeFrom,
    Message,
    MessageModel,
    ReceivedMessage,
    SimpleConsumerConfig,
    Sql,
    errors,
)
from dledger.client.dead_letters import ReplayTarget
from dledger.codes import ResponseCode
from interop.apache.place import (
    PATIENCE_S,
    Different,
    Place,
    bodies,
    collector,
    consuming,
    until,
    until_seen,
)


async def push_group(place: Place) -> None:
    """Push consumers sharing a topic"""
    await place.create()
    ones, one = collector()
    others, other = collector()
    first, second = place.consumer(), place.consumer()
    async with consuming(first, one), consuming(second, other):
        await until(lambda: len(first.assignment) == len(second.assignment) == 2, "shared out")
        async with place.producer() as producer:
            await asyncio.gather(
                *(producer.send(Message(place.topic, b"%d" % n), queue=n % 4) for n in range(100))
            )
        await until(lambda: len(ones) + len(others) >= 100, "all messages")
    assert len({m.body for m in ones + others}) == 100
    assert ones
    assert others
    async with place.puller() as reader:
        committed = [await reader.committed(q) for q in await reader.queues(place.topic)]
    assert committed == [25] * 4


async def rebalance_at_once(place: Place) -> None:
    """Members that leave are noticed at once"""
    await place.create()
    _, handle = collector()
    stays = place.consumer(rebalance_interval_s=60.0)
    async with consuming(stays, handle):
        async with consuming(place.consumer(rebalance_interval_s=60.0), handle):
            await until(lambda: len(stays.assignment) == 2, "shared out")
        began = time.monotonic()
        await until(lambda: len(stays.assignment) == 4, "all taken back")
        assert time.monotonic() - began < 10


async def simple_consumer(place: Place) -> None:
    """Receive, acknowledge, change the invisible time (POP)"""
    await place.create()
    async with place.producer() as producer:
        for n in range(12):
            await producer.send(Message(place.topic, b"%d" % n), queue=n % 4)
    acknowledged: list[bytes] = []
    deliveries: list[bytes] = []
    config = SimpleConsumerConfig(session=place.session)
    async with AsyncSimpleConsumer(
        place.group,
        subscriptions={place.topic: "*"},
        nameserver=place.nameserver,
        consume_from=ConsumeFrom.EARLIEST,
        config=config,
    ) as consumer:
        deadline = time.monotonic() + 2 * PATIENCE_S
        while len(set(acknowledged)) < 12:
            assert time.monotonic() < deadline, f"acknowledged only {sorted(acknowledged)}"
            try:
                received = await consumer.receive(8, invisible_s=20, wait_s=3)
            except errors.BrokerResponseError as error:
                if error.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED:
                    raise Different(
                        "no: `receive` says that the broker has no such request"
                    ) from error
                raise
            for message in received:
                deliveries.append(message.body)
                if message.body == b"7" and deliveries.count(b"7") == 1:
                    await consumer.change_invisible_duration(message, 2)  # not now, soon
                    continue
                await consumer.ack(message)
                acknowledged.append(message.body)
        assert deliveries.count(b"7") == 2
        assert await consumer.receive(8, invisible_s=20, wait_s=2) == []
    assert len(deliveries) == 13


async def ordered(place: Place) -> None:
    """Ordered consumption with locks; a failure holds up its queue"""
    await place.create(queues=2)
    seen: list[tuple[int, int]] = []
    failed: set[bytes] = set()

    async def handle(message: ReceivedMessage) -> None:
        if message.body.endswith(b"3") and message.body not in failed:
            failed.add(message.body)
            raise ValueError("once")
        seen.append((message.queue_id, int(message.body)))

    async with place.producer() as producer:
        await asyncio.gather(
            *(producer.send(Message(place.topic, b"%d" % n), queue=n % 2) for n in range(40))
        )
    consumer = place.consumer(ordered=True, redelivery_min_s=0.1)
    async with consuming(consumer, handle, concurrency=4):
        await until(lambda: len(seen) >= 40, "all messages")
    for queue_id in (0, 1):
        assert [n for q, n in seen if q == queue_id] == list(range(queue_id, 40, 2))
    assert failed


async def retry(place: Place) -> None:
    """Failed message comes again (`nack(delay=1)`)"""
    await place.create()
    seen: list[tuple[str, bytes, int]] = []

    async def handle(message: ReceivedMessage) -> None:
        seen.append((message.topic, message.body, message.reconsume_times))
        if message.reconsume_times < 2:
            message.nack(delay=1, reason="again")

    async with place.producer() as producer:
        await producer.send(Message(place.topic, b"x"))
        async with consuming(place.consumer(), handle):
            await until(lambda: len(seen) >= 3, "three deliveries", 60)
    assert seen == [(place.topic, b"x", n) for n in range(3)]


async def dead_letters(place: Place) -> None:
    """Dead letters: put, read, replay"""
    await place.create()
    repaired = False
    seen: list[ReceivedMessage] = []

    async def handle(message: ReceivedMessage) -> None:
        if repaired:
            seen.append(message)
        else:
            message.nack(dead_letter=True, reason="broken")

    async with place.producer() as producer, place.admin() as admin:
        await producer.send(Message(place.topic, b"x", keys=["key"]))
        async with consuming(place.consumer(), handle):
            letters = admin.dead_letters()
            deadline = time.monotonic() + PATIENCE_S
            while not (queues := [q for q in await letters.queues(place.group) if q.count]):
                assert time.monotonic() < deadline, "no dead letter"
                await asyncio.sleep(0.2)
            [letter] = [letter async for letter in letters.read(queues[0])]
            assert letter.message.body == b"x"
            assert letter.original_topic == place.topic
            repaired = True
            await letters.replay(letter, ReplayTarget.GROUP)
            await until(lambda: seen, "the replayed message")
    assert seen[0].topic == place.topic
    if letter.reason != "broken":
        raise Different("yes; the reason is not kept")


async def dead_after_retries(place: Place) -> None:
    """Dead letter after the group's maximum of retries"""
    await place.create()
    seen: list[int] = []

    async def handle(message: ReceivedMessage) -> None:
        seen.append(message.reconsume_times)
        message.nack(delay=1)

    async with place.producer() as producer, place.admin() as admin:
        await producer.send(Message(place.topic, b"x"))
        async with consuming(place.consumer(reconsume_max=1), handle):
            letters = admin.dead_letters()
            deadline = time.monotonic() + 60
            while not any(q.count for q in await letters.queues(place.group)):
                assert time.monotonic() < deadline, "no dead letter"
                await asyncio.sleep(0.2)
    assert seen == [0, 1]


async def tag_filter(place: Place) -> None:
    """Filter by tags"""
    await place.create()
    async with place.producer() as producer:
        for tag in ("a", "b", "c", "AaAa", "BBBB"):  # the last two have the same hash
            await producer.send(Message(place.topic, tag.encode(), tags=tag))
    seen, handle = collector()
    async with consuming(place.consumer("a || c || AaAa"), handle):
        await until(lambda: len(seen) >= 3, "three messages")
        await asyncio.sleep(0.5)
    assert bodies(seen) == ["AaAa", "a", "c"]


async def sql_filter(place: Place) -> None:
    """Filter by SQL, push and pull"""
    await place.create()
    async with place.producer() as producer:
        for n in range(6):
            properties = {"n": str(n), "color": "red" if n % 2 else "blue"}
            await producer.send(Message(place.topic, b"%d" % n, properties=properties))
        await producer.send(Message(place.topic, b"none"))
    condition = Sql("n BETWEEN 1 AND 4 AND color = 'red'")
    seen, handle = collector()
    async with consuming(place.consumer(condition), handle):
        await until(lambda: len(seen) >= 2, "two messages")
        await asyncio.sleep(0.5)
    assert bodies(seen) == ["1", "3"]
    assert bodies(await place.read_all(2, condition)) == ["1", "3"]
    try:
        async with place.consumer(Sql("n >"), group=f"{place.group}-wrong"):
            raise AssertionError("a condition that makes no sense was taken")
    except errors.BrokerResponseError:
        pass


async def broadcast(place: Place) -> None:
    """Broadcasting"""
    await place.create()
    async with place.producer() as producer:
        for n in range(10):
            await producer.send(Message(place.topic, b"%d" % n))
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        heard = []
        for directory in (here, there):
            seen, handle = collector()
            consumer = place.consumer(
                message_model=MessageModel.BROADCASTING, offset_directory=directory
            )
            async with consuming(consumer, handle):
                await until_seen(seen, 10)
            heard.append(bodies(seen))
    assert heard[0] == heard[1]


async def request_reply(place: Place) -> None:
    """Request and reply"""
    await place.create()
    async with place.producer() as producer:

        async def answer(message: ReceivedMessage) -> None:
            await producer.reply(message, message.body.upper(), properties={"n": "1"})

        async with consuming(place.consumer(), answer):
            reply = await producer.request(Message(place.topic, b"loud"), timeout_s=PATIENCE_S)
    assert reply.body == b"LOUD"
