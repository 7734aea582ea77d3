"""Where a pull consumer begins: by offset, by time, at the ends; and what it leaves out."""

import datetime
import time

import pytest

from dledger import Message, Producer, PullConsumer, Sql, errors
from dledger.testing import LocalCluster


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(replicas=1) as cluster:
        yield cluster


@pytest.fixture
def filled(cluster, request):
    topic = request.node.name
    cluster.create_topic(topic, queue_count=1)
    with Producer("p", nameserver=cluster.nameserver) as producer:
        stored = []
        for number in range(4):
            producer.send(Message(topic, b"%d" % number, properties={"n": str(number)}))
            stored.append(int(time.time() * 1000))
            while int(time.time() * 1000) <= stored[-1]:
                pass  # the next one is of another millisecond
    with PullConsumer("reader", nameserver=cluster.nameserver) as consumer:
        yield consumer, consumer.queues(topic)[0], stored


def read(consumer, queue, **options):
    return [message.body for message in consumer.pull(queue, timeout_s=0, **options)]


def test_by_offset_and_to_the_ends(filled):
    consumer, queue, _ = filled
    consumer.seek(queue, 3)
    assert read(consumer, queue) == [b"3"]
    assert consumer.seek_to_begin(queue) == 0
    assert read(consumer, queue, count_max=2) == [b"0", b"1"]
    assert consumer.seek_to_end(queue) == 4
    assert read(consumer, queue) == []


def test_by_time(filled):
    consumer, queue, stored = filled
    assert consumer.seek_to_time(queue, stored[1] + 1) == 2
    assert read(consumer, queue) == [b"2", b"3"]
    moment = datetime.datetime.fromtimestamp((stored[2] + 1) / 1000, datetime.UTC)
    assert consumer.seek_to_time(queue, moment) == 3
    assert consumer.seek_to_time(queue, 0) == 0
    assert consumer.seek_to_time(queue, stored[-1] + 60_000) == 4


def test_a_time_that_makes_no_sense_is_refused_and_moves_nothing(filled):
    consumer, queue, _ = filled
    consumer.seek(queue, 3)
    for wrong in (-1, datetime.datetime(2026, 1, 1)):  # noqa: DTZ001
        with pytest.raises(errors.InvalidParameterError):
            consumer.seek_to_time(queue, wrong)
    assert consumer.position(queue) == 3


def test_a_condition_in_sql(filled):
    consumer, queue, _ = filled
    assert read(consumer, queue, expression=Sql("n BETWEEN 1 AND 2")) == [b"1", b"2"]
