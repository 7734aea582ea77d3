"""Several broker groups: one of them dies, one is slow, one is added; order topics stay put."""

import asyncio
import itertools
import time

import pytest

from dledger import (
    AsyncAdmin,
    AsyncProducer,
    AsyncPushConsumer,
    Message,
    ProducerConfig,
    PushConsumerConfig,
    SessionConfig,
    errors,
)
from dledger.testing import AsyncLocalCluster

TOPIC = "t"
SESSION = SessionConfig(route_poll_s=0.5, request_timeout_s=1.0, connect_timeout_s=1.0)


def producer_of(cluster, **settings):
    settings = {"send_timeout_s": 3.0, "attempt_timeout_s": 0.5, **settings}
    config = ProducerConfig(session=SESSION, **settings)
    return AsyncProducer("p", nameserver=cluster.nameserver, config=config)


class Load:
    """Sends numbered messages one by one until stopped; keeps what became of each."""

    def __init__(self, producer):
        self.producer = producer
        self.acknowledged = {}  # number -> broker name
        self.failed = {}
        self.running = True

    async def run(self):
        for number in itertools.count():
            if not self.running:
                return
            try:
                result = await self.producer.send(Message(TOPIC, b"%d" % number))
                self.acknowledged[number] = result.queue.broker_name
            except errors.SendFailedError as error:
                self.failed[number] = error
            await asyncio.sleep(0.002)

    async def until(self, condition, what, timeout_s=20.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.01)

    async def more(self, count):
        target = len(self.acknowledged) + count
        await self.until(lambda: len(self.acknowledged) >= target, f"{count} more messages")


def test_producers_go_on_with_the_other_groups_when_one_is_wholly_killed():
    async def main():
        async with AsyncLocalCluster(replicas=3, groups=[3, 1]) as cluster:
            await cluster.create_topic(TOPIC)
            async with producer_of(cluster) as producer:
                # Six at a time, so that some are on their way to the group that dies.
                loads = [Load(producer) for _ in range(6)]
                tasks = [asyncio.create_task(load.run()) for load in loads]
                for load in loads:
                    await load.more(50)
                for replica in cluster.cluster.replicas("broker-a"):
                    await cluster.kill(replica)
                began = time.monotonic()
                for load in loads:
                    await load.more(50)
                took_s = time.monotonic() - began
                for load in loads:
                    load.running = False
                await asyncio.gather(*tasks)
                late = [list(load.acknowledged.values())[-40:] for load in loads]
                assert {name for names in late for name in names} == {"broker-b"}
                # What was on its way when the group died may fail, as unknown; nothing after that.
                failed = [error for load in loads for error in load.failed.values()]
                assert len(failed) <= len(loads)
                assert not any(error.definite for error in failed)
                assert took_s < 6, took_s

    asyncio.run(main())


def test_a_slow_group_is_left_alone():
    """A group that answers, but only after 0.7 s, gets few messages instead of every other one."""

    async def main(isolate):
        async with AsyncLocalCluster(replicas=1, groups=2) as cluster:
            await cluster.create_topic(TOPIC)
            slow = "broker-a-0"

            async def crawl():
                while True:
                    await cluster.pause(slow)
                    await asyncio.sleep(0.7)
                    cluster.resume(slow)
                    await asyncio.sleep(0.03)

            settings = {"isolate_slow_groups": isolate, "attempt_timeout_s": 2.0}
            async with producer_of(cluster, **settings) as producer:
                for _ in range(20):
                    await producer.send(Message(TOPIC, b"warm"))
                crawling = asyncio.create_task(crawl())
                load = Load(producer)
                task = asyncio.create_task(load.run())
                await asyncio.sleep(4)
                load.running = False
                crawling.cancel()
                cluster.resume()
                await task
                assert not load.failed
                return len(load.acknowledged)

    assert asyncio.run(main(True)) > 4 * asyncio.run(main(False))


def test_a_group_is_added_while_messages_are_sent_and_consumed():
    async def main():
        async with AsyncLocalCluster(replicas=1) as cluster:
            await cluster.create_topic(TOPIC)
            consumed = set()
            config = PushConsumerConfig(
                session=SESSION, suspend_s=0.5, rebalance_interval_s=0.5, commit_interval_s=0.2
            )
            # From the end; but the queues of the new group must be read from their beginning.
            consumer = AsyncPushConsumer(
                "cg", subscriptions={TOPIC: "*"}, nameserver=cluster.nameserver, config=config
            )

            async def handle(message):
                consumed.add(int(message.body))

            async with consumer, producer_of(cluster) as producer:
                assert await consumer.wait_assigned()
                consuming = asyncio.create_task(consumer.run(handle))
                load = Load(producer)
                task = asyncio.create_task(load.run())
                await load.more(50)
                name = await cluster.add_group(3)
                async with AsyncAdmin(nameserver=cluster.nameserver) as admin:
                    topology = admin.topology()
                    [config] = [
                        config
                        for topic, config in (await topology.topics("broker-a")).items()
                        if topic == TOPIC
                    ]
                    assert await topology.extend(name, [config]) == [TOPIC]
                    assert await topology.extend(name, [config]) == []
                await load.until(
                    lambda: list(load.acknowledged.values()).count(name) >= 50, "both are used"
                )
                load.running = False
                await task
                assert not load.failed
                await load.until(lambda: consumed >= set(load.acknowledged), "all is consumed")
                consumer.stop()
                await consuming

    asyncio.run(main())


def test_keys_of_an_order_topic_stay_where_they_are():
    async def main():
        async with AsyncLocalCluster(replicas=1, groups=2) as cluster:
            await cluster.create_topic(TOPIC, queue_count=2)
            async with AsyncAdmin(nameserver=cluster.nameserver) as admin:
                await admin.topology().set_order(TOPIC, {"broker-a": 2, "broker-b": 2})
                assert await admin.topology().order(TOPIC) == {"broker-a": 2, "broker-b": 2}
            keys = [f"key-{number}" for number in range(12)]
            async with producer_of(cluster, send_timeout_s=1.0) as producer:

                async def places():
                    sends = [producer.send(Message(TOPIC, b"x"), shard_key=key) for key in keys]
                    results = await asyncio.gather(*sends, return_exceptions=True)
                    return {
                        key: result if isinstance(result, Exception) else result.queue
                        for key, result in zip(keys, results, strict=True)
                    }

                before = await places()
                assert {queue.broker_name for queue in before.values()} == {"broker-a", "broker-b"}
                added = await cluster.add_group(1)
                await cluster.create_topic(TOPIC, queue_count=2, groups=[added])
                await cluster.kill("broker-b-0")
                await asyncio.sleep(2 * SESSION.route_poll_s)  # the route has changed twice
                after = await places()
                for key, queue in before.items():
                    if queue.broker_name == "broker-a":
                        assert after[key] == queue
                    else:
                        assert isinstance(after[key], errors.DLedgerError)
                await cluster.restart()
                await cluster.wait_until_serving()
                assert await places() == before
            async with AsyncAdmin(nameserver=cluster.nameserver) as admin:
                await admin.topology().set_order(TOPIC, {})
                assert await admin.topology().order(TOPIC) == {}
                with pytest.raises(errors.InvalidParameterError):
                    await admin.topology().set_order(TOPIC, {"a;b": 1})

    asyncio.run(main())
