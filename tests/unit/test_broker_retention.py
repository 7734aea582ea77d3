"""Which segments go, and what the state keeps of what is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.commands import encode_put_topic, encode_trim_log, encode_trim_queues
from broker.retention import DatedSegment, Patience, choose_boundary
from broker.state_machine import BrokerStateMachine
from dledger.errors import OffsetOutOfRangeError
from dledger.model import TopicConfig
from store import state_keys as keys
from store.segment import SegmentFacts
from store.state_cleaning import INDEX_SWEPT_MIN
from store.state_store import StateStore

HOUR = 3_600_000


def segments(*newest_hours: float | None) -> list[DatedSegment]:
    """One segment of 100 bytes and 10 entries for each age of its newest message in hours."""
    return [
        DatedSegment(
            SegmentFacts(100 * n, 100 * n + 100, 10 * n + 1, 10 * n + 10),
            None if hours is None else int((1000 - hours) * HOUR),
        )
        for n, hours in enumerate(newest_hours)
    ]


def boundary(found: list[DatedSegment], **changes: int) -> int | None:
    values = {
        "now_ms": 1000 * HOUR,
        "retention_ms": 72 * HOUR,
        "bytes_max": 0,
        "bytes_short": 0,
        "log_bytes": 100 * len(found) + 50,
        "index_max": 1000,
        **changes,
    }
    return choose_boundary(found, **values)


@pytest.mark.parametrize(
    ("ages", "changes", "expected"),
    [
        ([], {}, None),
        ([71, 50, 1], {}, None),
        ([100, 73, 71], {}, 200),
        ([100, 73, 72.5], {}, 300),
        # A segment without messages is as old as the next one.
        ([None, 73, 1], {}, 200),
        ([None, 1], {}, None),
        ([None, None], {}, None),
        # A gap in time (a slow clock) protects what is behind it.
        ([100, 1, 100], {}, 100),
        # Entries that something needs.
        ([100, 100, 100], {"index_max": 20}, 100),
        ([100, 100, 100], {"index_max": 21}, 200),
        ([100, 100, 100], {"index_max": 0}, None),
        # Bytes: 350 in all.
        ([1, 1, 1], {"bytes_max": 350}, None),
        ([1, 1, 1], {"bytes_max": 349}, 100),
        ([1, 1, 1], {"bytes_max": 149}, 300),
        ([1, 1, 1], {"bytes_max": 1}, 300),
        ([1, 1, 1], {"bytes_short": 1}, 100),
        ([1, 1, 1], {"bytes_short": 101}, 200),
        ([1, 1, 1], {"bytes_short": 101, "index_max": 11}, 100),
    ],
)
def test_choice(ages: list[float | None], changes: dict[str, int], expected: int | None) -> None:
    assert boundary(segments(*ages), **changes) == expected


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    made = StateStore.open(tmp_path, map_bytes=1 << 20, boot_id=lambda: "b")
    yield made
    made.close()


class Entry:
    record = b""
    term = 1

    def __init__(self, index: int, body: bytes) -> None:
        self.index, self.body = index, body


def apply(store: StateStore, *bodies: bytes) -> list[object]:
    machine = BrokerStateMachine(store)
    return machine.apply([Entry(store.applied_index + 1 + n, b) for n, b in enumerate(bodies)])


def fill(store: StateStore, count: int) -> int:
    """Appends messages of 100 bytes at physical offsets 0, 100, ... with a key each."""
    apply(store, encode_put_topic(TopicConfig(name="t")))
    topic = store.topic("t")
    assert topic is not None
    with store.write() as batch:
        units = b"".join(keys.UNIT.pack(100 * n, 100, 0) for n in range(count))
        batch.append_units(topic.topic_id, 0, 0, units)
        for n in range(count):
            stem = keys.key_stem(topic.topic_id, b"key", unique=False)
            batch.put_keys(len(stem) + 8, stem + keys.KEY_TAIL.pack(100 * n, 5))
        batch.set_applied(store.applied_index + 1, 1)
    return topic.topic_id


def no_ops(store: StateStore, count: int) -> None:
    for _ in range(count):
        apply(store, b"\x01")


def pairs(store: StateStore, name: str) -> int:
    return sum(1 for _ in store._range(name, b""))


def test_minimums_rise_and_never_fall(store: StateStore) -> None:
    topic_id = fill(store, 100)
    apply(store, encode_trim_queues([(topic_id, 0, 40), (99, 0, 5), (topic_id, 7, 5)]))
    assert store.queue_bounds(topic_id, 0) == (40, 100)
    assert store.queue_bounds(topic_id, 7) == (0, 0)
    with pytest.raises(OffsetOutOfRangeError):
        store.read_units(topic_id, 0, 39, 1)
    assert store.read_units(topic_id, 0, 40, 1)[0].physical_offset == 4000
    apply(store, encode_trim_queues([(topic_id, 0, 10)]))
    assert store.queue_bounds(topic_id, 0) == (40, 100)
    apply(store, encode_trim_queues([(topic_id, 0, 1000)]))
    assert store.queue_bounds(topic_id, 0) == (100, 100)


def test_an_emptied_queue_goes_on_at_its_maximum(store: StateStore) -> None:
    topic_id = fill(store, 70)
    apply(store, encode_trim_queues([(topic_id, 0, 70)]))
    with store.write() as batch:
        assert batch.append_units(topic_id, 0, 70, keys.UNIT.pack(7000, 100, 0)) == 71
        batch.set_applied(store.applied_index + 1, 1)
    assert store.queue_bounds(topic_id, 0) == (70, 71)
    assert store.read_units(topic_id, 0, 70, 5)[0].physical_offset == 7000


def test_what_is_gone_is_removed_in_small_steps_and_after_a_restart(tmp_path: Path) -> None:
    store = StateStore.open(tmp_path, map_bytes=1 << 20, boot_id=lambda: "b")
    topic_id = fill(store, 32 * 1500)
    apply(store, encode_trim_queues([(topic_id, 0, 32 * 1400 + 5)]))
    apply(store, encode_trim_log(100 * (32 * 1400 + 5)))
    assert store.retained_offset == 100 * (32 * 1400 + 5)
    digest = store.digest()
    assert 100 < pairs(store, "consume_queue") <= 1500 - 512
    found = store.find_by_key(topic_id, "key", unique=False, limit=100_000)
    assert len(found) == 32 * 100 - 5
    store.close(clean=False)
    store = StateStore.open(tmp_path, map_bytes=1 << 20, boot_id=lambda: "b")
    assert store.queue_bounds(topic_id, 0) == (32 * 1400 + 5, 32 * 1500)
    no_ops(store, 60)
    assert pairs(store, "consume_queue") == 100
    assert pairs(store, "key_index") == 32 * 100 - 5
    assert pairs(store, "garbage") == 0
    # Only the applied index differs: what was removed did not count before.
    with store.write() as batch:
        batch.set_applied(store.applied_index - 60, 1)
    assert store.digest() == digest
    store.close()


@pytest.mark.parametrize("put_count", [500, 4000])
def test_the_key_index_stays_level_however_often_retention_moves_on(
    store: StateStore, put_count: int
) -> None:
    """Many small transactions and few large ones; a pass takes longer than retention waits."""
    apply(store, encode_put_topic(TopicConfig(name="t")))
    live = 20 * put_count
    most = written = 0
    while written < 8 * live:
        with store.write() as batch:
            for producer in (b"a", b"m", b"z"):
                stem = keys.key_stem(1, producer, unique=True)
                for n in range(put_count // 3):
                    offset = 100 * (written + 3 * n)
                    batch.put_keys(len(stem) + 8, stem + keys.KEY_TAIL.pack(offset, 5))
            written += put_count
            batch.set_retained(100 * max(0, written - live))
            batch.set_applied(store.applied_index + 1, 1)
        most = max(most, pairs(store, "key_index"))
    assert live * 0.95 < most < 1.7 * live


def test_a_pass_that_retention_overtakes_is_followed_by_another(store: StateStore) -> None:
    count = 3 * INDEX_SWEPT_MIN
    fill(store, count)
    apply(store, encode_trim_log(100 * 5))
    apply(store, encode_trim_log(100 * (count - 7)))
    assert pairs(store, "key_index") > count - 10
    no_ops(store, 10)
    assert pairs(store, "key_index") == 7


def test_a_trimmed_queue_of_a_deleted_topic(store: StateStore) -> None:
    topic_id = fill(store, 32 * 3)
    apply(store, encode_trim_queues([(topic_id, 0, 64)]))
    from broker.commands import encode_delete_topic

    apply(store, encode_trim_queues([(topic_id, 0, 70)]), encode_delete_topic("t"))
    no_ops(store, 3)
    assert pairs(store, "consume_queue") == pairs(store, "garbage") == 0
    assert store.queue_bounds(topic_id, 0) == (0, 0)


def follower(
    match_index: int, *, connected: int = 1, snapshot_index: int = 0, snapshot_bytes: int = 0
) -> dict[str, int]:
    return {
        "match_index": match_index,
        "connected": connected,
        "snapshot_index": snapshot_index,
        "snapshot_bytes": snapshot_bytes,
    }


def test_the_log_is_kept_for_connected_followers_only() -> None:
    patience = Patience(60)
    assert patience.needed_index(0, None, {}) is None
    progress = {"b": follower(7), "c": follower(3, connected=0)}
    assert patience.needed_index(0, 5, progress) == 7
    assert patience.needed_index(1000, 5, progress) == 7


def test_a_follower_that_takes_nothing_is_waited_for_only_so_long() -> None:
    patience = Patience(60)
    progress = {"b": follower(7), "c": follower(90)}
    assert patience.needed_index(0, None, progress) == 7
    assert patience.needed_index(100, 10, progress) == 7
    assert patience.needed_index(159, 10, progress) == 7
    assert patience.needed_index(160, 10, progress) == 90
    # Further segments do not wait anew, as long as it does not go on.
    assert patience.needed_index(161, 20, progress) == 90
    # It got a snapshot: it counts again.
    progress["b"] = follower(40)
    assert patience.needed_index(162, 20, progress) == 40


def test_a_slow_follower_has_so_long_for_each_segment() -> None:
    patience = Patience(60)
    for turn in range(20):
        progress = {"b": follower(10 * turn + 1)}
        assert patience.needed_index(50 * turn, 10 * turn + 10, progress) == 10 * turn + 1


def test_a_follower_that_receives_a_snapshot_goes_on() -> None:
    patience = Patience(60)
    for turn in range(10):
        progress = {"b": follower(0, snapshot_bytes=turn)}
        assert patience.needed_index(50 * turn, 10, progress) == 0
    assert patience.needed_index(50 * 9 + 60, 10, progress) is None


def test_whoever_goes_on_however_slowly_is_waited_for() -> None:
    """It used to have so long for a segment, and then a snapshot after the other, for ever."""
    patience = Patience(60)
    for turn in range(100):
        progress = {"b": follower(1 + turn)}
        assert patience.needed_index(50 * turn, 1000, progress) == 1 + turn
    assert patience.needed_index(50 * 99 + 60, 1000, progress) is None
    # It had been stopped, and goes on: with a snapshot, which nothing must overtake.
    progress = {"b": follower(100, snapshot_index=5000, snapshot_bytes=1)}
    assert patience.needed_index(6000, 1000, progress) == 100


def test_a_newer_snapshot_counts_from_its_own_beginning() -> None:
    patience = Patience(60)
    for turn in range(20):
        progress = {"b": follower(0, snapshot_index=10, snapshot_bytes=1000 * turn)}
        assert patience.needed_index(50 * turn, 10, progress) == 0
    for turn in range(20, 40):  # smaller than the older one had got
        progress = {"b": follower(0, snapshot_index=20, snapshot_bytes=turn)}
        assert patience.needed_index(50 * turn, 10, progress) == 0


def test_pieces_of_the_same_snapshot_that_come_again_and_again_are_no_progress() -> None:
    patience = Patience(60)
    for turn in range(10):  # a full disk there
        progress = {"b": follower(0, snapshot_index=10, snapshot_bytes=turn % 2)}
        patience.needed_index(10 * turn, 10, progress)
    assert patience.needed_index(10 + 60, 10, progress) is None


def test_a_short_break_of_the_connection_does_not_cost_the_snapshot() -> None:
    patience = Patience(60)
    progress = {"b": follower(3, connected=0)}
    assert patience.needed_index(0, 10, progress) is None, "it was away before"
    progress = {"b": follower(3, snapshot_index=20, snapshot_bytes=7)}
    assert patience.needed_index(1, 10, progress) == 3
    progress = {"b": follower(3, connected=0)}
    assert patience.needed_index(60, 10, progress) == 3
    assert patience.needed_index(61, 10, progress) is None


def test_a_disk_that_is_short_of_space_waits_only_so_long_for_a_segment() -> None:
    patience = Patience(60)
    for turn in range(10):
        progress = {"b": follower(1, snapshot_index=20, snapshot_bytes=turn)}
        assert patience.needed_index(10 * turn, 10, progress) == 1
    assert patience.needed_index(91, 10, progress, is_short=True) is None
    assert patience.needed_index(92, 10, progress) == 1, "there is space again"
