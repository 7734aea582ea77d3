"""Our clients, and one that behaves as the official ones, while real leaders die or stop."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from dledger.client.config import PushConsumerConfig
from dledger.client.producer import AsyncProducer
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.client.sync import Producer, PullConsumer, PushConsumer
from dledger.client.sync_admin import Admin
from dledger.codes import RequestCode
from dledger.message import Message, ReceivedMessage, Rejection, iter_stored
from dledger.model import ConsumeFrom, MessageQueue
from tests.support.brokers import TestClient
from tests.support.process_cluster import address_of, followers, wait_leader, whole

QUEUE = MessageQueue("t", "broker-a", 0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    settings = {"store": {"segment_bytes": 4 * 1024 * 1024}}
    spec = ClusterSpec(port_base=free_port_base(7), settings=settings)
    with LocalCluster(tmp_path / "data", spec) as made:
        with Admin(nameserver=made.nameserver) as admin:
            admin.create_topic("t", queue_count=4)
        yield made


def numbers(stop: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, stop)]


def produce(cluster: LocalCluster, bodies: list[bytes], queue: int | None = 0) -> None:
    with Producer("p", nameserver=cluster.nameserver) as producer:
        futures = [producer.submit(Message("t", body), queue=queue) for body in bodies]
        for future in futures:
            future.result(30)


# --- consumers that wait ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_waiting_consumers_go_on_at_the_next_leader(
    cluster: LocalCluster, number: signal.Signals
) -> None:
    """Their pulls wait at the leader for up to 15 s and 20 s; nobody answers those any more."""

    async def scenario() -> tuple[float, float]:
        push = AsyncPushConsumer(
            "push",
            subscriptions={"t": "*"},
            nameserver=cluster.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
        )
        pull = AsyncPullConsumer("pull", nameserver=cluster.nameserver)
        producer = AsyncProducer("p", nameserver=cluster.nameserver)
        async with push, pull, producer:
            await producer.send(Message("t", b"before"), queue=0)
            assert (await push.poll(10)).body == b"before"
            [message] = await pull.pull(QUEUE)
            assert message.body == b"before"
            waiting = asyncio.ensure_future(_timed_pull(pull))
            taking = asyncio.ensure_future(_timed_poll(push))
            await asyncio.sleep(1.2)
            leader = await asyncio.to_thread(wait_leader, cluster)
            await asyncio.to_thread(cluster.kill, leader, number)
            try:
                await producer.send(Message("t", b"after"), queue=0)
                sent = time.monotonic()
                pulled, pushed = await asyncio.gather(waiting, taking)
                return pulled - sent, pushed - sent
            finally:
                if number == signal.SIGSTOP:
                    cluster.kill(leader, signal.SIGCONT)

    pulled_s, pushed_s = asyncio.run(scenario())
    assert pulled_s < 2.0
    assert pushed_s < 2.0


async def _timed_pull(consumer: AsyncPullConsumer) -> float:
    [message] = await consumer.pull(QUEUE)
    assert message.body == b"after"
    return time.monotonic()


async def _timed_poll(consumer: AsyncPushConsumer) -> float:
    message = await consumer.poll(40)
    assert message is not None
    assert message.body == b"after"
    return time.monotonic()


def test_a_stopped_follower_holds_no_consumer_up(cluster: LocalCluster) -> None:
    produce(cluster, [b"x"])
    follower = followers(cluster, wait_leader(cluster))[0]
    cluster.kill(follower, signal.SIGSTOP)
    try:
        began = time.monotonic()
        push = PushConsumer(
            "push",
            subscriptions={"t": "*"},
            nameserver=cluster.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
        )
        with push:
            assert push.poll(10).body == b"x"
            push_s = time.monotonic() - began
        began = time.monotonic()
        with PullConsumer("pull", nameserver=cluster.nameserver) as pull:
            assert pull.pull(QUEUE)
            pull.commit()
            pull_s = time.monotonic() - began
    finally:
        cluster.kill(follower, signal.SIGCONT)
    assert push_s < 1.5
    assert pull_s < 1.5


# --- committed offsets --------------------------------------------------------------------------


def test_a_pull_consumer_goes_on_where_the_group_committed(cluster: LocalCluster) -> None:
    """Half is consumed and committed, the leader dies, a new consumer of the group goes on."""
    bodies = numbers(2000)
    produce(cluster, bodies)
    with PullConsumer("g", nameserver=cluster.nameserver) as consumer:
        first: list[bytes] = []
        while len(first) < 1000:
            count = min(100, 1000 - len(first))
            first += [m.body for m in consumer.pull(QUEUE, count_max=count, timeout_s=5)]
        consumer.commit()
        consumer.pull(QUEUE, count_max=50, timeout_s=5)  # read, and not committed
        cluster.kill(wait_leader(cluster))
    with PullConsumer("g", nameserver=cluster.nameserver) as consumer:
        assert consumer.committed(QUEUE) == 1000
        second: list[bytes] = []
        while len(second) < 1000:
            second += [m.body for m in consumer.pull(QUEUE, timeout_s=5)]
    assert first + second == bodies


def test_a_push_consumer_goes_on_where_the_group_committed(cluster: LocalCluster) -> None:
    bodies = numbers(2000)
    produce(cluster, bodies, queue=None)

    def consumer() -> PushConsumer:
        return PushConsumer(
            "g",
            subscriptions={"t": "*"},
            nameserver=cluster.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
            # Only what is committed by hand counts.
            config=PushConsumerConfig(commit_interval_s=3600),
        )

    with consumer() as first:
        half = [m.body for m in itertools.islice(first.messages(idle_timeout_s=20), 1000)]
        first.commit()
        cluster.kill(wait_leader(cluster))
        # Leaving commits what was processed, at the new leader: the last message included.
    with consumer() as second:
        rest = [m.body for m in second.messages(idle_timeout_s=4)]
    assert len(half) == 1000
    copies = Counter(half + rest)
    assert sorted(copies, key=int) == bodies
    assert set(half) & set(rest) == set(), "what was committed came again"


# --- two members --------------------------------------------------------------------------------


def test_two_members_share_the_queues_while_leaders_die(cluster: LocalCluster) -> None:
    """One joins and one leaves during fail-overs; all is delivered, and in the end once."""

    async def consume(consumer: AsyncPushConsumer, seen: list[bytes]) -> None:
        async for message in consumer:
            seen.append(message.body)

    def member() -> AsyncPushConsumer:
        return AsyncPushConsumer(
            "g",
            subscriptions={"t": "*"},
            nameserver=cluster.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
            config=PushConsumerConfig(commit_interval_s=0.2, rebalance_interval_s=5),
        )

    async def balanced(*members: AsyncPushConsumer) -> None:
        async with asyncio.timeout(25):
            while True:
                held = [queue for each in members for queue in each.assignment]
                if len(held) == 4 == len(set(held)) and all(each.assignment for each in members):
                    return
                await asyncio.sleep(0.02)

    async def scenario() -> tuple[list[bytes], list[bytes], int]:
        one, two = member(), member()
        seen_one: list[bytes] = []
        seen_two: list[bytes] = []
        sent = 0
        async with AsyncProducer("p", nameserver=cluster.nameserver) as producer:

            async def send(count: int) -> None:
                nonlocal sent
                bodies = numbers(sent + count, sent)
                sent += count
                await asyncio.gather(*(producer.send(Message("t", b)) for b in bodies))

            async with one:
                tasks = [asyncio.ensure_future(consume(one, seen_one))]
                await send(500)
                async with two:
                    tasks.append(asyncio.ensure_future(consume(two, seen_two)))
                    await balanced(one, two)
                    leader = await asyncio.to_thread(wait_leader, cluster)
                    await asyncio.to_thread(cluster.kill, leader)
                    await send(500)
                    await balanced(one, two)
                    await asyncio.to_thread(cluster.start_one, leader)
                    await asyncio.to_thread(cluster.wait, whole)
                    await send(500)
                    async with asyncio.timeout(20):
                        while len({*seen_one, *seen_two}) < sent:
                            await asyncio.sleep(0.02)
                    assert seen_two, "the second member had a share"
                    second_leader = await asyncio.to_thread(wait_leader, cluster)
                    await asyncio.to_thread(cluster.kill, second_leader)
                await balanced(one)
                await send(500)
                async with asyncio.timeout(20):
                    while len({*seen_one, *seen_two}) < sent:
                        await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return seen_one, seen_two, sent

    seen_one, seen_two, sent = asyncio.run(scenario())
    assert {*seen_one, *seen_two} == set(numbers(sent))


# --- clients that know nothing of Raft ----------------------------------------------------------


def test_a_follower_serves_clients_that_know_nothing_of_leaders(cluster: LocalCluster) -> None:
    """As official clients between two looks at the route: 310 and 11, without `dlNoForward`."""

    async def scenario() -> None:
        leader = wait_leader(cluster)
        one = followers(cluster, leader)[0]
        client = TestClient(address_of(cluster, one))
        try:
            answer = await client.send("t", b"forwarded")
            assert (answer.code, answer.ext["queueId"], answer.ext["queueOffset"]) == (0, "0", "0")
            assert answer.ext["msgId"]
            assert "dlLeader" not in answer.ext
            answer = await client.pull("t", 0, wait_ms=5000)
            assert [message.body for message in iter_stored(answer.body)] == [b"forwarded"]
            await client.heartbeat("client-1", "g", {"t": "*"})
            answer = await client.call(
                RequestCode.UPDATE_CONSUMER_OFFSET,
                {"consumerGroup": "g", "topic": "t", "queueId": "0", "commitOffset": "1"},
            )
            assert answer.code == 0
            # A pull that waits at the follower gets what comes through the leader.
            waiting = asyncio.ensure_future(client.pull("t", 1, wait_ms=15_000, group="g"))
            await asyncio.sleep(0.2)
            answer = await client.send("t", b"again")
            assert answer.code == 0
            answer = await asyncio.wait_for(waiting, 3)
            assert [message.body for message in iter_stored(answer.body)] == [b"again"]
            # In the middle of an election the request waits for its end.
            await asyncio.to_thread(cluster.kill, leader)
            answer = await client.send("t", b"during")
            assert answer.code == 0, answer.remark
            answer = await client.call(
                RequestCode.QUERY_CONSUMER_OFFSET,
                {"consumerGroup": "g", "topic": "t", "queueId": "0"},
            )
            assert (answer.code, answer.ext["offset"]) == (0, "1")
            refused = await client.send("t", b"no", ext={"dlNoForward": "1"})
            assert refused.code in (0, 14)
        finally:
            await client.close()

    asyncio.run(scenario())


def test_a_follower_soon_answers_when_the_leader_is_stopped(cluster: LocalCluster) -> None:
    async def scenario() -> None:
        leader = wait_leader(cluster)
        client = TestClient(address_of(cluster, followers(cluster, leader)[0]))
        try:
            assert (await client.send("t", b"before")).code == 0
            await asyncio.to_thread(cluster.kill, leader, signal.SIGSTOP)
            try:
                began = time.monotonic()
                answer = await client.send("t", b"during")
                assert time.monotonic() - began < 2.5
                assert answer.code == 0 or answer.ext["dlOutcome"] == "unknown"
                assert (await client.send("t", b"after")).code == 0
            finally:
                cluster.kill(leader, signal.SIGCONT)
        finally:
            await client.close()

    asyncio.run(scenario())


# --- what the README promises -------------------------------------------------------------------


def python_blocks() -> list[str]:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    return [block.split("```", 1)[0] for block in text.split("```python\n")[1:]]


def test_the_examples_of_the_readme_run(
    cluster: LocalCluster, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLEDGER_NAMESERVER", cluster.nameserver)
    plain, in_asyncio, later, *_ = python_blocks()
    with Admin() as admin:
        admin.create_topic("tour", queue_count=4)
    exec(plain.replace("127.0.0.1:9876", cluster.nameserver), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == repr(b"hello")
    body = "".join(f"    {line}\n" for line in in_asyncio.splitlines())
    source = (
        f"import asyncio\nfrom dledger import AsyncProducer, Message\nasync def main():\n{body}"
    )
    source += "    return results\n"
    scope: dict = {"messages": [Message("tour", b"%d" % number) for number in range(100)]}
    exec(source, scope)
    results = asyncio.run(scope["main"]())
    assert len({(result.queue, result.queue_offset) for result in results}) == 100
    scope = {"Producer": Producer, "Message": Message}
    exec(later, scope)
    message = ReceivedMessage(topic="tour", body=b"")
    scope["handle"](message)
    assert message.rejection == Rejection(delay_ms=30_000, reason="not ready")
