"""The producer against a scripted cluster on real sockets."""

from __future__ import annotations

import asyncio

import pytest

from dledger.client.producer import AsyncProducer
from dledger.codes import RequestCode
from dledger.errors import (
    ClientClosedError,
    FlowControlError,
    InvalidParameterError,
    MessageRejectedError,
    RouteNotFoundError,
)
from dledger.message import Message, decode_stored, java_hash
from dledger.model import MessageQueue
from tests.support.fake_broker import Fault
from tests.support.fake_cluster import FakeCluster
from tests.support.scripted_producer import producer_config, run_producer


def test_send_says_where_the_message_is() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        result = await producer.send(
            Message("t", b"hello", tags="a", keys=["k"], properties={"p": "q"}, flag=9), queue=2
        )
        stored = decode_stored(cluster.group.log["t", 2][0].raw)
        assert result.queue == MessageQueue("t", "broker-a", 2)
        assert result.queue_offset == 0
        assert result.message_id == stored.unique_key
        assert result.offset_message_id == stored.offset_message_id
        assert (result.attempts, result.outcome_unknown_attempts) == (1, 0)
        assert (stored.body, stored.tags, stored.keys, stored.flag) == (b"hello", "a", ["k"], 9)
        assert stored.properties["p"] == "q"

    run_producer(scenario)


def test_messages_batch_by_themselves_and_every_result_is_its_own() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        results = await asyncio.gather(
            *(producer.send(Message("t", b"%d" % n, flag=n), queue=1) for n in range(3000))
        )
        assert cluster.group.bodies("t", 1) == [b"%d" % n for n in range(3000)]
        assert [result.queue_offset for result in results] == list(range(3000))
        assert len({result.message_id for result in results}) == 3000
        keys = [message.unique_key for message in cluster.group.log["t", 1]]
        assert keys == [result.message_id for result in results]
        assert len(cluster.group.batch_sizes) < 10

    run_producer(scenario)


def test_messages_for_any_queue_are_spread_by_batches() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await asyncio.gather(*(producer.send(Message("t", b"x")) for _ in range(1000)))
        sizes = [len(cluster.group.log["t", number]) for number in range(4)]
        assert sizes == [250, 250, 250, 250]
        assert cluster.group.batch_sizes == [250, 250, 250, 250]

    run_producer(scenario)


def test_topics_of_one_turn_are_sent_in_the_order_of_their_first_messages() -> None:
    """Not in that of a set, which another process has in another order."""
    names = [f"topic-{number}" for number in (5, 1, 7, 2, 8, 3)]

    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        for name in names:
            cluster.create_topic(name)
            await producer.send(Message(name, b"so that its route is known"), queue=0)
        await asyncio.gather(*(producer.send(Message(name, b"m"), queue=1) for name in names))
        assert [topic for topic, queue in cluster.group.log if queue == 1] == names

    run_producer(scenario)


def test_lone_messages_take_turns_over_the_queues() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        results = [await producer.send(Message("t", b"x")) for _ in range(8)]
        assert [result.queue.queue_id for result in results] == [0, 1, 2, 3, 0, 1, 2, 3]
        assert RequestCode.SEND_MESSAGE_V2 in cluster.group.replicas[0].requests
        assert RequestCode.SEND_BATCH_MESSAGE not in cluster.group.replicas[0].requests

    run_producer(scenario)


def test_a_key_keeps_its_queue() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        results = await asyncio.gather(
            *(producer.send(Message("t", b"x"), shard_key=f"k{n % 7}") for n in range(70))
        )
        for number, result in enumerate(results):
            assert result.queue.queue_id == abs(java_hash(f"k{number % 7}")) % 4

    run_producer(scenario)


def test_large_messages_are_compressed_and_come_back() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        body = b"abcdefgh" * 10_000
        await asyncio.gather(
            producer.send(Message("t", b"small"), queue=0),
            producer.send(Message("t", body), queue=0),
            producer.send(Message("t", b"after"), queue=0),
        )
        stored = [message.raw for message in cluster.group.log["t", 0]]
        assert len(stored[1]) < 2000
        assert [decode_stored(raw).body for raw in stored] == [b"small", body, b"after"]

    run_producer(scenario)


def test_send_batch_is_stored_together() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        results = await producer.send_batch([Message("t", b"%d" % n) for n in range(5)], queue=3)
        assert [result.queue_offset for result in results] == [0, 1, 2, 3, 4]
        assert cluster.group.batch_sizes == [5]
        assert len({result.offset_message_id for result in results}) == 5
        with pytest.raises(MessageRejectedError):
            await producer.send_batch([])
        with pytest.raises(MessageRejectedError):
            await producer.send_batch([Message("t", b""), Message("u", b"")])

    run_producer(scenario)


def test_batches_of_a_queue_share_a_request_and_each_gets_its_own_results() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send(Message("t", b"first"), queue=1)  # its lane is known, and then busy
        cluster.group.batch_sizes.clear()
        lone = producer.send(Message("t", b"lone"), queue=1)
        await asyncio.sleep(0)
        batches = [
            producer.send_batch([Message("t", b"%d-%d" % (n, i)) for i in range(n)], queue=1)
            for n in range(1, 5)
        ]
        one = producer.send(Message("t", b"one"), queue=1)
        results = await asyncio.gather(*batches)
        assert (await lone).queue_offset == 1
        # A task begins later than a call: what was sent last stands before the batches.
        assert (await one).queue_offset == 2
        assert cluster.group.batch_sizes == [1, 1 + 1 + 2 + 3 + 4]
        offsets = [[result.queue_offset for result in each] for each in results]
        assert offsets == [[3], [4, 5], [6, 7, 8], [9, 10, 11, 12]]
        stored = cluster.group.log["t", 1]
        for each in results:
            for result in each:
                found = decode_stored(stored[result.queue_offset].raw)
                assert found.unique_key == result.message_id
                assert found.offset_message_id == result.offset_message_id
        assert producer.statistics().sent == 13

    run_producer(scenario)


def test_batches_are_spread_over_the_queues_by_their_messages() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send(Message("t", b"so that the route is known"), queue=0)
        cluster.group.batch_sizes.clear()
        batch = [Message("t", b"x")] * 50
        await asyncio.gather(*(producer.send_batch(batch) for _ in range(8)))
        assert cluster.group.batch_sizes == [100, 100, 100, 100]

    run_producer(scenario)


def test_who_got_an_answer_sends_again_before_the_next_answer_is_handed_out() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send(Message("t", b"so that the route is known"), queue=0)
        before = producer.statistics().requests
        cluster.group.send_delay_s = 0.05  # both answers come together
        seen: dict[int, int] = {}

        async def work(queue: int) -> None:
            await producer.send(Message("t", b"x"), queue=queue)
            seen.setdefault(queue, producer.statistics().requests - before)
            await producer.send(Message("t", b"y"), queue=queue)

        await asyncio.gather(*(work(queue) for queue in (0, 1) for _ in range(100)))
        assert sorted(seen.values()) == [2, 3]

    run_producer(scenario)


def test_oneway_arrives() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send_oneway(Message("t", b"x"), queue=0)
        async with asyncio.timeout(5):
            while not cluster.group.log["t", 0]:
                await asyncio.sleep(0.005)

    run_producer(scenario)


# --- topics and routes ------------------------------------------------------------------------


def test_an_unknown_topic_is_created_by_its_first_send() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        result = await producer.send(Message("new", b"x"))
        assert result.queue.topic == "new"
        results = await asyncio.gather(
            *(producer.send(Message("new", b"x"), shard_key=str(n)) for n in range(20))
        )
        assert len({entry.queue.queue_id for entry in results}) > 1

    run_producer(scenario)


def test_a_topic_that_nobody_creates_is_refused() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        with pytest.raises(RouteNotFoundError) as caught:
            await producer.send(Message("new", b"x"))
        assert caught.value.definite
        with pytest.raises(RouteNotFoundError):
            await producer.send(Message("new", b"x"), queue=0)
        with pytest.raises(InvalidParameterError):
            await producer.send(Message("no good name", b"x"))

    run_producer(scenario, auto_create=False)


def test_a_queue_that_is_newer_than_our_route_is_found() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send(Message("t", b"x"), queue=0)
        cluster.group.topics.pop("t")
        cluster.create_topic("t", queues=8)
        result = await producer.send(Message("t", b"x"), queue=7)
        assert result.queue.queue_id == 7
        with pytest.raises(InvalidParameterError):
            await producer.send(Message("t", b"x"), queue=8)
        with pytest.raises(InvalidParameterError):
            await producer.send(Message("t", b"x"), queue=1, shard_key="k")

    run_producer(scenario)


def test_sending_goes_on_without_nameservers_once_the_route_is_known() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send(Message("t", b"x"), queue=0)
        await cluster.stop_nameserver()
        group = cluster.group
        group.elect(2)
        await group.replicas[0].kill()
        result = await producer.send(Message("t", b"y"), queue=0)
        assert result.queue_offset == 1

    run_producer(scenario)


def test_a_nameserver_that_comes_back_soon_is_waited_for() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await cluster.stop_nameserver()
        future = producer.send(Message("t", b"x"))
        await asyncio.sleep(0.1)
        assert not future.done()
        await cluster.start_nameserver()
        await future

    run_producer(scenario)


def test_the_next_nameserver_is_asked_when_one_is_gone() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            cluster.create_topic("t")
            addresses = ["127.0.0.1:1", cluster.nameserver]
            async with AsyncProducer(
                "pg", nameserver=addresses, config=producer_config()
            ) as producer:
                await producer.send(Message("t", b"x"))

    asyncio.run(main())


# --- limits and life --------------------------------------------------------------------------


def test_at_most_so_many_are_under_way() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        futures = [producer.send(Message("t", b"%d" % n), queue=0) for n in range(60)]
        assert producer.statistics().in_flight == 10
        assert producer.statistics().waiting == 50
        with pytest.raises(FlowControlError) as caught:
            await producer.send(Message("t", b"too much"), queue=0)
        assert caught.value.definite
        await asyncio.gather(*futures)
        assert max(cluster.group.batch_sizes) <= 10
        assert cluster.group.bodies("t", 0) == [b"%d" % n for n in range(60)]
        await producer.wait_room()
        assert producer.statistics().in_flight == 0

    run_producer(scenario, producer_config(in_flight_max=10, waiting_max=50))


def test_close_waits_for_every_result() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            cluster.create_topic("t")
            cluster.group.send_delay_s = 0.01
            producer = AsyncProducer(
                "pg", nameserver=cluster.nameserver, config=producer_config(in_flight_max=50)
            )
            await producer.start()
            cluster.group.replicas[0].faults.append(Fault(close=True))
            futures = [producer.send(Message("t", b"%d" % n), queue=n % 4) for n in range(400)]
            await producer.close()
            assert all(future.done() for future in futures)
            assert [future.result().attempts >= 1 for future in futures] == [True] * 400
            assert len({message.body for message in cluster.group.messages()}) == 400
            with pytest.raises(ClientClosedError) as caught:
                await producer.send(Message("t", b"x"))
            assert caught.value.definite
            with pytest.raises(ClientClosedError):
                await producer.send_batch([Message("t", b"x")])
            with pytest.raises(ClientClosedError):
                await producer.send_oneway(Message("t", b"x"))
            with pytest.raises(ClientClosedError):
                await producer.start()
            await producer.close()

    asyncio.run(main())


def test_a_producer_must_be_started() -> None:
    async def main() -> None:
        producer = AsyncProducer("pg", nameserver="127.0.0.1:1")
        with pytest.raises(ClientClosedError):
            await producer.send(Message("t", b"x"))
        await producer.close()

    asyncio.run(main())


def test_a_cancelled_wait_does_not_recall_the_message() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        future = producer.send(Message("t", b"x"), queue=0)
        future.cancel()
        await producer.wait_idle()
        assert cluster.group.bodies("t", 0) == [b"x"]

    run_producer(scenario)
