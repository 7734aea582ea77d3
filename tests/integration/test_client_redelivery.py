"""What a push consumer does with messages that its handler could not process."""

from __future__ import annotations

import asyncio
import datetime
from collections import Counter
from pathlib import Path

import pytest

from dledger.client.config import ProducerConfig, PushConsumerConfig, SessionConfig
from dledger.client.producer import AsyncProducer
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.client.redelivery import delay_level
from dledger.client.sync import PushConsumer
from dledger.errors import ConfigError, InvalidParameterError
from dledger.message import Message, ReceivedMessage, Rejection
from dledger.model import ConsumeFrom, MessageModel, MessageQueue
from tests.support.fake_cluster import FakeCluster

QUICK = SessionConfig(request_timeout_s=1.0, connect_timeout_s=1.0, operation_timeout_s=1.0)


def push(
    cluster: FakeCluster,
    message_model: MessageModel = MessageModel.CLUSTERING,
    **settings: object,
) -> AsyncPushConsumer:
    settings = {"suspend_s": 0.3, "redelivery_min_s": 0.02, "redelivery_max_s": 0.1, **settings}
    return AsyncPushConsumer(
        "cg",
        subscriptions={"t": "*"},
        nameserver=cluster.nameserver,
        consume_from=ConsumeFrom.EARLIEST,
        message_model=message_model,
        config=PushConsumerConfig(session=QUICK, **settings),  # type: ignore[arg-type]
    )


async def fill(cluster: FakeCluster, count: int) -> None:
    cluster.create_topic("t", 2)
    async with AsyncProducer(
        "pg", nameserver=cluster.nameserver, config=ProducerConfig(session=QUICK)
    ) as producer:
        await asyncio.gather(
            *(producer.send(Message("t", b"%d" % n), queue=n % 2) for n in range(count))
        )


def offsets(cluster: FakeCluster) -> dict[tuple[str, int], int]:
    return {key[1:]: value for key, value in cluster.group.offsets.items()}


@pytest.mark.parametrize("how", ["exception", "nack"])
def test_a_failed_message_goes_back_and_comes_again_under_its_own_topic(how: str) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 20)
            attempts: Counter[bytes] = Counter()
            seen: list[ReceivedMessage] = []

            async def handler(message: ReceivedMessage) -> None:
                seen.append(message)
                attempts[message.body] += 1
                if message.body == b"7" and attempts[b"7"] < 3:
                    if how == "exception":
                        raise ValueError("not yet")
                    message.nack(0.5, reason="not yet")
                if sum(attempts.values()) == 22:
                    consumer.stop()

            async with asyncio.timeout(20), push(cluster, reconsume_max=5) as consumer:
                await consumer.run(handler)
            assert attempts == {b"%d" % n: 3 if n == 7 else 1 for n in range(20)}
            assert {message.topic for message in seen} == {"t"}
            assert [m.reconsume_times for m in seen if m.body == b"7"] == [0, 1, 2]
            # Nothing holds the group back, and the retries are committed as well.
            assert offsets(cluster) == {("t", 0): 10, ("t", 1): 10, ("%RETRY%cg", 0): 2}
            first, _ = cluster.group.sent_back
            assert (first.group, first.max_reconsume_times) == ("cg", 5)
            if how == "nack":
                assert (first.delay_level, first.delay_ms, first.reason) == (1, 500, "not yet")
            else:
                assert (first.delay_level, first.delay_ms) == (0, None)
                assert first.reason == "ValueError: not yet"

    asyncio.run(main())


def test_iteration_can_reject_too_and_give_up_for_good() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 10)
            bodies: list[bytes] = []
            async with asyncio.timeout(10), push(cluster) as consumer:
                async for message in consumer.messages(idle_timeout_s=0.8):
                    bodies.append(message.body)
                    if message.body == b"3":
                        message.nack(dead_letter=True, reason="never")
                    if message.body == b"4" and not message.reconsume_times:
                        message.nack(datetime.timedelta(milliseconds=1))
            assert Counter(bodies) == {b"%d" % n: 2 if n == 4 else 1 for n in range(10)}
            assert cluster.group.bodies("%DLQ%cg", 0) == [b"3"]
            assert offsets(cluster)["t", 1] == 5

    asyncio.run(main())


def test_what_the_broker_does_not_take_stays_here() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 4)
            cluster.group.refuse_send_back = True
            attempts: Counter[bytes] = Counter()

            async def handler(message: ReceivedMessage) -> None:
                attempts[message.body] += 1
                if message.body == b"1" and attempts[b"1"] < 4:
                    raise ValueError("not yet")
                if sum(attempts.values()) == 7:
                    consumer.stop()

            async with asyncio.timeout(10), push(cluster, commit_interval_s=0.02) as consumer:
                await consumer.run(handler)
            assert attempts == {b"0": 1, b"1": 4, b"2": 1, b"3": 1}
            assert offsets(cluster) == {("t", 0): 2, ("t", 1): 2}
            assert cluster.group.sent_back == []

    asyncio.run(main())


def test_rejections_are_checked_and_become_levels() -> None:
    message = ReceivedMessage(topic="t", body=b"")
    for delay in (-1, float("nan"), datetime.timedelta(days=-1)):
        with pytest.raises(InvalidParameterError):
            message.nack(delay)
    assert message.rejection is None
    levels = {None: 0, 0: 1, 1000: 1, 1001: 2, 10_000: 3, 7_200_000: 18, 10**9: 18}
    for delay_ms, level in levels.items():
        assert delay_level(Rejection(delay_ms=delay_ms)) == level
    assert delay_level(Rejection(delay_ms=5, dead_letter=True)) == -1


# --- broadcast ----------------------------------------------------------------------------------

BROADCAST = MessageModel.BROADCASTING


def test_every_broadcast_consumer_gets_everything_and_goes_on_where_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 30)
            directory = str(tmp_path)

            async def read(consumer: AsyncPushConsumer) -> Counter[bytes]:
                return Counter([m.body async for m in consumer.messages(idle_timeout_s=0.8)])

            for expected in (30, 0):
                async with (
                    asyncio.timeout(20),
                    push(cluster, BROADCAST, offset_directory=directory) as one,
                    push(cluster, BROADCAST, offset_directory=directory) as two,
                ):
                    got = await asyncio.gather(read(one), read(two))
                    assert len(one.assignment) == 2
                for bodies in got:
                    assert sum(bodies.values()) == len(bodies) == expected
            assert offsets(cluster) == {}  # nothing of it at the brokers

    asyncio.run(main())
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["cg.2.json", "cg.json"]


def test_a_failed_broadcast_message_comes_again_here(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            await fill(cluster, 4)
            attempts: Counter[bytes] = Counter()

            async def handler(message: ReceivedMessage) -> None:
                attempts[message.body] += 1
                if message.body == b"1" and attempts[b"1"] < 3:
                    raise ValueError("not yet")
                if sum(attempts.values()) == 6:
                    consumer.stop()

            settings = {"offset_directory": str(tmp_path)}
            async with asyncio.timeout(10), push(cluster, BROADCAST, **settings) as consumer:
                await consumer.run(handler)
            assert attempts[b"1"] == 3
            assert cluster.group.sent_back == []

    asyncio.run(main())


def test_a_damaged_offset_file_is_not_overwritten(tmp_path: Path) -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            path = tmp_path / "cg.json"
            for content in (b"{", b'{"version": 2, "offsets": []}'):
                path.write_bytes(content)
                consumer = push(cluster, BROADCAST, offset_directory=str(tmp_path))
                with pytest.raises(ConfigError, match=r"cg\.json"):
                    await consumer.start()
                await consumer.close()
                assert path.read_bytes() == content

    asyncio.run(main())


def test_the_synchronous_consumer_broadcasts_too(tmp_path: Path) -> None:
    config = PushConsumerConfig(offset_directory=str(tmp_path))
    consumer = PushConsumer(
        "cg",
        subscriptions={"t": "*"},
        nameserver="127.0.0.1:1",
        message_model=BROADCAST,
        config=config,
    )
    assert consumer._inner.reader._message_model is BROADCAST
    assert MessageQueue("t", "b", 0)
