"""A nameserver and a group of real replicas in this process, with our own client."""

import contextlib

from dledger.client.config import (
    AdminConfig,
    ProducerConfig,
    PushConsumerConfig,
    SessionConfig,
)
from dledger.client.producer import AsyncProducer
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.model import ConsumeFrom
from nameserver.server import NameserverConfig, NameserverServer
from tests.support.brokers import TestClient, broker_group, eventually, serving_leader

QUICK = SessionConfig(request_timeout_s=2.0, connect_timeout_s=1.0, operation_timeout_s=8.0)
TIMING = {"register_interval_s": 0.5, "register_timeout_s": 1.0}


class Cluster:
    """What a test of a whole cluster works with."""

    def __init__(self, brokers, nameserver):
        self.brokers = brokers
        self.nameserver = nameserver

    async def leader(self):
        return await serving_leader(self.brokers)

    async def kill_leader(self):
        """Ends the leader as a killed process ends; returns the new one."""
        broker = await self.leader()
        self.brokers.pop(broker.config.replica_id)
        broker.raft.crash()
        await broker.stop()
        return await self.leader()

    async def create_topic(self, topic, queues=4):
        client = TestClient((await self.leader()).address)
        await client.create_topic(topic, queues=queues)
        await client.close()

    async def same_state(self):
        """Waits until all replicas have applied the same and hold the same."""

        def same():
            return (
                len({b.raft.applied_index for b in self.brokers.values()}) == 1
                and len({b.store.digest() for b in self.brokers.values()}) == 1
            )

        await eventually(same, "all replicas have the same state")

    def producer(self, group="pg"):
        config = ProducerConfig(session=QUICK)
        return AsyncProducer(group, nameserver=self.nameserver, config=config)

    def consumer(self, group="cg", subscriptions=None, **settings):
        arguments = {name: settings.pop(name) for name in ("ordered",) if name in settings}
        settings = {
            "suspend_s": 0.5,
            "redelivery_min_s": 0.02,
            "redelivery_max_s": 0.1,
            "commit_interval_s": 0.2,
            "rebalance_interval_s": 0.5,
            **settings,
        }
        return AsyncPushConsumer(
            group,
            subscriptions=subscriptions or {"t": "*"},
            nameserver=self.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
            config=PushConsumerConfig(session=QUICK, **settings),
            **arguments,
        )

    @property
    def admin_config(self):
        return AdminConfig(session=QUICK)


@contextlib.asynccontextmanager
async def cluster(directory, count=3, **changes):
    server = NameserverServer(NameserverConfig(port=0))
    await server.start()
    address = f"127.0.0.1:{server.port}"
    try:
        timing = {**TIMING, **changes.pop("timing", {})}
        async with broker_group(
            directory, count, nameservers=[address], timing=timing, **changes
        ) as brokers:
            found = Cluster(brokers, address)
            await found.leader()
            yield found
    finally:
        await server.stop()
