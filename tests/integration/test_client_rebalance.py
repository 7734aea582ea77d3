"""Groups share queues out at once when members come and go, and through a change of leader."""

import asyncio
import contextlib
import time

import pytest

from dledger import (
    AsyncPushConsumer,
    MessageQueue,
    PushConsumerConfig,
    SessionConfig,
)
from dledger.testing import AsyncLocalCluster

TOPIC = "t"
QUEUES = 8


def member(cluster, **settings):
    # Nothing happens by the clock within this test: intervals of half a minute and more.
    settings = {"rebalance_interval_s": 60.0, "suspend_s": 0.5, **settings}
    session = SessionConfig(heartbeat_s=30.0, route_poll_s=30.0)
    return AsyncPushConsumer(
        "cg",
        subscriptions={TOPIC: "*"},
        nameserver=cluster.nameserver,
        config=PushConsumerConfig(session=session, **settings),
    )


async def until(condition, what, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def is_shared_out(members):
    held = [queue for each in members for queue in each.assignment]
    sizes = [len(each.assignment) for each in members]
    return len(held) == len(set(held)) == QUEUES and max(sizes) - min(sizes) <= 1


@contextlib.asynccontextmanager
async def shared_out(count, **settings):
    async with AsyncLocalCluster() as cluster, contextlib.AsyncExitStack() as stack:
        await cluster.create_topic(TOPIC, queue_count=QUEUES)
        members = [await stack.enter_async_context(member(cluster, **settings))]
        await until(lambda: is_shared_out(members), "one member takes all")
        while len(members) < count:
            members.append(await stack.enter_async_context(member(cluster, **settings)))
        await until(lambda: is_shared_out(members), "shared out")
        yield cluster, members


@pytest.mark.parametrize("strategy", ["AVG", "AVG_BY_CIRCLE"])
def test_members_that_come_and_go_are_noticed_at_once(strategy):
    async def main():
        async with shared_out(1, strategy=strategy) as (cluster, members):
            began = time.monotonic()
            async with member(cluster, strategy=strategy) as other:
                both = [*members, other]
                await until(lambda: is_shared_out(both), "shared out between two")
                joined = time.monotonic() - began
                began = time.monotonic()
            await until(lambda: is_shared_out(members), "the one that stays takes all again")
            left = time.monotonic() - began
            assert max(joined, left) < 5, (joined, left)

    asyncio.run(main())


def test_shares_stay_the_same_through_a_change_of_leader():
    """A new leader knows all members at once: nobody gives up a queue, or takes another's."""

    async def main():
        async with shared_out(3) as (cluster, members):
            before = [each.assignment for each in members]
            killed = await cluster.kill_leader()
            await cluster.wait_until_serving()
            calm = time.monotonic() + 1.5
            while time.monotonic() < calm:
                assert [each.assignment for each in members] == before
                await asyncio.sleep(0.01)
            # The one that comes back knows nobody; it hears of all before it may lead.
            await cluster.restart(killed)
            await cluster.wait_until_serving()
            calm = time.monotonic() + 2.5
            while time.monotonic() < calm:
                assert [each.assignment for each in members] == before
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_each_member_reads_what_it_is_told_to():
    async def main():
        async with AsyncLocalCluster(replicas=1) as cluster:
            await cluster.create_topic(TOPIC, queue_count=QUEUES)
            told = [MessageQueue(TOPIC, "broker-a", number) for number in (1, 6)]
            async with member(cluster, strategy="CONFIG", strategy_queues=told) as consumer:
                await until(lambda: consumer.assignment == told, "reads its queues")

    asyncio.run(main())
