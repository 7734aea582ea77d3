"""Checks of sending, and of a crash in the middle of it; see `checks`."""

from __future__ import annotations

import asyncio

from dledger import (
    AsyncProducer,
    Message,
    SendResult,
)
from interop.apache.place import Different, Place, bodies, collector, consuming, until


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
