"""The simple consumer against real brokers in this process: one group, two groups, fail-over."""

import asyncio
import time

import pytest

from dledger import (
    AsyncProducer,
    AsyncPushConsumer,
    AsyncSimpleConsumer,
    ConsumeFrom,
    Message,
    PushConsumerConfig,
    SimpleConsumer,
    SimpleConsumerConfig,
    Sql,
)
from dledger.errors import (
    ClientClosedError,
    ConfigError,
    InvalidParameterError,
    ReceiptHandleError,
    RouteNotFoundError,
)
from dledger.testing import AsyncLocalCluster


async def produce(cluster, count, *, topic="t", start=0, **fields):
    async with AsyncProducer("p", nameserver=cluster.nameserver) as producer:
        await asyncio.gather(
            *(
                producer.send(Message(topic, b"%d" % number, **fields))
                for number in range(start, start + count)
            )
        )


def simple(cluster, group="g", **more):
    more.setdefault("subscriptions", {"t": "*"})
    return AsyncSimpleConsumer(group, nameserver=cluster.nameserver, **more)


async def receive_all(consumer, *, until, **more):
    """Receives until so many different messages came, or for 20 s."""
    found = {}
    deadline = time.monotonic() + 20
    while len(found) < until and time.monotonic() < deadline:
        for message in await consumer.receive(32, wait_s=1, **more):
            found[message.body] = message
    return found


def with_cluster(scenario, *, groups=1, replicas=1):
    async def run():
        async with AsyncLocalCluster(groups=groups, replicas=replicas) as cluster:
            await cluster.create_topic("t", queue_count=2)
            await scenario(cluster)

    asyncio.run(run())


def test_what_is_acknowledged_is_done_and_the_rest_comes_again():
    async def scenario(cluster):
        await produce(cluster, 10)
        async with simple(cluster) as consumer:
            found = await receive_all(consumer, until=10, invisible_s=1.5)
            assert len(found) == 10
            kept = {body: found.pop(body) for body in (b"3", b"7")}
            await asyncio.gather(*(consumer.ack(message) for message in found.values()))
            again = await receive_all(consumer, until=2)
            assert set(again) == set(kept)
            assert [message.reconsume_times for message in again.values()] == [1, 1]
            with pytest.raises(ReceiptHandleError):
                await consumer.ack(kept[b"3"])
            await consumer.change_invisible_duration(again[b"3"], 0)
            [third] = await consumer.receive(wait_s=5)
            assert (third.body, third.reconsume_times) == (b"3", 2)
            await consumer.ack(third)
            await consumer.ack(again[b"7"])
            await consumer.ack(again[b"7"])
            assert await consumer.receive(wait_s=0.2) == []

    with_cluster(scenario)


def test_every_message_goes_to_one_member():
    async def scenario(cluster):
        await produce(cluster, 80)
        got = []

        async def work(consumer):
            while messages := await consumer.receive(5, wait_s=1):
                for message in messages:
                    got.append((message.body, message.broker_name))
                    await consumer.ack(message)

        async with simple(cluster) as first, simple(cluster) as second:
            await asyncio.gather(work(first), work(first), work(second))
        assert sorted(body for body, _ in got) == sorted(b"%d" % n for n in range(80))
        assert {broker for _, broker in got} == {"broker-a", "broker-b"}

    with_cluster(scenario, groups=2)


def test_a_leader_dies_between_receive_and_acknowledgement():
    """Acknowledged stays acknowledged, by handles of the dead leader too; the rest comes again."""

    async def scenario(cluster):
        await produce(cluster, 12)
        async with simple(cluster) as consumer:
            found = await receive_all(consumer, until=12, invisible_s=6)
            bodies = sorted(found)
            for body in bodies[:4]:
                await consumer.ack(found[body])
            await cluster.kill_leader()
            for body in bodies[4:8]:
                await consumer.ack(found[body])
            again = await receive_all(consumer, until=4)
            assert sorted(again) == bodies[8:]
            assert {message.reconsume_times for message in again.values()} == {1}
            for message in again.values():
                await consumer.ack(message)
            assert await consumer.receive(wait_s=1) == []

    with_cluster(scenario, replicas=3)


def test_a_receive_that_waits_goes_on_at_the_next_leader():
    async def scenario(cluster):
        async with simple(cluster) as consumer:
            assert await consumer.receive(wait_s=0) == []
            waiting = asyncio.create_task(consumer.receive(wait_s=30))
            await asyncio.sleep(0.3)
            await cluster.kill_leader()
            await produce(cluster, 1)
            started = time.monotonic()
            [message] = await waiting
            assert message.body == b"0"
            assert time.monotonic() - started < 5

    with_cluster(scenario, replicas=3)


def test_filters_and_subscriptions():
    async def scenario(cluster):
        await cluster.create_topic("u", queue_count=1)
        await produce(cluster, 3, tags="a", properties={"n": "1"})
        await produce(cluster, 3, start=3, tags="b", properties={"n": "2"})
        await produce(cluster, 1, topic="u", start=9)
        async with simple(cluster, "tags", subscriptions={"t": "a"}) as consumer:
            assert sorted(await receive_all(consumer, until=3)) == [b"0", b"1", b"2"]
            await consumer.subscribe("u")
            assert sorted(await receive_all(consumer, until=1)) == [b"9"]
            await consumer.unsubscribe("u")
            assert await consumer.receive(wait_s=0.1) == []
        async with simple(cluster, "sql", subscriptions={"t": Sql("n = 2")}) as consumer:
            assert sorted(await receive_all(consumer, until=3)) == [b"3", b"4", b"5"]

    with_cluster(scenario)


def test_a_group_goes_from_pushing_to_popping_with_what_failed_before():
    async def scenario(cluster):
        await produce(cluster, 4)
        push = AsyncPushConsumer(
            "g",
            subscriptions={"t": "*"},
            nameserver=cluster.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
            config=PushConsumerConfig(commit_interval_s=0.1),
        )
        async with push:
            for _ in range(4):
                message = await push.poll(10)
                if message.body == b"2":
                    message.nack(0.0)
            # Asking for the next one finishes the last.
            again = await push.poll(10)
            assert again.body == b"2"
            again.nack(0.5)
            await push.commit()
        async with simple(cluster) as consumer:
            found = await receive_all(consumer, until=1)
            assert set(found) == {b"2"}
            message = found[b"2"]
            assert (message.topic, message.reconsume_times) == ("t", 2)
            await consumer.ack(message)
            assert await consumer.receive(wait_s=0.2) == []

    with_cluster(scenario)


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError):
        AsyncSimpleConsumer("g", subscriptions={}, nameserver="127.0.0.1:1")
    with pytest.raises(ConfigError):
        SimpleConsumerConfig(poll_s=0)

    async def scenario(cluster):
        consumer = simple(cluster, subscriptions={"unknown": "*"})
        with pytest.raises(ClientClosedError):
            await consumer.receive()
        async with consumer:
            with pytest.raises(InvalidParameterError):
                await consumer.receive(33)
            with pytest.raises(InvalidParameterError):
                await consumer.receive(invisible_s=0)
            with pytest.raises(InvalidParameterError):
                await consumer.ack(await some_message(cluster))
            with pytest.raises(RouteNotFoundError):
                await consumer.receive(wait_s=0)

    async def some_message(cluster):
        await produce(cluster, 1)
        async with AsyncPushConsumer(
            "other",
            subscriptions={"t": "*"},
            nameserver=cluster.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
        ) as push:
            return await push.poll(10)

    with_cluster(scenario)


def test_the_synchronous_front():
    async def scenario(cluster):
        await produce(cluster, 2)

        def work():
            with SimpleConsumer(
                "sync", subscriptions={"t": "*"}, nameserver=cluster.nameserver
            ) as consumer:
                found = []
                while messages := consumer.receive(2, wait_s=1):
                    for message in messages:
                        consumer.change_invisible_duration(message, 60)
                        consumer.ack(message)
                        found.append(message.body)
                consumer.subscribe("t", "x")
                consumer.unsubscribe("t")
                return found

        assert sorted(await asyncio.to_thread(work)) == [b"0", b"1"]

    with_cluster(scenario)
