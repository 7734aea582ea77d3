"""A message that is sent again is stored once: on the wire, and with leaders killed meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from dledger import AsyncAdmin, AsyncProducer, AsyncPullConsumer, Message
from dledger.client.config import ProducerConfig
from dledger.client.results import SendResult
from dledger.codes import RequestCode
from dledger.message import encode_batch, iter_stored
from tests.support.brokers import (
    TestClient,
    broker_group,
    eventually,
    serving_leader,
    single_broker,
)

BATCH = RequestCode.SEND_BATCH_MESSAGE


def numbered(sequence, producer="00000000000000ff"):
    return {"dlProducerId": producer, "dlSequence": str(sequence)}


def place(answer):
    assert answer.code == 0, answer.remark
    # A new leader gives its own address; what names the message is the physical offset.
    physical = [each[16:] for each in answer.ext["msgId"].split(",")]
    return answer.ext["queueId"], answer.ext["queueOffset"], physical


async def stored(client, topic="t", **more):
    answer = await client.pull(topic, **more)
    return [message.body for message in iter_stored(answer.body)]


def test_a_repetition_gets_the_first_place_also_from_new_leaders_and_after_restarts(tmp_path):
    async def run():
        pair = encode_batch([Message("t", b"b"), Message("t", b"c")])
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(leader.address)
            first = await client.send("t", b"a", ext=numbered(0))
            assert first.ext["dlDeduplicated"] == "0"
            batch = await client.send("t", pair, code=BATCH, batch=True, ext=numbered(1))
            assert place(batch)[:2] == ("0", "1")
            again = await client.send("t", pair, code=BATCH, batch=True, ext=numbered(1))
            assert (place(again), again.ext["dlDeduplicated"]) == (place(batch), "1")
            await client.close()

            brokers.pop(leader.config.replica_id)
            leader.raft.crash()
            await leader.stop()
            successor = await serving_leader(brokers)
            client = TestClient(successor.address)
            again = await client.send("t", pair, code=BATCH, batch=True, ext=numbered(1))
            assert (place(again), again.ext["dlDeduplicated"]) == (place(batch), "1")
            follower = next(b for b in brokers.values() if b is not successor)
            other = TestClient(follower.address)  # forwards it with its numbers
            again = await other.send("t", b"a", ext=numbered(0))
            assert (place(again), again.ext["dlDeduplicated"]) == (place(first), "1")
            await other.close()
            third = await client.send("t", b"d", ext=numbered(3))
            assert (place(third)[1], third.ext["dlDeduplicated"]) == ("3", "0")
            assert await stored(client) == [b"a", b"b", b"c", b"d"]
            await client.close()
            await eventually(
                lambda: len({broker.store.digest() for broker in brokers.values()}) == 1,
                "all replicas hold the same state",
            )

    asyncio.run(run())


def test_a_restart_keeps_what_is_known_of_producers(tmp_path):
    async def run():
        places = []
        for _ in range(3):
            async with single_broker(tmp_path) as (_, client):
                answer = await client.send("t", b"a", ext=numbered(7))
                places.append(place(answer)[:2])
                assert await stored(client) == [b"a"]
        assert places == [("0", "0")] * 3

    asyncio.run(run())


def test_attempts_at_the_same_time_store_once(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            clients = [TestClient(leader.address) for _ in range(4)]
            await clients[0].create_topic("t")
            for sequence in range(20):
                answers = await asyncio.gather(
                    *(
                        client.send("t", b"%d" % sequence, ext=numbered(sequence))
                        for client in clients
                    )
                )
                assert {place(answer)[1] for answer in answers} == {str(sequence)}
                marks = Counter(answer.ext["dlDeduplicated"] for answer in answers)
                assert marks == {"0": 1, "1": 3}
            assert await stored(clients[0]) == [b"%d" % n for n in range(20)]
            for client in clients:
                await client.close()

    asyncio.run(run())


def test_stragglers_and_nonsense_are_refused_and_others_are_stored_as_ever(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_, client):
            assert (await client.send("t", b"a", ext=numbered(5))).code == 0
            late = await client.send("t", b"b", ext=numbered(4))
            assert (late.code, late.ext["dlOutcome"]) == (13, "refused")
            for ext, fields in (
                (numbered(-1), {}),
                (numbered("x"), {}),
                (numbered(1 << 63), {}),
                (numbered(9, "ff"), {}),
                (numbered(9, "zz" * 8), {}),
                ({"dlProducerId": "0" * 16}, {}),
                (numbered(9), {"queue_id": -1}),
            ):
                refused = await client.send("t", b"c", ext=ext, **fields)
                assert refused.code == 29, (ext, refused.remark)
            # Clients of RocketMQ may send a message object twice and mean it.
            for offset in (1, 2):
                plain = await client.send("t", b"same", properties={"UNIQ_KEY": "K"})
                assert plain.ext["queueOffset"] == str(offset)
                assert "dlDeduplicated" not in plain.ext
            assert (await client.send("t", b"a", ext=numbered(5, "0" * 16))).code == 0
            assert await stored(client) == [b"a", b"same", b"same", b"a"]

    asyncio.run(run())


@pytest.fixture
def cluster(tmp_path: Path):
    settings = {"store": {"segment_bytes": 4 * 1024 * 1024}}
    spec = ClusterSpec(port_base=free_port_base(7), settings=settings)
    with LocalCluster(tmp_path / "data", spec) as made:
        yield made


def test_leaders_killed_in_the_middle_of_sends_leave_no_message_twice(cluster: LocalCluster):
    """Messages for one queue each, and for any; kill -9 of the leader while batches are with it."""
    queues, kills = 4, 4

    async def run() -> None:
        async with AsyncAdmin(nameserver=cluster.nameserver) as admin:
            await admin.create_topic("t", queue_count=queues)
        config = ProducerConfig(send_timeout_s=30.0, in_flight_max=2000)
        results: dict[int, SendResult] = {}
        async with AsyncProducer("p", nameserver=cluster.nameserver, config=config) as producer:
            stopping = asyncio.Event()

            async def send_all() -> None:
                number = 0
                while not stopping.is_set():
                    for _ in range(20):
                        queue = number % queues if number % 3 else None
                        future = producer.send(Message("t", b"%d" % number), queue=queue)
                        future.add_done_callback(
                            lambda done, number=number: results.__setitem__(number, done.result())
                        )
                        number += 1
                    await producer.wait_room()
                    await asyncio.sleep(0.002)

            sending = asyncio.create_task(send_all())
            for _ in range(kills):
                before = len(results)
                await eventually(lambda before=before: len(results) > before + 500, "sends go on")
                status = await asyncio.to_thread(cluster.wait, lambda status: status.is_serving)
                leader = status.groups[0].leader
                await asyncio.to_thread(cluster.kill, leader)
                await asyncio.to_thread(cluster.start_one, leader)
            before = len(results)
            await eventually(lambda: len(results) > before + 500, "sends go on", 30)
            stopping.set()
            await sending
            await producer.wait_idle()

        async with AsyncPullConsumer("g", nameserver=cluster.nameserver) as consumer:
            read: dict[int, list[int]] = {}
            for queue in await consumer.queues("t"):
                end = await consumer.offset_max(queue)
                numbers = read.setdefault(queue.queue_id, [])
                while await consumer.position(queue) < end:
                    pulled = await consumer.pull(queue, timeout_s=2.0, count_max=1000)
                    numbers.extend(int(message.body) for message in pulled)
        everything = Counter(number for numbers in read.values() for number in numbers)
        assert everything == Counter(results.keys()), "every message once"
        for queue_id, numbers in read.items():
            pinned = [number for number in numbers if number % 3]
            assert pinned == sorted(pinned)
            for offset, number in enumerate(numbers):
                result = results[number]
                assert (result.queue.queue_id, result.queue_offset) == (queue_id, offset)
        assert not any(result.may_be_twice for result in results.values())
        unknown = [result for result in results.values() if result.outcome_unknown_attempts]
        assert unknown, "no send was cut off: the run shows nothing"

    asyncio.run(run())
