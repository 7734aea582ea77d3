"""StateStore: what one batch stores, what a failed one leaves, and whom it trusts when opened."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from dledger.errors import (
    CorruptRecordError,
    DiskFailureError,
    DiskFullError,
    InvariantError,
    OffsetOutOfRangeError,
    StoreClosedError,
)
from dledger.model import GroupConfig, QueueUnit, TopicConfig
from store import state_keys as keys
from store.lmdb_env import DATA_FILE, LmdbEnvironment, WriteTransaction
from store.state_batch import ConsumerOffset, WriteBatch
from store.state_cleaning import GARBAGE_REMOVED_MAX
from store.state_store import MARK_FILE, StateStore


def opened(path: Path, *, boot: str = "boot-1", map_bytes: int = 1 << 20) -> StateStore:
    return StateStore.open(path, map_bytes=map_bytes, boot_id=lambda: boot)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    made = opened(tmp_path)
    yield made
    made.close()


def units(first: int, count: int) -> list[QueueUnit]:
    return [QueueUnit(1000 * n, 100 + n % 7, n - 5) for n in range(first, first + count)]


def packed(rows: list[QueueUnit]) -> bytes:
    return b"".join(keys.UNIT.pack(*row) for row in rows)


def append(batch: WriteBatch, topic_id: int, queue_id: int, first: int, count: int) -> None:
    assert batch.append_units(topic_id, queue_id, first, packed(units(first, count)))


def put_key(
    batch: WriteBatch, topic_id: int, key: str, at: int, ms: int, *, unique: bool = False
) -> None:
    stem = keys.key_stem(topic_id, key.encode(), unique=unique)
    batch.put_keys(len(stem) + 8, stem + keys.KEY_TAIL.pack(at, ms))


def pair_count(store: StateStore, name: str) -> int:
    environment: LmdbEnvironment = store._environment
    with environment.read() as transaction:
        return int(transaction.stat(environment.databases[name])["entries"])


# --- tables -------------------------------------------------------------------------------------


def test_topics_get_ids_that_are_never_used_again(store: StateStore) -> None:
    with store.write() as batch:
        a = batch.put_topic(TopicConfig(name="a"))
        b = batch.put_topic(TopicConfig(name="b", topic_id=99, permission=4))
    assert (a.topic_id, b.topic_id) == (1, 2)
    assert store.topic("b") == b == store.topic_by_id(2)
    with store.write() as batch:
        changed = batch.put_topic(TopicConfig(name="b", write_queue_count=16))
        assert batch.delete_topic("a")
        assert not batch.delete_topic("a")
        again = batch.put_topic(TopicConfig(name="a"))
    assert (changed.topic_id, changed.write_queue_count) == (2, 16)
    assert again.topic_id == 3
    assert dict(store.topics) == {"a": again, "b": changed}
    assert store.topic_by_id(1) is None


def test_ids_are_not_reused_after_reopening(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with store.write() as batch:
        batch.put_topic(TopicConfig(name="a"))
        batch.delete_topic("a")
    store.close()
    store = opened(tmp_path)
    with store.write() as batch:
        assert batch.put_topic(TopicConfig(name="a")).topic_id == 2
    store.close()


def test_snapshots_of_the_tables_never_change(store: StateStore) -> None:
    topics, groups = store.topics, store.groups
    with store.write() as batch:
        batch.put_topic(TopicConfig(name="a"))
        batch.put_group(GroupConfig(name="g", retry_max=3))
        assert store.topic("a") is None
    assert not topics
    assert not groups
    assert store.group("g") == GroupConfig(name="g", retry_max=3)
    with pytest.raises(TypeError):
        store.topics["x"] = TopicConfig(name="x")  # type: ignore[index]


def test_names_out_of_range_are_a_broken_invariant(store: StateStore) -> None:
    for name in ("", "x" * 256):
        with pytest.raises(InvariantError), store.write() as batch:
            batch.put_topic(TopicConfig(name=name))
        with pytest.raises(InvariantError), store.write() as batch:
            batch.put_group(GroupConfig(name=name))
    with store.write() as batch:
        batch.put_topic(TopicConfig(name="x" * 255))


# --- ConsumeQueue -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1] * 70, [32, 32, 1], [31, 2, 64], [100], [33, 31, 5]])
def test_units_are_read_as_appended(store: StateStore, sizes: list[int]) -> None:
    with store.write() as batch:
        topic_id = batch.put_topic(TopicConfig(name="a")).topic_id
    total = 0
    for size in sizes:
        with store.write() as batch:
            append(batch, topic_id, 3, total, size)
        total += size
    assert store.queue_bounds(topic_id, 3) == (0, total)
    expected = units(0, total)
    for start in range(total + 1):
        for count in (0, 1, 31, 32, 33, total, 10**9):
            assert store.read_units(topic_id, 3, start, count) == expected[start : start + count]


def test_a_queue_written_several_times_in_one_batch(store: StateStore) -> None:
    with store.write() as batch:
        topic_id = batch.put_topic(TopicConfig(name="a")).topic_id
        append(batch, topic_id, 0, 0, 40)
        append(batch, topic_id, 1, 0, 1)
        append(batch, topic_id, 0, 40, 30)
    assert store.read_units(topic_id, 0, 0, 99) == units(0, 70)
    assert store.read_units(topic_id, 1, 0, 99) == units(0, 1)


def test_reads_outside_the_queue(store: StateStore) -> None:
    with store.write() as batch:
        topic_id = batch.put_topic(TopicConfig(name="a")).topic_id
        append(batch, topic_id, 0, 0, 5)
    assert store.read_units(topic_id, 0, 5, 10) == []
    for start in (-1, 6):
        with pytest.raises(OffsetOutOfRangeError):
            store.read_units(topic_id, 0, start, 1)
    assert store.queue_bounds(topic_id, 7) == (0, 0)
    assert store.read_units(topic_id, 7, 0, 1) == []


@pytest.mark.parametrize(("first", "size"), [(1, 20), (0, 19), (0, 0)])
def test_units_that_do_not_fit_are_a_broken_invariant(
    store: StateStore, first: int, size: int
) -> None:
    with pytest.raises(InvariantError, match="contiguous"), store.write() as batch:
        topic_id = batch.put_topic(TopicConfig(name="a")).topic_id
        batch.append_units(topic_id, 0, first, bytes(size))
    assert not store.topics


def test_units_for_an_unknown_topic_are_refused(store: StateStore) -> None:
    with store.write() as batch:
        assert batch.append_units(1, 0, 0, packed(units(0, 1))) is None


def test_missing_chunks_are_reported(store: StateStore) -> None:
    with store.write() as batch:
        topic_id = batch.put_topic(TopicConfig(name="a")).topic_id
        append(batch, topic_id, 0, 0, 70)

    def lose(transaction: WriteTransaction) -> None:
        database = store._environment.databases["consume_queue"]
        transaction.delete(keys.CHUNK_KEY.pack(topic_id, 0, 1), db=database)

    store._environment.write(lose, bytes_estimate=0)
    assert store.read_units(topic_id, 0, 0, 32) == units(0, 32)
    with pytest.raises(CorruptRecordError):
        store.read_units(topic_id, 0, 0, 33)


# --- consumer offsets ---------------------------------------------------------------------------


def test_consumer_offsets(store: StateStore) -> None:
    with store.write() as batch:
        batch.put_topic(TopicConfig(name="a"))
        batch.put_topic(TopicConfig(name="b"))
        stored = batch.put_consumer_offsets(
            [
                ConsumerOffset("g", "a", 0, 5),
                ConsumerOffset("g", "a", 0, 3),
                ConsumerOffset("g", "b", 1, 7),
                ConsumerOffset("gg", "a", 0, 9),
                ConsumerOffset("g", "none", 0, 1),
            ]
        )
    assert stored == 4
    assert store.consumer_offset("g", "a", 0) == 3
    assert store.consumer_offset("g", "a", 1) is None
    assert store.consumer_offset("g", "none", 0) is None
    assert store.consumer_offset("", "a", 0) is None
    assert store.consumer_offset("x" * 300, "a", 0) is None
    assert store.consumer_offset("g", "a", -1) is None
    assert store.consumer_offsets("g") == {("a", 0): 3, ("b", 1): 7}
    assert store.consumer_offsets("gg") == {("a", 0): 9}
    assert store.consumer_offsets("") == {}
    assert store.groups_with_offsets() == ["g", "gg"]


def test_deleting_a_topic_takes_its_offsets_along(store: StateStore) -> None:
    names = ["a", "b"]
    with store.write() as batch:
        for name in names:
            batch.put_topic(TopicConfig(name=name))
        for group in ("g", "h", "hh"):
            batch.put_consumer_offsets(
                [ConsumerOffset(group, name, queue, 1) for name in names for queue in range(3)]
            )
    with store.write() as batch:
        batch.put_consumer_offsets([ConsumerOffset("new", "a", 0, 1)])
        batch.delete_topic("a")
        batch.put_topic(TopicConfig(name="a"))
        batch.put_consumer_offsets([ConsumerOffset("h", "a", 2, 8)])
    assert store.consumer_offsets("g") == {("b", queue): 1 for queue in range(3)}
    assert store.consumer_offsets("h") == {("b", 0): 1, ("b", 1): 1, ("b", 2): 1, ("a", 2): 8}
    assert store.consumer_offsets("new") == {}
    assert pair_count(store, "consumer_offsets") == 10


@pytest.mark.parametrize("delete_offsets", [True, False])
def test_deleting_a_group(store: StateStore, delete_offsets: bool) -> None:
    with store.write() as batch:
        batch.put_topic(TopicConfig(name="a"))
        for group in ("g", "gg"):
            batch.put_group(GroupConfig(name=group))
            batch.put_consumer_offsets([ConsumerOffset(group, "a", 0, 1)])
    with store.write() as batch:
        batch.put_consumer_offsets([ConsumerOffset("g", "a", 1, 1)])
        assert batch.delete_group("g", delete_offsets=delete_offsets)
        assert not batch.delete_group("g", delete_offsets=delete_offsets)
        batch.put_consumer_offsets([ConsumerOffset("g", "a", 2, 1)])
    assert list(store.groups) == ["gg"]
    expected = {("a", 2): 1} if delete_offsets else {("a", queue): 1 for queue in range(3)}
    assert store.consumer_offsets("g") == expected
    assert store.consumer_offsets("gg") == {("a", 0): 1}


# --- key index ----------------------------------------------------------------------------------


def test_keys_are_found_newest_first_and_by_time(store: StateStore) -> None:
    with store.write() as batch:
        topic_id = batch.put_topic(TopicConfig(name="a")).topic_id
        other = batch.put_topic(TopicConfig(name="b")).topic_id
        for at in (1, 255, 256, 70_000, 2**40):
            put_key(batch, topic_id, "k", at, 1000 + at % 1000)
            put_key(batch, topic_id, "kk", at + 1, 5)
            put_key(batch, topic_id, "k", at + 2, 6, unique=True)
            put_key(batch, other, "k", at + 3, 7)
        put_key(batch, topic_id, "\xff" * 40, 9, 9)
    found = store.find_by_key(topic_id, "k", unique=False)
    assert found == [2**40, 70_000, 256, 255, 1]
    assert store.find_by_key(topic_id, "k", unique=False, limit=2) == found[:2]
    assert store.find_by_key(topic_id, "k", unique=False, begin_ms=1256) == [2**40, 256]
    assert store.find_by_key(topic_id, "k", unique=False, end_ms=1001) == [70_000, 1]
    assert store.find_by_key(topic_id, "k", unique=True, limit=1) == [2**40 + 2]
    assert store.find_by_key(topic_id, "\xff" * 40, unique=False) == [9]
    for missing in ("", "x", "kkk"):
        assert store.find_by_key(topic_id, missing, unique=False) == []
    assert store.find_by_key(77, "k", unique=False) == []
    assert store.find_by_key(topic_id, "k", unique=False, limit=0) == []


@pytest.mark.parametrize("length", [63, 64, 65, 5000])
def test_long_keys(store: StateStore, length: int) -> None:
    first, second = "x" * length, "x" * (length - 1) + "y"
    with store.write() as batch:
        topic_id = batch.put_topic(TopicConfig(name="a")).topic_id
        put_key(batch, topic_id, first, 1, 1)
        put_key(batch, topic_id, second, 2, 1)
        put_key(batch, topic_id, first, 3, 1)
    assert store.find_by_key(topic_id, first, unique=False) == [3, 1]
    assert store.find_by_key(topic_id, second, unique=False) == [2]


def test_the_same_bytes_as_raw_key_and_as_hash_do_not_meet() -> None:
    stem = keys.key_stem(1, b"x" * 65, unique=False)
    assert keys.key_stem(1, stem[6:], unique=False) != stem


@pytest.mark.parametrize(("key_bytes", "size"), [(46, 53), (14, 22), (79, 87)])
def test_malformed_key_records_are_a_broken_invariant(
    store: StateStore, key_bytes: int, size: int
) -> None:
    with pytest.raises(InvariantError), store.write() as batch:
        batch.put_keys(key_bytes, bytes(size))


# --- deleted topics -----------------------------------------------------------------------------


def test_what_a_deleted_topic_leaves_is_removed_bit_by_bit(tmp_path: Path) -> None:
    store = opened(tmp_path)
    count = 2 * GARBAGE_REMOVED_MAX
    with store.write() as batch:
        a = batch.put_topic(TopicConfig(name="a")).topic_id
        b = batch.put_topic(TopicConfig(name="b")).topic_id
        for topic_id in (a, b):
            for number in range(count):
                put_key(batch, topic_id, f"{number}", number, 1)
            append(batch, topic_id, 0, 0, 100)
            append(batch, topic_id, 1, 0, 1)
    with store.write() as batch:
        batch.delete_topic("a")
    assert store.queue_bounds(a, 0) == (0, 0)
    assert store.find_by_key(a, "1", unique=False) == []
    expected_digest = store.digest()
    assert count < pair_count(store, "key_index") < 2 * count
    store.close(clean=False)
    store = opened(tmp_path)
    for _ in range(3):
        with store.write():
            pass
    assert pair_count(store, "key_index") == count
    assert pair_count(store, "consume_queue") == 5
    assert pair_count(store, "garbage") == 0
    assert store.digest() == expected_digest
    assert store.read_units(b, 0, 0, 200) == units(0, 100)
    store.close()


# --- transactions -------------------------------------------------------------------------------


def fill(batch: WriteBatch) -> None:
    topic_id = batch.put_topic(TopicConfig(name="a")).topic_id
    first = batch._tables.applied_index
    batch.put_group(GroupConfig(name="g"))
    append(batch, topic_id, 0, first * 5, 5)
    batch.put_consumer_offsets([ConsumerOffset("g", "a", 0, first)])
    put_key(batch, topic_id, "k", first, 1)
    batch.set_applied(first + 1, 7)


def visible(store: StateStore) -> object:
    return (
        dict(store.topics),
        dict(store.groups),
        store.queue_bounds(1, 0),
        store.consumer_offsets("g"),
        store.applied_index,
        store.applied_term,
        store.digest(),
    )


def test_an_aborted_batch_leaves_everything_as_it_was(store: StateStore) -> None:
    with store.write() as batch:
        fill(batch)
    before = visible(store)
    with pytest.raises(ZeroDivisionError), store.write() as batch:
        fill(batch)
        batch.delete_topic("a")
        raise ZeroDivisionError
    assert visible(store) == before
    with store.write() as batch:
        fill(batch)
    assert store.applied_index == 2


def test_a_failed_commit_leaves_everything_as_it_was(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.write() as batch:
        fill(batch)
    before = visible(store)

    def full(*_: object, **__: object) -> None:
        raise DiskFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(LmdbEnvironment, "write", full)
        with pytest.raises(DiskFullError), store.write() as batch:
            fill(batch)
            batch.delete_topic("a")
            batch.put_topic(TopicConfig(name="c"))
    assert visible(store) == before
    with store.write() as batch:
        fill(batch)
    assert store.queue_bounds(1, 0) == (0, 10)


def test_a_batch_is_run_again_when_the_map_must_grow(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with store.write() as batch:
        topic_id = batch.put_topic(TopicConfig(name="a")).topic_id
        for number in range(30_000):
            put_key(batch, topic_id, f"{number:060}", number, 1)
        append(batch, topic_id, 0, 0, 40)
        batch._bytes_estimate = 0
    assert store.statistics().map_bytes > 1 << 20
    assert pair_count(store, "key_index") == 30_000
    assert store.read_units(topic_id, 0, 0, 99) == units(0, 40)
    store.close()


def test_one_batch_at_a_time(store: StateStore) -> None:
    with store.write(), pytest.raises(InvariantError), store.write():
        pass


# --- opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "boot", "kept"),
    [
        pytest.param(False, "boot-1", True, id="process killed"),
        pytest.param(True, "boot-2", True, id="closed, machine restarted"),
        pytest.param(False, "boot-2", False, id="machine stopped"),
        pytest.param(False, "", False, id="killed, boot unknown"),
    ],
)
def test_whom_it_trusts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, clean: bool, boot: str, kept: bool
) -> None:
    store = opened(tmp_path)
    with store.write() as batch:
        fill(batch)
    before = visible(store)
    store.close(clean=clean)
    with caplog.at_level(logging.WARNING):
        store = opened(tmp_path, boot=boot)
    assert (visible(store) == before) is kept
    assert store.applied_index == int(kept)
    assert ("state discarded" in caplog.text) is not kept
    store.close()


def test_a_clean_mark_does_not_outlive_the_next_opening(tmp_path: Path) -> None:
    opened(tmp_path).close()
    store = opened(tmp_path, boot="boot-1")
    with store.write() as batch:
        fill(batch)
    store.close(clean=False)
    store = opened(tmp_path, boot="boot-2")
    assert store.applied_index == 0
    store.close()


@pytest.mark.parametrize("damage", ["mark lost", "mark torn", "data garbage", "other format"])
def test_damaged_files_are_discarded(tmp_path: Path, damage: str) -> None:
    store = opened(tmp_path)
    with store.write() as batch:
        fill(batch)
    if damage == "other format":

        def put(transaction: WriteTransaction) -> None:
            database = store._environment.databases["meta"]
            transaction.put(keys.FORMAT_KEY, b"\0\0\0\x63", db=database)

        store._environment.write(put, bytes_estimate=0)
    store.close()
    if damage == "mark lost":
        (tmp_path / MARK_FILE).unlink()
    elif damage == "mark torn":
        (tmp_path / MARK_FILE).write_bytes((tmp_path / MARK_FILE).read_bytes()[:-3])
    elif damage == "data garbage":
        (tmp_path / DATA_FILE).write_bytes(b"\x55" * 65536)
    store = opened(tmp_path)
    assert store.applied_index == 0
    with store.write() as batch:
        fill(batch)
    store.close()
    store = opened(tmp_path)
    assert store.applied_index == 1
    store.close()


def test_an_unusable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskFailureError, match="file"):
        opened(tmp_path / "file")


def test_closed_stores_refuse(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StoreClosedError):
        store.consumer_offsets("g")
    with pytest.raises(StoreClosedError), store.write():
        pass


def test_statistics_and_repr(store: StateStore) -> None:
    with store.write() as batch:
        fill(batch)
    statistics = store.statistics()
    assert statistics[:4] == (1, 1, 1, 1)
    assert 0 < statistics.used_bytes <= statistics.map_bytes
    assert "applied=1/7 topics=1 queues=1" in repr(store)


def test_an_empty_store_is_small_on_disk(tmp_path: Path) -> None:
    store = StateStore.open(tmp_path, boot_id=lambda: "b")
    with store.write() as batch:
        fill(batch)
    assert (tmp_path / DATA_FILE).stat().st_size <= 4 << 20
    store.close()


def test_layouts_are_golden() -> None:
    assert keys.UNIT.pack(2**40, 300, -2).hex() == "00000100000000000000012cfffffffffffffffe"
    assert keys.CHUNK_KEY.pack(1, 2, 3).hex() == "00000001000000020000000000000003"
    assert keys.consumer_offset_key(b"ab", 1, 2).hex() == "0261620000000100000002"
    assert keys.key_stem(7, b"k1", unique=True).hex() == "0000000701026b31"
    assert keys.key_stem(7, b"k1", unique=False).hex() == "0000000702026b31"
    assert keys.key_stem(7, b"k" * 65, unique=False).hex() == (
        "00000007822027a33ab5f962e81b85ecfb44e4571282b63a5b66f71dcee1dfd51eebbcdf8e18"
    )
