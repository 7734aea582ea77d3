"""The table of producers' lanes: what is recognised, what is dropped and what survives."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest

from dledger.errors import ConfigError
from dledger.model import TopicConfig
from store.producer_lanes import (
    LANE_HEAD,
    LANE_KEY,
    LaneBatch,
    LaneChanges,
    LaneLimits,
    Lanes,
    Repeated,
    SendRecord,
    find_batch,
    load_lanes,
)
from store.state_store import StateStore

LIMITS = LaneLimits(lanes_max=3, idle_s=10, batches_max=2)


def send(producer: int, sequence: int, count: int = 1, *, topic: int = 1, queue: int = 0):
    return SendRecord(producer, sequence, topic, queue, sequence + 100, count, sequence + 5000)


def record(lanes: Lanes, index: int, *sends: SendRecord, at_ms: int = 0, limits=LIMITS) -> None:
    changes = LaneChanges(lanes)
    changes.record(sends, limits=limits, index=index, timestamp_ms=at_ms)
    changes.apply()


def producers(lanes: Lanes) -> list[int]:
    return [LANE_KEY.unpack(key)[0] for key in lanes]


def found(lanes: Lanes, producer: int, sequence: int, count: int = 1) -> LaneBatch | Repeated:
    return find_batch(lanes.get(LANE_KEY.pack(producer, 1, 0)), sequence, count)


def test_the_last_batches_are_recognised_and_older_ones_refused() -> None:
    lanes: Lanes = OrderedDict()
    assert found(lanes, 1, 0) is Repeated.NO
    for index, (sequence, count) in enumerate([(0, 3), (3, 1), (10, 5)]):
        record(lanes, index, send(1, sequence, count))
    assert found(lanes, 1, 10, 5) == LaneBatch(10, 5, 110, 5010)
    assert found(lanes, 1, 3, 1) == LaneBatch(3, 1, 103, 5003)
    for sequence, count in [(0, 3), (3, 2), (10, 4), (11, 4), (14, 1)]:
        assert found(lanes, 1, sequence, count) is Repeated.TOO_OLD
    assert found(lanes, 1, 15) is Repeated.NO
    assert found(lanes, 2, 0) is Repeated.NO
    record(lanes, 9, send(1, 20), limits=LaneLimits(batches_max=1))
    assert found(lanes, 1, 10, 5) is Repeated.TOO_OLD


def test_the_longest_unused_lanes_make_room() -> None:
    lanes: Lanes = OrderedDict()
    record(lanes, 1, send(1, 0), send(2, 0), send(3, 0))
    record(lanes, 2, send(1, 1), send(4, 0))
    assert producers(lanes) == [3, 1, 4]
    # All of it in one transaction that uses everything the table held.
    record(lanes, 3, send(3, 1), send(1, 2), send(4, 1), send(5, 0), send(6, 0), send(3, 2))
    assert producers(lanes) == [5, 6, 3]
    record(lanes, 4, send(7, 0), limits=LaneLimits(lanes_max=1))
    assert producers(lanes) == [3, 7], "two with every send"
    record(lanes, 5, send(7, 1), limits=LaneLimits(lanes_max=1))
    assert producers(lanes) == [7]


def test_unused_lanes_expire_by_the_times_in_the_log() -> None:
    lanes: Lanes = OrderedDict()
    record(lanes, 1, send(1, 0), send(2, 0), at_ms=1_000)
    record(lanes, 2, send(2, 1), at_ms=11_000)
    assert producers(lanes) == [1, 2]
    record(lanes, 3, send(2, 2), at_ms=11_001)
    assert producers(lanes) == [2]
    record(lanes, 4, send(2, 3), at_ms=0)
    assert producers(lanes) == [2], "a leader whose clock is behind"


def test_loading_restores_the_order() -> None:
    lanes: Lanes = OrderedDict()
    record(lanes, 300, send(9, 0), send(1, 0))
    record(lanes, 301, send(5, 0))
    loaded = load_lanes(iter(sorted(lanes.items())))
    assert list(loaded.items()) == list(lanes.items())


@pytest.mark.parametrize("field", ["lanes_max", "idle_s", "batches_max"])
def test_limits_are_checked(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        LaneLimits(**{field: 0})


def test_sends_to_topics_that_are_gone_leave_a_gap_in_the_numbers() -> None:
    lanes: Lanes = Lanes()
    changes = LaneChanges(lanes)
    sends = [send(1, 0), send(2, 0, topic=8), send(3, 0)]
    changes.record(sends, limits=LIMITS, index=5, timestamp_ms=9, without=[8])
    changes.apply()
    assert producers(lanes) == [1, 3]
    # The numbers are those of the entry, whichever topics a replica still has.
    assert [LANE_HEAD.unpack_from(lane) for lane in lanes.values()] == [(5, 0, 9), (5, 2, 9)]


def test_the_store_keeps_lanes_with_their_topic(tmp_path: Path) -> None:
    def opened() -> StateStore:
        return StateStore.open(tmp_path, map_bytes=1 << 20, boot_id=lambda: "b")

    def put(store: StateStore, index: int, *sends: SendRecord) -> None:
        with store.write() as batch:
            batch.record_sends(sends, limits=LIMITS, index=index, timestamp_ms=0)
            batch.set_applied(index, 1)

    store = opened()
    with store.write() as batch:
        for name in ("t", "u"):
            batch.put_topic(TopicConfig(name=name))
    put(store, 2, send(1, 0, 2), send(1, 0, topic=2), send(2, 0, queue=5))
    with pytest.raises(RuntimeError), store.write() as batch:
        batch.record_sends([send(1, 2)], limits=LIMITS, index=3, timestamp_ms=0)
        raise RuntimeError
    assert store.find_send(1, 1, 0, 2, 1) is Repeated.NO
    store.close(clean=False)

    store = opened()
    assert store.find_send(1, 1, 0, 0, 2) == LaneBatch(0, 2, 100, 5000)
    assert store.statistics().lane_count == 3
    put(store, 3, send(3, 0))  # drops the longest unused
    assert store.find_send(1, 1, 0, 0, 2) is Repeated.NO
    with store.write() as batch:
        batch.record_sends([send(4, 0, topic=2)], limits=LIMITS, index=4, timestamp_ms=0)
        batch.delete_topic("t")
        batch.set_applied(4, 1)
    assert store.find_send(3, 1, 0, 0, 1) is Repeated.NO
    assert store.find_send(2, 1, 5, 0, 1) is Repeated.NO
    assert store.find_send(4, 2, 0, 0, 1) == LaneBatch(0, 1, 100, 5000)
    digest = store.digest()
    store.close()
    store = opened()
    assert store.digest() == digest
    assert store.statistics().lane_count == 1
    store.close()
