"""Consumers against a scripted cluster on real sockets."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from dledger.client.config import (
    ProducerConfig,
    PullConsumerConfig,
    PushConsumerConfig,
    SessionConfig,
)
from dledger.client.offsets import Offsets
from dledger.client.producer import AsyncProducer
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.codes import RequestCode
from dledger.errors import (
    ClientClosedError,
    ConfigError,
    OffsetOutOfRangeError,
    RequestTimeoutError,
    RouteNotFoundError,
)
from dledger.message import Message, ReceivedMessage
from dledger.model import ConsumeFrom, MessageQueue
from tests.support.fake_cluster import FakeCluster

QUICK = SessionConfig(request_timeout_s=1.0, connect_timeout_s=1.0, operation_timeout_s=3.0)
QUEUE = MessageQueue("t", "broker-a", 0)


def push(
    cluster: FakeCluster,
    *,
    group: str = "cg",
    expression: str = "*",
    start: ConsumeFrom = ConsumeFrom.EARLIEST,
    **settings: object,
) -> AsyncPushConsumer:
    settings = {"suspend_s": 0.3, "redelivery_min_s": 0.02, "redelivery_max_s": 0.1, **settings}
    return AsyncPushConsumer(
        group,
        subscriptions={"t": expression},
        nameserver=cluster.nameserver,
        consume_from=start,
        config=PushConsumerConfig(session=QUICK, **settings),  # type: ignore[arg-type]
    )


async def fill(
    cluster: FakeCluster, count: int, *, queues: int = 4, tag: str = "", start: int = 0
) -> None:
    cluster.create_topic("t", queues)
    async with AsyncProducer(
        "pg", nameserver=cluster.nameserver, config=ProducerConfig(session=QUICK)
    ) as producer:
        await asyncio.gather(
            *(
                producer.send(Message("t", b"%d" % n, tags=tag), queue=n % queues)
                for n in range(start, start + count)
            )
        )


async def until(condition: Callable[[], bool], seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def offsets(cluster: FakeCluster, group: str = "cg") -> dict[int, int]:
    return {
        queue_id: offset
        for (name, _, queue_id), offset in cluster.group.offsets.items()
        if name == group
    }


# --- push: forms of delivery --------------------------------------------------------------------


def test_iteration_delivers_everything_in_order_and_commits_it() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 2000)
            received: list[ReceivedMessage] = []
            async with asyncio.timeout(20), push(cluster) as consumer:
                async for message in consumer.messages(idle_timeout_s=0.5):
                    received.append(message)
            assert len(received) == 2000
            for queue_id in range(4):
                of_queue = [m.queue_offset for m in received if m.queue_id == queue_id]
                assert of_queue == list(range(500))
            assert offsets(cluster) == dict.fromkeys(range(4), 500)

    asyncio.run(main())


def test_a_new_member_goes_on_where_the_group_is() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 100)
            seen: list[bytes] = []
            for count in (30, 70):
                async with asyncio.timeout(10), push(cluster) as consumer:
                    async for message in consumer:
                        seen.append(message.body)
                        count -= 1
                        if not count:
                            break
            assert Counter(seen) == Counter(b"%d" % n for n in range(100))

    asyncio.run(main())


def test_an_exception_in_the_loop_does_not_lose_the_message() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 10, queues=1)
            with pytest.raises(ZeroDivisionError):
                async with push(cluster) as consumer:
                    async for message in consumer:
                        if message.queue_offset == 4:
                            raise ZeroDivisionError
            assert offsets(cluster) == {0: 4}
            async with asyncio.timeout(10), push(cluster) as consumer:
                message = await consumer.poll(5)
                assert message is not None
                assert message.queue_offset == 4
                await consumer.commit()
                assert offsets(cluster) == {0: 5}

    asyncio.run(main())


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_failing_handler_gets_the_message_again_from_its_own_client(concurrency: int) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 50)
            attempts: Counter[bytes] = Counter()
            done: set[bytes] = set()

            async def handler(message: ReceivedMessage) -> None:
                attempts[message.body] += 1
                assert message.reconsume_times == attempts[message.body] - 1
                await asyncio.sleep(0)
                if message.body == b"7" and attempts[message.body] < 4:
                    raise ValueError("not yet")
                done.add(message.body)

            settings = {"commit_interval_s": 0.05, "failed_messages": "local"}
            async with asyncio.timeout(20), push(cluster, **settings) as consumer:
                task = asyncio.create_task(consumer.run(handler, concurrency=concurrency))
                await until(lambda: attempts[b"7"] >= 1 and len(done) >= 49)
                # 7 is offset 1 of queue 3: the group's offset does not move past it.
                await until(lambda: offsets(cluster).get(0) == 13)
                if b"7" not in done:
                    assert offsets(cluster).get(3, 0) <= 1
                await until(lambda: len(done) == 50)
                consumer.stop()
                await task
            assert attempts[b"7"] == 4
            assert sum(attempts.values()) == 53
            assert sum(offsets(cluster).values()) == 50

    asyncio.run(main())


def test_close_waits_for_handlers_and_commits_what_they_finished() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 10, queues=1)
            begun = asyncio.Event()
            finished: list[int] = []

            async def slow(message: ReceivedMessage) -> None:
                begun.set()
                await asyncio.sleep(0.1)
                finished.append(message.queue_offset)

            consumer = push(cluster)
            await consumer.start()
            task = asyncio.create_task(consumer.run(slow, concurrency=2))
            await begun.wait()
            await consumer.close()
            await task
            assert finished == [0, 1]
            assert offsets(cluster) == {0: 2}
            assert not any(replica.clients["cg"] for replica in cluster.group.replicas)
            with pytest.raises(ClientClosedError):
                await consumer.poll(0.1)
            with pytest.raises(ClientClosedError):
                await consumer.start()
            with pytest.raises(ClientClosedError):
                aiter(consumer)
            await consumer.close()

    asyncio.run(main())


def test_only_wanted_tags_arrive_and_the_rest_is_committed_too() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 20, tag="Aa")
            await fill(cluster, 20, tag="BB", start=100)  # the same hash as Aa
            await fill(cluster, 20, tag="other", start=200)
            async with asyncio.timeout(10), push(cluster, expression="Aa || never") as consumer:
                tags = [m.tags async for m in consumer.messages(idle_timeout_s=0.5)]
            assert tags == ["Aa"] * 20
            assert sum(offsets(cluster).values()) == 60

    asyncio.run(main())


def test_an_unread_queue_is_not_read_for_ever() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 3000, queues=1)
            async with push(cluster, queue_messages_max=200, pull_count_max=50) as consumer:
                await consumer.wait_assigned()
                pulls = cluster.group.replicas[0].requests
                await until(lambda: pulls.count(RequestCode.PULL_MESSAGE) >= 4)
                await asyncio.sleep(0.1)  # enough for dozens more, if nothing held them back
                assert pulls.count(RequestCode.PULL_MESSAGE) == 4
                count = 0
                async for _ in consumer:
                    count += 1
                    if count == 3000:
                        break
            assert offsets(cluster) == {0: 3000}

    asyncio.run(main())


# --- push: where a group begins -----------------------------------------------------------------


def test_latest_begins_at_the_end_and_stays_there() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 40)
            async with push(cluster, start=ConsumeFrom.LATEST) as consumer:
                assert await consumer.wait_assigned()
                assert await consumer.poll(0.1) is None
            # It had read nothing; what comes before the next member starts must not be skipped.
            await fill(cluster, 4, start=40)
            async with push(cluster, start=ConsumeFrom.LATEST) as consumer:
                bodies = {m.body async for m in consumer.messages(idle_timeout_s=0.5)}
            assert bodies == {b"40", b"41", b"42", b"43"}

    asyncio.run(main())


def test_a_timestamp_to_begin_at() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 8)
            cluster.now_ms += 1000
            await fill(cluster, 8, start=8)
            async with push(
                cluster, start=ConsumeFrom.TIMESTAMP, consume_timestamp_ms=cluster.now_ms
            ) as consumer:
                bodies = {m.body async for m in consumer.messages(idle_timeout_s=0.5)}
            assert bodies == {b"%d" % n for n in range(8, 16)}

    asyncio.run(main())


def test_an_offset_that_is_gone_is_replaced_by_the_brokers() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 20, queues=1)
            cluster.group.offsets["cg", "t", 0] = 3
            cluster.group.first_offset["t", 0] = 10
            async with asyncio.timeout(10), push(cluster) as consumer:
                message = await consumer.poll(5)
                assert message is not None
                assert message.queue_offset == 10
            assert ("cg", "t", 0, 10) in cluster.group.commits

    asyncio.run(main())


# --- push: groups and fail-over -----------------------------------------------------------------


def test_members_share_the_queues_and_take_over_from_each_other() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            cluster.create_topic("t", 8)
            members = [push(cluster) for _ in range(3)]
            for member in members:
                await member.start()

            def owners(of: list[AsyncPushConsumer]) -> Counter[int]:
                return Counter(queue.queue_id for member in of for queue in member.assignment)

            every = Counter(range(8))
            await until(lambda: all(m.assignment for m in members) and owners(members) == every)
            assert sorted(len(member.assignment) for member in members) == [2, 3, 3]
            await members.pop(0).close()
            await until(lambda: owners(members) == every)
            await fill(cluster, 80, queues=8)
            bodies: list[bytes] = []

            async def read(member: AsyncPushConsumer) -> None:
                bodies.extend([m.body async for m in member.messages(idle_timeout_s=0.5)])

            async with asyncio.timeout(10):
                await asyncio.gather(*(read(member) for member in members))
            assert sorted(bodies) == sorted(b"%d" % n for n in range(80))
            for member in members:
                await member.close()
            assert offsets(cluster) == dict.fromkeys(range(8), 10)

    asyncio.run(main())


def slow_commits(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Counter[int]:
    """Makes every commit take so long; returns the counts of commits by queue."""
    counts: Counter[int] = Counter()
    commit = Offsets.commit

    async def slow(self: Offsets, group: str, queue: MessageQueue, *more: int) -> None:
        counts[queue.queue_id] += 1
        await asyncio.sleep(seconds)
        await commit(self, group, queue, *more)

    monkeypatch.setattr(Offsets, "commit", slow)
    return counts


def test_a_member_takes_many_queues_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            cluster.create_topic("t", 300)
            slow_commits(monkeypatch, 0.1)  # 30 s, one after the other
            async with push(cluster) as consumer:
                await until(lambda: len(consumer.assignment) == 300)

    asyncio.run(main())


def test_pull_positions_are_committed_side_by_side_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 300, queues=300)
            counts = slow_commits(monkeypatch, 0.1)  # 30 s, one after the other
            async with AsyncPullConsumer(
                "cg", nameserver=cluster.nameserver, config=PullConsumerConfig(session=QUICK)
            ) as consumer:
                queues = await consumer.queues("t")
                for queue in queues:
                    consumer.seek(queue, 1)
                async with asyncio.timeout(10):
                    assert await consumer.commit() == dict.fromkeys(queues, 1)
                assert offsets(cluster) == dict.fromkeys(range(300), 1)
                consumer.seek(queues[0], 0)
                assert len(await consumer.commit()) == 300
                assert offsets(cluster) == {0: 0, **dict.fromkeys(range(1, 300), 1)}
                assert counts == {0: 2, **dict.fromkeys(range(1, 300), 1)}
                # One that was asked for by name is committed whether or not it has moved.
                await consumer.commit(queues[5])
                await consumer.commit(queues[6], 0)
                await consumer.commit()
                assert counts[5] == 2 and counts[6] == 3
                assert offsets(cluster)[6] == 1

    asyncio.run(main())


def test_an_offset_whose_commit_failed_is_committed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 4)
            async with AsyncPullConsumer(
                "cg", nameserver=cluster.nameserver, config=PullConsumerConfig(session=QUICK)
            ) as consumer:
                for queue in await consumer.queues("t"):
                    consumer.seek(queue, 1)
                commit = Offsets.commit

                async def failing(
                    self: Offsets, group: str, queue: MessageQueue, offset: int
                ) -> None:
                    if queue.queue_id == 2:
                        raise RequestTimeoutError("as if nobody answered")
                    await commit(self, group, queue, offset)

                with monkeypatch.context() as patch:
                    patch.setattr(Offsets, "commit", failing)
                    with pytest.raises(RequestTimeoutError):
                        await consumer.commit()
                assert offsets(cluster) == {0: 1, 1: 1, 3: 1}
                await consumer.commit()
                assert offsets(cluster) == dict.fromkeys(range(4), 1)

    asyncio.run(main())


def test_nothing_is_skipped_or_repeated_over_a_fail_over() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            group = cluster.group
            await fill(cluster, 400)
            seen: list[tuple[int, int]] = []
            async with asyncio.timeout(20), push(cluster, commit_interval_s=0.05) as consumer:
                async for message in consumer:
                    seen.append((message.queue_id, message.queue_offset))
                    if len(seen) == 200:
                        group.leader, group.hint_of_the_dead = None, group.replicas[0].address
                        await group.replicas[0].kill()
                        asyncio.get_running_loop().call_later(0.3, group.elect, 2)
                    if len(seen) == 300:
                        await until(lambda: group.leader == 2)
                        await fill(cluster, 400, start=400)
                    if len(seen) == 800:
                        break
            assert len(set(seen)) == 800
            assert offsets(cluster) == dict.fromkeys(range(4), 200)
            assert len(group.replicas[2].clients["cg"]) == 0  # it said goodbye there as well

    asyncio.run(main())


def test_a_replica_that_restarted_hears_of_the_member_again() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 4)
            async with push(cluster) as consumer:
                follower = cluster.group.replicas[1]
                await until(lambda: len(follower.clients["cg"]) == 1)
                await follower.kill()
                await follower.start()
                await until(lambda: len(follower.clients["cg"]) == 1)
                assert consumer.assignment

    asyncio.run(main())


def test_a_consumer_may_be_there_before_its_topic() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            async with asyncio.timeout(10), push(cluster) as consumer:
                await fill(cluster, 4)
                bodies = [await consumer.poll(5) for _ in range(4)]
            assert all(bodies)

    asyncio.run(main())


def test_bad_subscriptions() -> None:
    with pytest.raises(ConfigError):
        AsyncPushConsumer("g", subscriptions={}, nameserver="h:1")
    with pytest.raises(ConfigError):
        AsyncPushConsumer("g", subscriptions={"t": "a||"}, nameserver="h:1")


# --- pull ---------------------------------------------------------------------------------------


def pull(cluster: FakeCluster, **settings: object) -> AsyncPullConsumer:
    return AsyncPullConsumer(
        "cg",
        nameserver=cluster.nameserver,
        config=PullConsumerConfig(session=QUICK),
        **settings,  # type: ignore[arg-type]
    )


def test_pulling_moves_a_position_that_can_be_committed() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 40)
            async with asyncio.timeout(20), pull(cluster) as consumer:
                queues = await consumer.queues("t")
                assert [queue.queue_id for queue in queues] == [0, 1, 2, 3]
                messages = await consumer.pull(QUEUE, count_max=4)
                assert [m.queue_offset for m in messages] == [0, 1, 2, 3]
                assert await consumer.position(QUEUE) == 4
                assert await consumer.committed(QUEUE) is None
                assert await consumer.commit() == {QUEUE: 4}
                assert await consumer.committed(QUEUE) == 4
                consumer.seek(QUEUE, 8)
                assert [m.queue_offset for m in await consumer.pull(QUEUE)] == [8, 9]
                assert await consumer.pull(QUEUE, timeout_s=0) == []
                assert await consumer.pull(QUEUE, timeout_s=0.05) == []
                assert (await consumer.offset_min(QUEUE), await consumer.offset_max(QUEUE)) == (
                    0,
                    10,
                )
            async with pull(cluster) as consumer:
                assert await consumer.position(QUEUE) == 4

    asyncio.run(main())


def test_a_pull_waits_for_the_next_message() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 4)
            async with (
                asyncio.timeout(10),
                pull(cluster, consume_from=ConsumeFrom.LATEST) as consumer,
            ):
                task = asyncio.create_task(consumer.pull(QUEUE, timeout_s=5))
                requests = cluster.group.replicas[0].requests
                await until(lambda: RequestCode.PULL_MESSAGE in requests)
                await fill(cluster, 4, start=4)
                assert [m.body for m in await task] == [b"4"]

    asyncio.run(main())


def test_pulling_outside_the_queue_says_where_it_is() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 40)
            async with pull(cluster) as consumer:
                consumer.seek(QUEUE, 99)
                with pytest.raises(OffsetOutOfRangeError) as caught:
                    await consumer.pull(QUEUE)
                assert (caught.value.requested, caught.value.offset_max) == (99, 10)
                with pytest.raises(RouteNotFoundError):
                    await consumer.queues("unknown")
            with pytest.raises(ClientClosedError):
                await consumer.queues("t")

    asyncio.run(main())


def test_followers_answer_pulls_while_nobody_leads() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 40)
            async with asyncio.timeout(10), pull(cluster) as consumer:
                first = await consumer.pull(QUEUE, count_max=5)
                cluster.group.leader = None
                await cluster.group.replicas[0].kill()
                rest = await consumer.pull(QUEUE)
                assert [m.queue_offset for m in first + rest] == list(range(10))

    asyncio.run(main())


# --- long polls at a replica that leads no more ---------------------------------------------------


@pytest.mark.parametrize("how", ["mute", "holds_pulls"])
def test_a_waiting_pull_leaves_a_replica_that_another_one_has_replaced(how: str) -> None:
    """A stopped process, and one that is cut off from its group but not from us."""

    async def main() -> None:
        async with FakeCluster() as cluster:
            group = cluster.group
            await fill(cluster, 1, queues=1)
            config = PullConsumerConfig(session=QUICK)
            consumer = AsyncPullConsumer("cg", nameserver=cluster.nameserver, config=config)
            async with consumer:
                assert await consumer.pull(QUEUE)
                waiting = asyncio.ensure_future(consumer.pull(QUEUE, timeout_s=20))
                await until(lambda: group.replicas[0].requests[-1] == RequestCode.PULL_MESSAGE)
                setattr(group.replicas[0], how, True)
                group.elect(1)
                async with asyncio.timeout(5):
                    await fill(cluster, 1, queues=1, start=1)
                    [message] = await waiting
                assert message.body == b"1"
                assert RequestCode.PULL_MESSAGE in group.replicas[1].requests

    asyncio.run(main())


def test_waiting_pulls_stay_where_they_are_while_all_is_well() -> None:
    """One question a second, however many pulls wait, and no pull is made anew."""

    async def main() -> None:
        async with FakeCluster() as cluster:
            replica = cluster.group.replicas[0]
            cluster.create_topic("t", 8)
            async with push(cluster, suspend_s=20.0, failed_messages="local") as consumer:
                await until(lambda: replica.requests.count(RequestCode.PULL_MESSAGE) == 8)
                before = len(replica.requests)
                await asyncio.sleep(2.5)
                new = Counter(replica.requests[before:])
                assert new.keys() == {RequestCode.GET_CONSUMER_LIST_BY_GROUP}
                assert new[RequestCode.GET_CONSUMER_LIST_BY_GROUP] <= 3
                assert consumer.assignment

    asyncio.run(main())
