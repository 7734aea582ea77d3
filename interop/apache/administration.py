"""Checks of offsets, queries and administration; see `checks`."""

from __future__ import annotations

import asyncio
import time

from dledger import (
    ConsumeFrom,
    GroupConfig,
    Message,
    errors,
)
from interop.apache.place import PATIENCE_S, Different, Place, bodies, collector, consuming, until


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
