"""The synchronous fronts, from one thread and from several."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import dledger
from dledger.client.background import BackgroundLoop
from dledger.client.config import AdminConfig, ProducerConfig, PushConsumerConfig, SessionConfig
from dledger.client.sync import Producer, PullConsumer, PushConsumer
from dledger.client.sync_admin import Admin
from dledger.errors import (
    ClientClosedError,
    LocalProtocolError,
    NotFoundError,
    RouteNotFoundError,
    TopicNotFoundError,
)
from dledger.message import Message, ReceivedMessage
from dledger.model import ConsumeFrom, MessageQueue
from tests.support.fake_cluster import FakeCluster

QUICK = SessionConfig(request_timeout_s=1.0, connect_timeout_s=1.0, operation_timeout_s=3.0)


@contextmanager
def running(**settings: object) -> Iterator[FakeCluster]:
    """A fake cluster on a thread of its own."""
    loop = BackgroundLoop("fake cluster")
    loop.start()
    cluster = FakeCluster(**settings)  # type: ignore[arg-type]
    loop.run(cluster.__aenter__())
    try:
        yield cluster
    finally:
        loop.run(cluster.__aexit__())
        loop.stop()


def push(cluster: FakeCluster, **settings: object) -> PushConsumer:
    settings = {"suspend_s": 0.3, "redelivery_min_s": 0.02, "redelivery_max_s": 0.1, **settings}
    return PushConsumer(
        "cg",
        subscriptions={"t": "*"},
        nameserver=cluster.nameserver,
        consume_from=ConsumeFrom.EARLIEST,
        config=PushConsumerConfig(session=QUICK, **settings),  # type: ignore[arg-type]
    )


def producer(cluster: FakeCluster) -> Producer:
    return Producer("pg", nameserver=cluster.nameserver, config=ProducerConfig(session=QUICK))


def fill(cluster: FakeCluster, count: int) -> None:
    cluster.create_topic("t")
    with producer(cluster) as sender:
        futures = [sender.submit(Message("t", b"%d" % n), queue=n % 4) for n in range(count)]
        for future in futures:
            future.result(10)


def test_several_threads_share_a_producer() -> None:
    with running() as cluster, producer(cluster) as sender:
        cluster.create_topic("t")
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for n in range(50):
                    result = sender.send(Message("t", b"%d-%d" % (number, n)), queue=number % 4)
                    assert result.queue.queue_id == number % 4
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not errors
        for number in range(8):
            bodies = [
                b for b in cluster.group.bodies("t", number % 4) if b.startswith(b"%d-" % number)
            ]
            assert bodies == [b"%d-%d" % (number, n) for n in range(50)]
        assert len(sender.send_batch([Message("t", b"x"), Message("t", b"y")])) == 2
        sender.send_oneway(Message("t", b"z"))
        sender.wait_idle()
        assert sender.statistics().sent == 402
        assert len(sender.queues("t")) == 4


def test_a_wrong_type_is_told_to_its_caller() -> None:
    with running() as cluster, producer(cluster) as sender:
        with pytest.raises(AttributeError):
            sender.send("not a message")  # type: ignore[arg-type]
        cluster.create_topic("t")
        sender.send(Message("t", b"x"))


def test_close_drains_what_was_submitted() -> None:
    with running() as cluster:
        cluster.create_topic("t")
        cluster.group.send_delay_s = 0.01
        sender = producer(cluster)
        sender.start()
        futures = [sender.submit(Message("t", b"%d" % n)) for n in range(500)]
        sender.close()
        assert all(future.done() for future in futures)
        assert len(cluster.group.messages()) == 500


def test_iteration_and_commit() -> None:
    with running() as cluster:
        fill(cluster, 400)
        seen: Counter[bytes] = Counter()
        with push(cluster) as consumer:
            for message in consumer:
                seen[message.body] += 1
                if len(seen) == 150:
                    consumer.commit()
                    assert sum(cluster.group.offsets.values()) == 150
                    break
        with push(cluster) as consumer:
            for message in consumer.messages(idle_timeout_s=0.5):
                seen[message.body] += 1
        assert seen == Counter(b"%d" % n for n in range(400))
        assert sum(cluster.group.offsets.values()) == 400


def test_an_exception_in_the_loop_does_not_lose_the_message() -> None:
    with running() as cluster:
        fill(cluster, 40)
        with pytest.raises(ZeroDivisionError), push(cluster) as consumer:
            for number, _ in enumerate(consumer):
                if number == 10:
                    raise ZeroDivisionError
        assert sum(cluster.group.offsets.values()) == 10


def test_several_threads_iterate() -> None:
    with running() as cluster:
        fill(cluster, 1000)
        seen: list[bytes] = []
        with push(cluster) as consumer:

            def work() -> None:
                seen.extend(m.body for m in consumer.messages(idle_timeout_s=0.5))

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        assert sorted(seen) == sorted(b"%d" % n for n in range(1000))
        assert sum(cluster.group.offsets.values()) == 1000


@pytest.mark.parametrize("threads", [1, 4])
def test_a_handler_in_threads(threads: int) -> None:
    with running() as cluster:
        fill(cluster, 100)
        lock = threading.Lock()
        done: Counter[bytes] = Counter()
        failed: set[bytes] = set()
        with push(cluster) as consumer:

            def handler(message: ReceivedMessage) -> None:
                with lock:
                    if message.body in (b"3", b"50") and message.body not in failed:
                        failed.add(message.body)
                        raise ValueError("not yet")
                    done[message.body] += 1
                    if len(done) == 100:
                        consumer.stop()

            consumer.run(handler, threads=threads)
        assert done == Counter(b"%d" % n for n in range(100))
        assert failed == {b"3", b"50"}
        offsets = cluster.group.offsets
        assert sum(offsets["cg", "t", queue_id] for queue_id in range(4)) == 100
        assert len(cluster.group.sent_back) == 2


def test_close_from_another_thread_ends_an_iteration() -> None:
    with running() as cluster:
        fill(cluster, 4)
        consumer = push(cluster)
        consumer.start()
        count = 0
        closer: threading.Thread | None = None
        for _ in consumer:
            count += 1
            if count == 4:
                closer = threading.Timer(0.1, consumer.close)
                closer.start()
        assert count == 4
        assert closer is not None
        closer.join(10)
        with pytest.raises(ClientClosedError):
            iter(consumer)
        with pytest.raises(ClientClosedError):
            consumer.poll(0.1)


def test_pull_consumer() -> None:
    with running() as cluster:
        fill(cluster, 40)
        queue = MessageQueue("t", "broker-a", 1)
        with PullConsumer("cg", nameserver=cluster.nameserver) as consumer:
            assert queue in consumer.queues("t")
            assert len(consumer.pull(queue, count_max=3, timeout_s=1)) == 3
            assert consumer.position(queue) == 3
            consumer.commit(queue)
            assert consumer.committed(queue) == 3
            assert (consumer.offset_min(queue), consumer.offset_max(queue)) == (0, 10)
            assert consumer.offset_at(queue, 0) == 0
            consumer.seek(queue, 9)
            assert len(consumer.pull(queue, timeout_s=0)) == 1
        with pytest.raises(ClientClosedError):
            consumer.pull(queue)


def test_admin() -> None:
    with (
        running() as cluster,
        Admin(nameserver=cluster.nameserver, config=AdminConfig(session=QUICK)) as admin,
    ):
        admin.create_topic("made", queue_count=6)
        assert admin.topics() == ["made"]
        assert admin.topic("made")["broker-a"].write_queue_count == 6
        assert len(admin.queues("made")) == 6
        assert [entry.name for entry in admin.describe_topics()] == ["made"]
        fill(cluster, 40)
        with producer(cluster) as sender:
            result = sender.send(Message("t", b"find me", keys=["k7"]), queue=2)
        assert admin.message(result.offset_message_id).body == b"find me"
        assert admin.message(result.message_id, "t").body == b"find me"
        assert [m.body for m in admin.messages_by_key("t", "k7")] == [b"find me"]
        assert admin.messages_by_key("t", "k8") == []
        with pytest.raises(NotFoundError):
            admin.message("0" * 32, "t")
        assert [bound.offset_max for bound in admin.bounds("t")] == [10, 10, 11, 10]
        queue = MessageQueue("t", "broker-a", 2)
        assert admin.committed("cg", queue) is None
        admin.set_committed("cg", queue, 4)
        progress = admin.consumer_progress("cg")
        assert [(entry.queue, entry.lag) for entry in progress] == [(queue, 7)]
        info = admin.cluster()
        leader = info.brokers["broker-a"].addresses[0]
        assert admin.broker_runtime_info(leader)["replicaId"] == "broker-a-0"
        cluster.group.elect(1)  # changes follow the leader
        admin.delete_topic("made")
        with pytest.raises(TopicNotFoundError):
            admin.topic("made")
        with pytest.raises(RouteNotFoundError):
            admin.queues("made")
    with pytest.raises(ClientClosedError):
        admin.topics()


def test_use_before_start_and_after_close() -> None:
    with running() as cluster:
        sender = producer(cluster)
        with pytest.raises(ClientClosedError) as caught:
            sender.send(Message("t", b"x"))
        assert caught.value.definite
        sender.start()
        sender.close()
        sender.close()
        with pytest.raises(ClientClosedError):
            sender.send(Message("t", b"x"))
        with pytest.raises(ClientClosedError):
            sender.submit(Message("t", b"x"))
        with pytest.raises(ClientClosedError):
            sender.start()
        consumer = push(cluster)
        with pytest.raises(ClientClosedError):
            iter(consumer)
        consumer.close()


def test_waiting_on_the_loops_own_thread_is_refused() -> None:
    loop = BackgroundLoop("own")
    loop.start()
    try:

        async def inside() -> None:
            loop.run(asyncio.sleep(0))

        with pytest.raises(LocalProtocolError):
            loop.run(inside())
    finally:
        loop.stop()
    with pytest.raises(ClientClosedError):
        loop.run(asyncio.sleep(0))


def test_the_face_is_lazy_and_complete() -> None:
    for name in dledger.__all__:
        assert getattr(dledger, name) is not None
    assert set(dledger.__all__) <= set(dir(dledger))
    with pytest.raises(AttributeError):
        dledger.nothing  # noqa: B018
    code = (
        "import sys, dledger, dledger.errors; "
        "sys.exit(any(name.startswith('dledger.client') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
