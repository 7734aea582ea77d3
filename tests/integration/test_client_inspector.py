"""What became of a message, and quotas set by name, on real replicas."""

import asyncio
import time

import pytest

from broker.quotas import MESSAGES
from dledger import AsyncAdmin, Message
from dledger.errors import (
    GroupNotFoundError,
    InvalidParameterError,
    NotFoundError,
    SendFailedError,
    TopicNotFoundError,
)
from tests.support.brokers import eventually
from tests.support.cluster import cluster


def test_a_message_is_explained_from_log_to_dead_letter(tmp_path):
    async def handler(message):
        if message.body == b"bad":
            raise ValueError("no")

    async def run():
        async with cluster(tmp_path) as group:
            await group.create_topic("t", queues=1)
            async with group.producer() as producer:
                good = await producer.send(Message("t", b"good"))
                bad = await producer.send(Message("t", b"bad"))
                admin = AsyncAdmin(nameserver=group.nameserver, config=group.admin_config)
                async with admin, group.consumer(reconsume_max=0) as consumer:
                    running = asyncio.create_task(consumer.run(handler))
                    inspector = admin.inspector()

                    async def dead():
                        found = await inspector.explain(bad.message_id, "t")
                        return found.groups and found.groups[0].dead_letters

                    await eventually(dead, "the bad message is a dead letter", 20)
                    await consumer.commit()
                    late = await producer.send(Message("t", b"good"))
                    consumer.stop()
                    await running
                    await group.same_state()

                    leader = await group.leader()
                    found = await inspector.explain(good.offset_message_id)
                    assert found.message.body == b"good"
                    entry = leader.log.read_entries(found.index, 1, 1)[0]
                    assert (entry.index, entry.term) == (found.index, found.term)
                    assert b"good" in bytes(entry.body)
                    assert {copy.replica_id for copy in found.replicas} == set(group.brokers)
                    assert all(copy.holds and copy.is_durable for copy in found.replicas)
                    assert sum(copy.is_leader for copy in found.replicas) == 1
                    (view,) = found.groups
                    assert (view.group, view.is_passed) == ("cg", True)
                    assert (view.retries, view.dead_letters) == ([], [])
                    last = await inspector.explain(late.message_id, "t")
                    assert last.index > found.index

                    with pytest.raises(NotFoundError):
                        await inspector.explain("0" * 32, "t")

    asyncio.run(run())


def test_a_replica_that_is_away_does_not_answer(tmp_path):
    async def run():
        async with cluster(tmp_path) as group:
            await group.create_topic("t", queues=1)
            admin = AsyncAdmin(nameserver=group.nameserver, config=group.admin_config)
            async with group.producer() as producer, admin:
                sent = await producer.send(Message("t", b"x"))
                leader = await group.leader()
                name = next(n for n, b in group.brokers.items() if b is not leader)
                await group.brokers.pop(name).stop()
                inspector = admin.inspector()

                async def held_by_two():
                    copies = (await inspector.explain(sent.message_id, "t")).replicas
                    holders = {copy.replica_id for copy in copies if copy.holds}
                    return holders if len(holders) == 2 else None

                # The acknowledgement may have been that of the one that is away now.
                assert name not in await eventually(held_by_two, "two replicas hold it")

    asyncio.run(run())


def test_a_producer_waits_for_its_quota(tmp_path):
    async def run():
        async with cluster(tmp_path, count=1) as group:
            await group.create_topic("t", queues=1)
            admin = AsyncAdmin(nameserver=group.nameserver, config=group.admin_config)
            async with group.producer() as producer, admin:
                inspector = admin.inspector()
                await inspector.change_topic("t", {MESSAGES: "20"})
                assert (await admin.topic("t"))["broker-a"].attributes == {MESSAGES: "20"}
                began = time.monotonic()
                for _ in range(50):
                    await producer.send(Message("t", b"x"))
                assert time.monotonic() - began > 1.0
                await inspector.change_topic("t", {MESSAGES: "0.001"})
                with pytest.raises(SendFailedError, match=r"quota\.messages_per_second") as failed:
                    for _ in range(2):
                        await producer.send(Message("t", b"x"))
                assert failed.value.definite
                await inspector.change_topic("t", {MESSAGES: None})
                assert (await admin.topic("t"))["broker-a"].attributes == {}
                await producer.send(Message("t", b"x"))

    asyncio.run(run())


def test_attributes_of_what_is_not_there_or_makes_no_sense(tmp_path):
    async def run():
        async with cluster(tmp_path, count=1) as group:
            admin = AsyncAdmin(nameserver=group.nameserver, config=group.admin_config)
            async with admin:
                inspector = admin.inspector()
                with pytest.raises(TopicNotFoundError):
                    await inspector.change_topic("none", {MESSAGES: "1"})
                with pytest.raises(GroupNotFoundError):
                    await inspector.change_group("none", {MESSAGES: "1"})
                await group.create_topic("t")
                with pytest.raises(InvalidParameterError):
                    await inspector.change_topic("t", {"a": "1,-b"})

    asyncio.run(run())
