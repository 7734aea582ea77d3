"""Small parts of the broker: the write gate, time search, attributes, registered topics."""

import random

import pytest

from broker.gate import WriteGate
from broker.messages import first_at_or_after
from broker.processors.topics import change_attributes
from broker.registration import registered_topics
from dledger.errors import (
    DiskFullError,
    FlowControlError,
    InvalidParameterError,
    NotLeaderError,
)
from dledger.model import TopicConfig


class Leadership:
    is_serving = True
    leader_id = "a-1"
    term = 7
    pending_bytes = 0


def test_the_gate_names_why_a_write_is_refused():
    raft = Leadership()
    gate = WriteGate(raft, disk_free_min_bytes=100, pending_bytes_max=50)
    gate.check()
    raft.pending_bytes = 50
    with pytest.raises(FlowControlError, match=r"pending_bytes_max = 50"):
        gate.check()
    raft.pending_bytes = 0
    gate.observe_disk(99)
    assert gate.is_disk_full
    with pytest.raises(DiskFullError, match="99 bytes are free"):
        gate.check()
    gate.observe_disk(100)
    gate.check()
    raft.is_serving = False
    with pytest.raises(NotLeaderError, match="a-1"):
        gate.check()


def test_time_search_finds_the_first_not_before():
    rng = random.Random(3)
    for _ in range(300):
        start = rng.randrange(5)
        times = sorted(rng.randrange(10) for _ in range(rng.randrange(8)))
        wanted = rng.randrange(12)
        stop = start + len(times)
        expected = next((start + n for n, t in enumerate(times) if t >= wanted), stop)
        read = dict(enumerate(times, start)).__getitem__
        assert first_at_or_after(start, stop, wanted, read) == expected


def test_time_search_ends_even_if_a_clock_went_back():
    rng = random.Random(4)
    for _ in range(100):
        times = [rng.randrange(10) for _ in range(20)]
        assert 0 <= first_at_or_after(0, 20, rng.randrange(12), times.__getitem__) <= 20


def test_attributes_are_added_changed_and_removed():
    assert change_attributes({"a": "1", "b": "2"}, "+c=3,-a, +b=4 ") == {"b": "4", "c": "3"}
    assert change_attributes({"a": "1"}, "") == {"a": "1"}


@pytest.mark.parametrize("text", ["a=1", "+a", "+a=", "-a=1", "+=1", "+a b=1", "+" + "x" * 300])
def test_bad_attributes_are_refused(text):
    with pytest.raises(InvalidParameterError):
        change_attributes({}, text)


def test_stored_topics_win_over_the_system_topics_of_the_same_name():
    system = [TopicConfig(name="s", read_queue_count=1), TopicConfig(name="x")]
    stored = {"s": TopicConfig(name="s", read_queue_count=9), "t": TopicConfig(name="t")}
    found = registered_topics(system, stored)
    assert set(found) == {"s", "t", "x"}
    assert found["s"].read_queue_count == 9
