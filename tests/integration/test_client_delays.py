"""Our client's delays, retries and dead letters against three real replicas whose leader dies."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.server import Broker
from cli.main import run as run_cli
from dledger.client.config import ProducerConfig, PushConsumerConfig, SessionConfig
from dledger.client.producer import AsyncProducer
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.errors import (
    BrokerResponseError,
    InvalidParameterError,
    MessageRejectedError,
    RequestTimeoutError,
)
from dledger.message import Message, ReceivedMessage
from dledger.model import ConsumeFrom
from nameserver.server import NameserverConfig, NameserverServer
from tests.support.brokers import broker_group, eventually, serving_leader

QUICK = SessionConfig(request_timeout_s=1.0, connect_timeout_s=1.0, operation_timeout_s=10.0)


@contextlib.asynccontextmanager
async def cluster(
    tmp_path: Path, count: int = 3, **changes: Any
) -> AsyncIterator[tuple[dict[str, Broker], str]]:
    nameserver = NameserverServer(NameserverConfig(port=0))
    await nameserver.start()
    address = f"127.0.0.1:{nameserver.port}"
    try:
        async with broker_group(tmp_path, count, nameservers=[address], **changes) as brokers:
            leader = await serving_leader(brokers)
            await eventually(lambda: leader.store.topic("rmq_sys_wheel_timer"), "the system topics")
            yield brokers, address
    finally:
        await nameserver.stop()


def producing(nameserver: str) -> AsyncProducer:
    return AsyncProducer("pg", nameserver=nameserver, config=ProducerConfig(session=QUICK))


def consuming(nameserver: str, group: str = "cg", **settings: Any) -> AsyncPushConsumer:
    return AsyncPushConsumer(
        group,
        subscriptions={"t": "*"},
        nameserver=nameserver,
        consume_from=ConsumeFrom.EARLIEST,
        config=PushConsumerConfig(session=QUICK, suspend_s=2.0, **settings),
    )


async def crash(brokers: dict[str, Broker]) -> None:
    leader = await serving_leader(brokers)
    brokers.pop(leader.config.replica_id)
    leader.raft.crash()
    await leader.stop()


def test_delays_of_our_own_producer(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cluster(tmp_path, 1) as (brokers, nameserver),
            producing(nameserver) as producer,
            consuming(nameserver) as consumer,
        ):
            now = time.time()
            at = datetime.datetime.fromtimestamp(now + 0.9, datetime.UTC)
            results = [
                await producer.send(Message("t", b"delay"), delay=0.6),
                await producer.send(Message("t", b"timedelta"), delay=datetime.timedelta(days=40)),
                await producer.send(Message("t", b"datetime"), deliver_at=at),
                await producer.send(Message("t", b"past"), deliver_at=now - 9),
                await producer.send(Message("t", b"recalled"), deliver_at=now + 1.0),
            ]
            assert [bool(result.recall_handle) for result in results] == [1, 1, 1, 0, 1]
            await producer.recall(results[4].recall_handle)
            with pytest.raises(BrokerResponseError):
                await producer.recall(results[4].recall_handle)
            with pytest.raises(InvalidParameterError):
                await producer.recall("nonsense")
            got: dict[bytes, float] = {}
            async for message in consumer.messages(idle_timeout_s=2.0):
                assert message.body not in got
                got[message.body] = time.time() - now
            assert set(got) == {b"past", b"delay", b"datetime"}
            assert got[b"delay"] >= 0.6
            assert got[b"datetime"] >= 0.9
            (broker,) = brokers.values()
            assert broker.store.timers.count() == 1

    asyncio.run(main())


def test_wrong_delays_are_refused_here() -> None:
    async def main() -> None:
        producer = AsyncProducer("pg", nameserver="127.0.0.1:1")
        await producer.start()
        message = Message("t", b"x")
        for wrong in (
            {"delay": -1},
            {"delay": 1, "deliver_at": 1},
            {"deliver_at": datetime.datetime(2030, 1, 1)},  # noqa: DTZ001 - that is the point
        ):
            with pytest.raises(InvalidParameterError):
                await producer.send(message, **wrong)  # type: ignore[arg-type]
        with pytest.raises(MessageRejectedError):
            await producer.send(Message("t", b"x", properties={"DELAY": "1"}), delay=1)
        await producer.close()

    asyncio.run(main())


def test_delays_and_retries_through_a_fail_over(tmp_path: Path) -> None:
    """Every message once from its timer, and every failed one again, whoever leads."""

    async def main() -> None:
        async with cluster(tmp_path, 3) as (brokers, nameserver):
            handled: Counter[bytes] = Counter()
            failed: set[bytes] = set()
            early: list[bytes] = []
            due: dict[bytes, float] = {}

            async def handler(message: ReceivedMessage) -> None:
                assert message.topic == "t"
                if time.time() < due[message.body]:
                    early.append(message.body)
                if int(message.body) % 5 == 0 and message.body not in failed:
                    failed.add(message.body)
                    message.nack(0.3, reason="first time")
                else:
                    handled[message.body] += 1

            async with producing(nameserver) as producer, consuming(nameserver) as consumer:
                start = time.time() + 1.0
                due = {b"%d" % n: start + n * 0.01 for n in range(150)}
                results = await asyncio.gather(
                    *(producer.send(Message("t", b), deliver_at=at) for b, at in due.items())
                )
                task = asyncio.create_task(consumer.run(handler))
                await eventually(lambda: len(handled) > 30, "some are handled", 20)
                await crash(brokers)
                await eventually(lambda: len(handled) == 150, "all are handled", 30)
                leader = await serving_leader(brokers)
                await eventually(lambda: leader.store.timers.count() == 0, "no timer is left")
                consumer.stop()
                await task
            assert early == []
            assert failed == {b"%d" % n for n in range(0, 150, 5)}
            # From its timer each came once; a message may be handled twice if the leader died
            # between handling and commit, or a nack was made twice for want of an answer.
            topic = leader.store.topic("t")
            assert topic is not None
            stored = sum(
                leader.store.queue_bounds(topic.topic_id, q)[1]
                for q in range(topic.read_queue_count)
            )
            assert stored == 150
            assert not any(result.may_be_twice for result in results)

    asyncio.run(main())


def test_dead_letters_are_listed_shown_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ended(nameserver: str, *arguments: str) -> tuple[int, str, str]:
        # The command makes a loop of its own.
        code = await asyncio.to_thread(run_cli, ["dlq", *arguments, "--nameserver", nameserver])
        return (code, *capsys.readouterr())

    async def cli(nameserver: str, *arguments: str) -> Any:
        code, out, error = await ended(nameserver, *arguments)
        assert code == 0, error
        return json.loads(out) if "--json" in arguments else out

    async def main() -> None:
        async with cluster(tmp_path, 1) as (_, nameserver):
            again: list[ReceivedMessage] = []

            async def handler(message: ReceivedMessage) -> None:
                if "replaying" in state:
                    again.append(message)
                elif message.body == b"never":
                    message.nack(dead_letter=True, reason="no such customer")
                else:
                    message.nack(0.05, reason="try again")

            state: set[str] = set()
            async with producing(nameserver) as producer:
                for body in (b"never", b"later", b"later"):
                    await producer.send(Message("t", body, keys=["k"], properties={"a": "b"}))
            async with consuming(nameserver, reconsume_max=2) as consumer:
                assert await cli(nameserver, "show", "cg", "--json") == []  # none, and no error
                for command in ("show", "replay"):
                    code, out, error = await ended(nameserver, command, "nobody")
                    assert (code, out) == (1, "")
                    assert "no broker has consumer group nobody" in error
                task = asyncio.create_task(consumer.run(handler))

                async def dead() -> bool:
                    listed = await cli(nameserver, "list", "--json")
                    return [entry["count"] for entry in listed] == [3]

                await eventually(dead, "three dead letters", 20)
                assert "cg" in await cli(nameserver, "list")
                shown = await cli(nameserver, "show", "cg", "--json")
                assert [(s["body"], s["original_topic"], s["reason"]) for s in shown] == [
                    ("never", "t", "no such customer"),
                    ("later", "t", "try again"),
                    ("later", "t", "try again"),
                ]
                assert [len(s["failed_at_ms"]) for s in shown] == [1, 3, 3]
                assert "no such customer" in await cli(nameserver, "show", "cg")
                would = await cli(nameserver, "replay", "cg", "--dry-run", "--json")
                assert (len(would["replayed"]), again) == (3, [])
                assert "would replay 3" in await cli(nameserver, "replay", "cg", "--dry-run")
                state.add("replaying")
                before = time.monotonic()
                await cli(nameserver, "replay", "cg", "--count", "2", "--rate", "4")
                assert time.monotonic() - before >= 0.25
                await eventually(lambda: len(again) == 2, "two came again", 20)
                assert {message.topic for message in again} == {"t"}
                assert [message.reconsume_times for message in again] == [0, 0]
                assert again[0].properties["a"] == "b"
                assert [e["not_replayed"] for e in await cli(nameserver, "list", "--json")] == [1]
                assert "replayed 1 " in await cli(nameserver, "replay", "cg", "--to", "topic")
                await eventually(lambda: len(again) == 3, "the third came again", 20)
                assert "RETRY_TOPIC" not in again[2].properties
                assert "replayed 0 " in await cli(nameserver, "replay", "cg")
                one = shown[0]["message_id"]
                assert "replayed 1 " in await cli(nameserver, "replay", "cg", "--id", one)
                await eventually(lambda: len(again) == 4, "the first came once more", 20)
                consumer.stop()
                await task

    asyncio.run(main())


def test_request_and_reply(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cluster(tmp_path, 3) as (brokers, nameserver),
            producing(nameserver) as asking,
            producing(nameserver) as answering,
            consuming(nameserver) as consumer,
        ):

            async def handler(message: ReceivedMessage) -> None:
                if message.body == b"quiet":
                    return
                await answering.reply(message, b"re: " + message.body, properties={"a": "b"})

            task = asyncio.create_task(consumer.run(handler))
            answer = await asking.request(Message("t", b"hello"), timeout_s=15)
            assert (answer.body, answer.properties["a"]) == (b"re: hello", "b")
            answers = await asyncio.gather(
                *(asking.request(Message("t", b"%d" % n), timeout_s=15) for n in range(20))
            )
            assert [a.body for a in answers] == [b"re: %d" % n for n in range(20)]
            with pytest.raises(RequestTimeoutError):
                await asking.request(Message("t", b"quiet"), timeout_s=0.5)
            with pytest.raises(InvalidParameterError):
                await answering.reply(ReceivedMessage(topic="t", body=b""), b"")
            lost = ReceivedMessage(
                topic="t",
                body=b"",
                broker_name="broker-a",
                properties={
                    "CLUSTER": "DefaultCluster",
                    "REPLY_TO_CLIENT": "nobody",
                    "CORRELATION_ID": "1",
                },
            )
            with pytest.raises(BrokerResponseError, match="not found"):
                await answering.reply(lost, b"")
            await crash(brokers)
            answer = await asking.request(Message("t", b"again"), timeout_s=15)
            assert answer.body == b"re: again"
            consumer.stop()
            await task

    asyncio.run(main())
