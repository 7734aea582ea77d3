"""Tests of an application against a real cluster inside the test process: `pytest` runs them.

The fixtures come with the package. Needs no nameserver: the cluster is the test's own.
"""

import asyncio

from dledger import AsyncProducer, ConsumeFrom, Message, Producer, PushConsumer
from dledger.testing import AsyncLocalCluster, LocalCluster


def test_nothing_is_lost_when_the_leader_dies(
    dledger_cluster: LocalCluster, dledger_topic: str
) -> None:
    with Producer("shop", nameserver=dledger_cluster.nameserver) as producer:
        producer.send(Message(dledger_topic, b"before"))
        dledger_cluster.kill_leader()
        producer.send(Message(dledger_topic, b"after"))

    with PushConsumer(
        "billing",
        subscriptions={dledger_topic: "*"},
        consume_from=ConsumeFrom.EARLIEST,
        nameserver=dledger_cluster.nameserver,
    ) as consumer:
        first, second = consumer.poll(10), consumer.poll(10)
    assert first is not None
    assert second is not None
    assert {first.body, second.body} == {b"before", b"after"}


def test_with_asyncio() -> None:
    async def scenario() -> None:
        async with (
            AsyncLocalCluster() as cluster,
            AsyncProducer("shop", nameserver=cluster.nameserver) as producer,
        ):
            with cluster.partition([await cluster.leader()]):
                await producer.send(Message("orders", b"stored by the majority"))

    asyncio.run(scenario())
