"""What our client must be able to do against any RocketMQ broker: one function a capability.

The same functions run against our own brokers (tests/integration/test_client_checks.py, with every
change) and against Apache RocketMQ (`python -m interop.apache.run`). A check ends in silence, or
raises `Different` to say what a broker does instead, or fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dledger import (
    AsyncAdmin,
    AsyncProducer,
    AsyncPullConsumer,
    AsyncPushConsumer,
    AsyncSimpleConsumer,
    AsyncTransactionProducer,
    ConsumeFrom,
    GroupConfig,
    Message,
    MessageModel,
    ProducerConfig,
    PushConsumerConfig,
    ReceivedMessage,
    SendResult,
    SessionConfig,
    SimpleConsumerConfig,
    Sql,
    TransactionState,
    errors,
)
from dledger.client.dead_letters import ReplayTarget
from dledger.codes import ResponseCode

PATIENCE_S = 30.0

AsyncHandler = Callable[[ReceivedMessage], Awaitable[None]]


class Different(Exception):
    """The broker has this not, or in another way; the text says how, for the table."""


@dataclass
class Place:
    """A cluster to check, and names that no other check uses."""

    nameserver: str
    name: str
    is_ours: bool
    crash: Callable[[], None] | None = None  # ends the leader as kill -9 does, and starts it again
    session: SessionConfig = field(
        default_factory=lambda: SessionConfig(route_poll_s=1.0, heartbeat_s=5.0)
    )

    @property
    def topic(self) -> str:
        return f"check-{self.name}"

    @property
    def group(self) -> str:
        return f"check-{self.name}-group"

    def producer(self, **settings: Any) -> AsyncProducer:
        config = ProducerConfig(session=self.session, **settings)
        return AsyncProducer(f"{self.name}-producers", nameserver=self.nameserver, config=config)

    def puller(self, group: str = "") -> AsyncPullConsumer:
        return AsyncPullConsumer(group or self.group, nameserver=self.nameserver)

    def consumer(
        self, expression: str | Sql = "*", group: str = "", **arguments: Any
    ) -> AsyncPushConsumer:
        settings = {
            name: arguments.pop(name)
            for name in list(arguments)
            if name in PushConsumerConfig.__dataclass_fields__
        }
        settings = {"suspend_s": 1.0, "rebalance_interval_s": 2.0, **settings}
        return AsyncPushConsumer(
            group or self.group,
            subscriptions={self.topic: expression},
            nameserver=self.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
            config=PushConsumerConfig(session=self.session, **settings),
            **arguments,
        )

    def admin(self) -> AsyncAdmin:
        return AsyncAdmin(nameserver=self.nameserver)

    async def create(self, queues: int = 4) -> None:
        async with self.admin() as admin:
            await admin.create_topic(self.topic, queue_count=queues)

    async def read_all(self, count: int, expression: str | Sql = "*") -> list[ReceivedMessage]:
        """The topic's messages, by queue and offset, as soon as so many can be read.

        Apache's brokers acknowledge a message a moment before it can be read.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found: list[ReceivedMessage] = []
            async with self.puller(f"{self.group}-reader") as consumer:
                for queue in await consumer.queues(self.topic):
                    end = await consumer.offset_max(queue)
                    await consumer.seek_to_begin(queue)
                    while await consumer.position(queue) < end:
                        found += await consumer.pull(queue, timeout_s=1, expression=expression)
            if len(found) >= count or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        await asyncio.sleep(0.02)


async def until_seen(seen: list[ReceivedMessage], count: int) -> None:
    await until(lambda: len(seen) >= count, f"{count} messages")


@contextlib.asynccontextmanager
async def consuming(
    consumer: AsyncPushConsumer, handle: AsyncHandler, concurrency: int = 1
) -> AsyncIterator[None]:
    """Runs a consumer beside the block."""
    async with consumer:
        assert await consumer.wait_assigned(PATIENCE_S), "no queues"
        task = asyncio.create_task(consumer.run(handle, concurrency=concurrency))
        try:
            yield
        finally:
            consumer.stop()
            await task


def collector() -> tuple[list[ReceivedMessage], AsyncHandler]:
    seen: list[ReceivedMessage] = []

    async def handle(message: ReceivedMessage) -> None:
        seen.append(message)

    return seen, handle


def bodies(messages: list[ReceivedMessage]) -> list[str]:
    return sorted(message.body.decode() for message in messages)


# --- sending --------------------------------------------------------------------------------------


async def send_and_pull(place: Place) -> None:
    """Send one message with tag, keys, properties; pull it"""
    await place.create()
    message = Message(
        place.topic,
        "grüß".encode(),
        tags="blue",
        keys=["k1", "k2"],
        properties={"a": "1", "ä": "ß"},
    )
    async with place.producer() as producer:
        result = await producer.send(message)
    [found] = await place.read_all(1)
    assert (found.body, found.tags, list(found.keys)) == (message.body, "blue", ["k1", "k2"])
    assert found.properties["a"] == "1"
    assert found.properties["ä"] == "ß"
    assert (found.message_id, found.queue_offset) == (result.message_id, result.queue_offset)
    assert found.offset_message_id == result.offset_message_id


async def send_many(place: Place) -> None:
    """Automatic batches, order of each queue kept"""
    await place.create()
    async with place.producer() as producer:
        await asyncio.gather(
            *(producer.send(Message(place.topic, b"%06d" % n), queue=n % 4) for n in range(2000))
        )
    found = await place.read_all(2000)
    assert len(found) == 2000
    for queue_id in range(4):
        numbers = [int(m.body) for m in found if m.queue_id == queue_id]
        assert numbers == sorted(numbers)


async def send_batch(place: Place) -> None:
    """Explicit batch, stored together"""
    await place.create()
    async with place.producer() as producer:
        results = await producer.send_batch([Message(place.topic, b"%d" % n) for n in range(5)])
    first = results[0]
    assert [r.queue_offset for r in results] == list(
        range(first.queue_offset, first.queue_offset + 5)
    )
    assert [r.queue for r in results] == [first.queue] * 5
    by_id = {m.message_id: m for m in await place.read_all(5)}
    assert [by_id[r.message_id].body for r in results] == [b"%d" % n for n in range(5)]


async def send_oneway(place: Place) -> None:
    """One-way send"""
    await place.create()
    async with place.producer() as producer:
        await producer.send_oneway(Message(place.topic, b"x"))
        seen, handle = collector()
        async with consuming(place.consumer(), handle):
            await until(lambda: seen, "the message")


async def send_large(place: Place) -> None:
    """Large body, compressed on the way"""
    await place.create()
    body = b"0123456789abcdef" * 16_384
    async with place.producer() as producer:
        await producer.send(Message(place.topic, body))
    [found] = await place.read_all(1)
    assert found.body == body


async def send_to_new_topic(place: Place) -> None:
    """A send creates its topic"""
    async with place.producer() as producer:
        await producer.send(Message(place.topic, b"x"))
    assert bodies(await place.read_all(1)) == ["x"]


async def unknown_topic_of_consumer(place: Place) -> None:
    """Consumer of a topic that does not exist yet"""
    seen, handle = collector()
    consumer = place.consumer()
    async with consumer:
        task = asyncio.create_task(consumer.run(handle))
        async with place.producer() as producer:
            await producer.send(Message(place.topic, b"x"))
        await until(lambda: seen, "the message")
        consumer.stop()
        await task


async def shard_keys(place: Place) -> None:
    """Shard keys"""
    await place.create()
    async with place.producer() as producer:
        sends = [
            producer.send(Message(place.topic, b"%s %d" % (key.encode(), n)), shard_key=key)
            for n in range(10)
            for key in ("a", "b", "c")
        ]
        results = await asyncio.gather(*sends)
    assert len({r.queue for r in results[::3]}) == 1
    assert len(await place.read_all(30)) == 30


async def idempotence(place: Place) -> None:
    """Repeated sends stored once"""
    await place.create()
    async with place.producer() as producer:
        result = await producer.send(Message(place.topic, b"x"))
        plain = producer._sender._plain
    assert not result.may_be_twice  # it was not repeated
    if plain:
        raise Different("no: results say `may_be_twice` after an attempt of unknown outcome")


async def crash_in_the_middle(place: Place) -> None:
    """kill -9 of the broker (of the leader) while sending and consuming"""
    await place.create()
    sent: dict[bytes, SendResult] = {}
    twice: set[bytes] = set()
    assert place.crash is not None
    seen, handle = collector()
    running = True

    async def load(producer: AsyncProducer, worker: int) -> None:
        number = 0
        while running:
            body = b"%d-%d" % (worker, number)
            result = await producer.send(Message(place.topic, body))
            sent[body] = result
            if result.may_be_twice:
                twice.add(body)
            number += 1
            await asyncio.sleep(0.002)

    async with (
        place.producer(send_timeout_s=60.0) as producer,
        consuming(place.consumer(), handle),
    ):
        loads = [asyncio.create_task(load(producer, worker)) for worker in range(4)]
        await until(lambda: len(sent) > 400, "messages before")
        before = len(sent)
        await asyncio.to_thread(place.crash)
        await until(lambda: len(sent) > before + 400, "messages after", 60)
        running = False
        await asyncio.gather(*loads)
        await until(lambda: {m.body for m in seen} >= set(sent), "all acknowledged messages")
    stored = bodies(await place.read_all(len(sent)))
    assert set(stored) == {body.decode() for body in sent}
    doubled = {body for body in stored if stored.count(body) > 1}
    assert doubled <= {body.decode() for body in twice}, "a duplicate that no result told of"
    if not place.is_ours:
        raise Different(
            "yes, by its restart: one broker has no other replica. What was acknowledged after a "
            "write to memory survives the end of the process, not that of the machine"
        )


# --- delays and transactions ----------------------------------------------------------------------


async def delay_level(place: Place) -> None:
    """Delay level (property DELAY)"""
    await place.create()
    async with place.producer() as producer:
        sent = time.time()
        await producer.send(Message(place.topic, b"x", properties={"DELAY": "1"}))
        seen, handle = collector()
        async with consuming(place.consumer(), handle):
            await until(lambda: seen, "the message")
    assert time.time() - sent >= 0.9, "early"
    assert seen[0].topic == place.topic


async def delay_any(place: Place) -> None:
    """Any delay (`delay=`, `deliver_at=`)"""
    await place.create()
    async with place.producer() as producer:
        sent = time.time()
        try:
            await producer.send(Message(place.topic, b"x"), delay=2.5)
        except errors.MessageRejectedError as error:
            raise Different(
                "no: our client refuses to send it, as it would be delivered at once; use levels"
            ) from error
        seen, handle = collector()
        async with consuming(place.consumer(), handle):
            await until(lambda: seen, "the message")
    assert time.time() - sent >= 2.4, "early"


async def recall(place: Place) -> None:
    """Recall of a delayed message"""
    await place.create()
    async with place.producer() as producer:
        try:
            result = await producer.send(Message(place.topic, b"x"), delay=3)
        except errors.MessageRejectedError as error:
            raise Different("no, nor any delay but levels") from error
        if not result.recall_handle:
            raise Different("no: results have no recall handle")
        await producer.recall(result.recall_handle)
        await asyncio.sleep(4)
    assert await place.read_all(0) == []


async def transactions(place: Place) -> None:
    """Transactions: commit, rollback, check-back"""
    await place.create()
    asked: list[bytes] = []

    async def check(message: ReceivedMessage) -> TransactionState:
        asked.append(message.body)
        is_good = message.body in (b"yes", b"forgotten")
        return TransactionState.COMMIT if is_good else TransactionState.ROLLBACK

    def decide(state: TransactionState, message: Message, half: SendResult) -> TransactionState:
        return state

    group = f"{place.name}-transactions"
    states = {
        b"yes": TransactionState.COMMIT,
        b"no": TransactionState.ROLLBACK,
        b"forgotten": TransactionState.UNKNOWN,
        b"forgotten and wrong": TransactionState.UNKNOWN,
    }
    config = ProducerConfig(session=place.session)
    seen, handle = collector()
    async with (
        AsyncTransactionProducer(
            group, checker=check, nameserver=place.nameserver, config=config
        ) as producer,
        consuming(place.consumer(), handle),
    ):
        for body, state in states.items():
            # The default immunity is for production; a check need not wait for it.
            await producer.send(Message(place.topic, body), partial(decide, state), immunity_s=1)
        forgotten = {b"forgotten", b"forgotten and wrong"}
        await until(lambda: forgotten <= set(asked), "both are asked for", 90)
        await until(lambda: len({m.body for m in seen}) >= 2, "two become visible", 60)
        await asyncio.sleep(4)  # for what should not come
    assert set(bodies(seen)) == {"forgotten", "yes"}
    if place.is_ours:
        assert (len(asked), len(seen)) == (2, 2)
    else:  # seen in some runs, in others not
        raise Different(
            "yes; for some seconds it may also ask about transactions that were ended, and an "
            "answer may store their message a second time"
        )


# --- consuming ------------------------------------------------------------------------------------


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


# --- offsets, queries, administration -------------------------------------------------------------


async def seek(place: Place) -> None:
    """Seek by offset and time; committed offsets"""
    await place.create(queues=1)
    async with place.producer() as producer:
        for n in range(3):
            await producer.send(Message(place.topic, b"%d" % n))
        await asyncio.sleep(0.1)
        moment = int(time.time() * 1000)
        await asyncio.sleep(0.5)
        for n in range(3, 6):
            await producer.send(Message(place.topic, b"%d" % n))
    async with place.puller() as consumer:
        [queue] = await consumer.queues(place.topic)
        deadline = time.monotonic() + PATIENCE_S
        while await consumer.offset_max(queue) < 6:
            assert time.monotonic() < deadline, "messages that were acknowledged"
        before = await consumer.committed(queue)
        consumer.seek(queue, 4)
        assert bodies(await consumer.pull(queue)) == ["4", "5"]
        by_time = await consumer.seek_to_time(queue, moment)
        assert await consumer.seek_to_end(queue) == 6
        assert await consumer.pull(queue, timeout_s=0) == []
        await consumer.commit()
        assert await consumer.committed(queue) == 6
        consumer.seek(queue, 1000)
        try:
            await consumer.pull(queue, timeout_s=1)
        except errors.OffsetOutOfRangeError as error:
            assert error.offset_max == 6, error
        else:
            raise AssertionError("an offset beyond the end was taken")
    if place.is_ours:
        assert (before, by_time) == (None, 3)
    else:
        assert before in (0, None)  # None since 5.0
        assert by_time in (2, 3)  # 4.9 takes the nearest message, be it an earlier one
        nearest = (
            "" if by_time == 3 else "; a time finds the nearest message, perhaps an earlier one"
        )
        if before is None and by_time == 3:
            return
        raise Different(
            "yes; a queue never read before has the committed offset 0, not None, as long as its "
            f"beginning is in memory: `consume_from` does not apply then{nearest}"
        )


async def queries(place: Place) -> None:
    """Queries by key, unique key, id"""
    await place.create()
    async with place.producer() as producer, place.admin() as admin:
        result = await producer.send(Message(place.topic, b"x", keys=["order-7"]))
        deadline = time.monotonic() + PATIENCE_S
        while not (found := await admin.messages_by_key(place.topic, "order-7")):
            assert time.monotonic() < deadline, "not found by key"
            await asyncio.sleep(0.2)
        assert [m.body for m in found] == [b"x"]
        assert (await admin.message(result.message_id, place.topic)).body == b"x"
        assert (await admin.message(result.offset_message_id)).body == b"x"
        try:
            await admin.message("0" * 32, place.topic)
        except errors.DLedgerError as error:
            assert error.definite
        else:
            raise AssertionError("found what does not exist")


async def reset_offline(place: Place) -> None:
    """Reset and clone of offsets, no members"""
    await place.create()
    async with place.producer() as producer, place.admin() as admin:
        for n in range(8):
            await producer.send(Message(place.topic, b"%d" % n), queue=n % 4)
        seen, handle = collector()
        async with consuming(place.consumer(), handle):
            await until(lambda: len(seen) >= 8, "all messages")
        assert sum(p.lag for p in await admin.consumer_progress(place.group, place.topic)) == 0
        await admin.reset_offsets(place.group, place.topic, ConsumeFrom.EARLIEST)
        assert sum(p.lag for p in await admin.consumer_progress(place.group, place.topic)) == 8
        again, handle = collector()
        async with consuming(place.consumer(), handle):
            await until(lambda: len(again) >= 8, "all messages again")
        await admin.create_group(GroupConfig(name=f"{place.group}-copy"))
        await admin.clone_offsets(place.group, f"{place.group}-copy", place.topic)
        progress = await admin.consumer_progress(f"{place.group}-copy", place.topic)
        assert sum(p.lag for p in progress) == 0


async def move_one_queue(place: Place) -> None:
    """Moving a group in one queue"""
    await place.create()
    async with place.producer() as producer, place.admin() as admin:
        for n in range(8):
            await producer.send(Message(place.topic, b"%d" % n), queue=n % 4)
        seen, handle = collector()
        async with consuming(place.consumer(), handle):
            await until(lambda: len(seen) >= 8, "all messages")
            queue = (await producer.queues(place.topic))[2]
            try:
                await admin.move_offset(place.group, queue, 1)
                online = True
            except errors.InvalidParameterError:
                online = False
        if not online:
            await admin.move_offset(place.group, queue, 1)
        progress = await admin.consumer_progress(place.group, place.topic)
        if not online:
            offsets = [p.consumer_offset for p in progress]
            assert offsets == [2, 2, 1, 2], offsets
            raise Different(
                "yes, while no member is online (before 5.0 they would move all queues)"
            )
        assert sum(p.lag for p in progress) <= 1


async def reset_online(place: Place) -> None:
    """Reset of offsets while members run"""
    await place.create()
    async with place.producer() as producer, place.admin() as admin:
        for n in range(8):
            await producer.send(Message(place.topic, b"%d" % n), queue=n % 4)
        seen, handle = collector()
        async with consuming(place.consumer(commit_interval_s=0.2), handle):
            await until(lambda: len(seen) >= 8, "all messages")
            await asyncio.sleep(1)
            await admin.reset_offsets(place.group, place.topic, ConsumeFrom.EARLIEST)
            await until(lambda: len(seen) >= 16, "all messages again")
    assert len({m.body for m in seen}) == 8


async def administration(place: Place) -> None:
    """Topics, groups, members, progress"""
    await place.create(queues=3)
    async with place.admin() as admin, place.producer() as producer:
        assert place.topic in await admin.topics()
        assert {c.write_queue_count for c in (await admin.topic(place.topic)).values()} == {3}
        assert place.topic in {d.name for d in await admin.describe_topics()}
        await admin.create_group(GroupConfig(name=place.group, retry_max=3))
        assert {g.retry_max for g in await admin.groups() if g.name == place.group} == {3}
        await producer.send(Message(place.topic, b"x"))
        await place.read_all(1)  # until it can be
        assert sum(b.offset_max for b in await admin.bounds(place.topic)) == 1
        seen, handle = collector()
        async with consuming(place.consumer(), handle):
            await until(lambda: seen, "the message")
            connections = await admin.consumer_connections(place.group)
            assert connections is not None
            assert len(connections.connections) == 1
            assert place.group in await admin.topic_consumers(place.topic)
        await admin.delete_group(place.group)
        assert place.group not in {g.name for g in await admin.groups()}
        await admin.delete_topic(place.topic)
        assert place.topic not in await admin.topics()


async def order_topic(place: Place) -> None:
    """Order topics (ORDER_TOPIC_CONFIG)"""
    await place.create(queues=4)
    async with place.admin() as admin:
        [name] = (await admin.cluster()).brokers
        await admin.topology().set_order(place.topic, {name: 2})
        assert await admin.topology().order(place.topic) == {name: 2}
    async with place.producer() as producer:
        assert [q.queue_id for q in await producer.queues(place.topic)] == [0, 1]
    async with place.admin() as admin:
        await admin.topology().set_order(place.topic, {})
        assert await admin.topology().order(place.topic) == {}


CHECKS = (
    send_and_pull,
    send_many,
    send_batch,
    send_oneway,
    send_large,
    send_to_new_topic,
    unknown_topic_of_consumer,
    shard_keys,
    idempotence,
    delay_level,
    delay_any,
    recall,
    transactions,
    push_group,
    rebalance_at_once,
    simple_consumer,
    ordered,
    retry,
    dead_letters,
    dead_after_retries,
    tag_filter,
    sql_filter,
    broadcast,
    request_reply,
    seek,
    queries,
    reset_offline,
    move_one_queue,
    reset_online,
    administration,
    order_topic,
    crash_in_the_middle,
)
