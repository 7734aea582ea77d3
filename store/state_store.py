"""What applied log entries have made: topics, groups, ConsumeQueues, consumer offsets, key index.

`StateStore` reads, `state_batch.WriteBatch` writes. One batch is one LMDB transaction, and the
applied index is part of it: effects are stored exactly once, whatever dies in between. What is
kept in memory (topics, groups, producers' lanes, bounds of queues) changes only after the commit.

Durability: a committed batch is *written*: it survives the death of the process. After an unclean
stop of the machine the content is discarded at the next `open`, the applied index is 0 again, and
the log is replayed: the log is the truth.

Concurrency: one thread (the event loop) uses a store.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from dledger.errors import Corruption, CorruptRecordError, OffsetOutOfRangeError, invariant
from dledger.model import GroupConfig, QueueUnit, TopicConfig
from store import state_keys as keys
from store.clean_mark import CleanMark, machine_boot_id, read_mark, write_mark
from store.lmdb_env import (
    DATA_FILE,
    LOCK_FILE,
    LmdbEnvironment,
    ReadCursor,
    UnusableStateError,
    WriteTransaction,
    store_errors,
)
from store.producer_lanes import LANE_KEY, LaneBatch, Repeated, find_batch, load_lanes
from store.snapshots import replace_data_file
from store.state_batch import DATABASE_NAMES, WriteBatch
from store.state_rows import RowReader
from store.state_tables import StateTables
from store.timer_table import TimerReader

_logger = logging.getLogger(__name__)

MARK_FILE: Final = "state.mark"
MAP_BYTES: Final = 1 << 30
MAP_BYTES_MAX: Final = 1 << 40
UNITS_READ_MAX: Final = 100_000
# How many index entries of one key a query looks at before it gives up on older ones.
KEY_ENTRIES_SCANNED_MAX: Final = 65_536

_decode_topic = msgspec.msgpack.Decoder(TopicConfig).decode
_decode_group = msgspec.msgpack.Decoder(GroupConfig).decode


class StateStatistics(NamedTuple):
    """Sizes of a store."""

    applied_index: int
    topic_count: int
    group_count: int
    queue_count: int
    lane_count: int
    used_bytes: int
    map_bytes: int


class StateStore:
    """The state of one replica in one LMDB environment. Made by `open`."""

    def __init__(self, path: Path, environment: LmdbEnvironment, boot_id: str) -> None:
        self._path = path
        self._environment = environment
        self._boot_id = boot_id
        self._batch_open = False
        self._closed = False
        self.rows = RowReader(environment)
        # Invariant: equal to what the last committed transaction holds.
        self._tables = _load_tables(environment)
        self.timers = TimerReader(environment)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        map_bytes: int = MAP_BYTES,
        map_bytes_max: int = MAP_BYTES_MAX,
        boot_id: Callable[[], str] = machine_boot_id,
        restore: Callable[[Path], object] | None = None,
    ) -> StateStore:
        """Opens or creates the store in a directory.

        A store that cannot be trusted (see the module's docstring), or that is not readable or
        of another format version, is emptied, and restored from a snapshot if there is one: its
        applied index is then the snapshot's, or 0.

        Args:
            path: A directory of the store's own; created if missing. Its owner has locked the
                data directory around it against other processes.
            map_bytes: Address space to begin with.
            map_bytes_max: Where the environment stops growing.
            boot_id: Returns a text that changes when the machine boots.
            restore: Called with the directory after it was emptied; may put a data file there.

        Raises:
            DiskFullError: No room for an empty store.
            DiskFailureError: The directory cannot be used.

        Cost:
            Proportional to the number of topics and queues, not of messages.
        """
        path = Path(path)
        current_boot = boot_id()
        with store_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            if (path / DATA_FILE).exists():
                mark = read_mark(path / MARK_FILE)
                if mark is None or not mark.trusts(current_boot):
                    _discard(path, "machine stopped before the state was synced", restore)
            # The mark goes first: should the machine stop right after the first write, it must
            # not say clean.
            write_mark(path / MARK_FILE, CleanMark(current_boot, clean=False))

        def opened() -> StateStore:
            environment = LmdbEnvironment(
                path,
                database_names=DATABASE_NAMES,
                map_bytes=map_bytes,
                map_bytes_max=map_bytes_max,
            )
            try:
                _check_format(environment)
                return cls(path, environment, current_boot)
            except BaseException:
                environment.close()
                raise

        try:
            return opened()
        except UnusableStateError as exc:
            with store_errors(path):
                _discard(path, str(exc), restore)
            return opened()

    def close(self, *, clean: bool = True) -> None:
        """Closes the store. Idempotent.

        Args:
            clean: Sync and mark the store as clean, so that it is trusted after a reboot too.
                Without it, closing is what the death of the process would be.

        Raises:
            DiskFailureError: The sync failed; the store is closed but not marked clean.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if clean:
                self._environment.sync()
        finally:
            self._environment.close()
        if clean:
            with store_errors(self._path):
                write_mark(self._path / MARK_FILE, CleanMark(self._boot_id, clean=True))

    # --- tables -----------------------------------------------------------------------------

    @property
    def applied_index(self) -> int:
        """Index of the last log entry whose effects are stored; 0 at first."""
        return self._tables.applied_index

    @property
    def applied_term(self) -> int:
        """Term of that entry; 0 at first."""
        return self._tables.applied_term

    @property
    def retained_offset(self) -> int:
        """Physical offset before which retention has removed all messages; 0 at first."""
        return self._tables.retained_offset

    @property
    def queues(self) -> Mapping[tuple[int, int], tuple[int, int]]:
        """Returns the bounds of all queues by (topic id, queue id): a live view."""
        return MappingProxyType(self._tables.bounds)

    @property
    def topics(self) -> Mapping[str, TopicConfig]:
        """Returns all topics by name: a snapshot that never changes."""
        return MappingProxyType(self._tables.topics)

    def topic(self, name: str) -> TopicConfig | None:
        """Returns the topic, or None."""
        return self._tables.topics.get(name)

    def topic_by_id(self, topic_id: int) -> TopicConfig | None:
        """Returns the topic with that number, or None if there is none (any more)."""
        name = self._tables.topic_names.get(topic_id)
        return None if name is None else self._tables.topics[name]

    @property
    def groups(self) -> Mapping[str, GroupConfig]:
        """Returns all consumer groups by name: a snapshot that never changes."""
        return MappingProxyType(self._tables.groups)

    def group(self, name: str) -> GroupConfig | None:
        """Returns the group, or None."""
        return self._tables.groups.get(name)

    # --- ConsumeQueue -----------------------------------------------------------------------

    def queue_bounds(self, topic_id: int, queue_id: int) -> tuple[int, int]:
        """Returns the first queue offset held and the next one to be given: `[min, max)`.

        (0, 0) for a queue that never held a message. Cost: one dict look-up.
        """
        return self._tables.bounds.get((topic_id, queue_id), (0, 0))

    def read_unit_bytes(self, topic_id: int, queue_id: int, start: int, count: int) -> bytes:
        """Returns packed ConsumeQueue units of 20 bytes (`state_keys.UNIT`), in queue order.

        Args:
            topic_id: The topic's number.
            queue_id: The queue.
            start: Queue offset of the first unit.
            count: Wanted units; fewer are returned at the end of the queue.

        Raises:
            OffsetOutOfRangeError: `start` lies outside `[min, max]`; at max nothing is returned.
            CorruptRecordError: The store does not hold what its bounds promise.

        Cost:
            About a microsecond per 32 units.
        """
        offset_min, offset_max = self.queue_bounds(topic_id, queue_id)
        if not offset_min <= start <= offset_max:
            raise OffsetOutOfRangeError(start, offset_min, offset_max)
        stop = min(start + max(0, min(count, UNITS_READ_MAX)), offset_max)
        if stop == start:
            return b""
        first_chunk, skipped = divmod(start, keys.CHUNK_UNITS)
        last_chunk = (stop - 1) // keys.CHUNK_UNITS
        database = self._environment.databases["consume_queue"]
        pack = keys.CHUNK_KEY.pack
        with self._environment.read() as transaction:
            chunks = [
                transaction.get(pack(topic_id, queue_id, chunk), b"", db=database)
                for chunk in range(first_chunk, last_chunk + 1)
            ]
        size = (stop - start) * keys.UNIT_BYTES
        begin = skipped * keys.UNIT_BYTES
        units = (chunks[0] if len(chunks) == 1 else b"".join(chunks))[begin : begin + size]
        if len(units) != size:
            raise CorruptRecordError(str(self._path / DATA_FILE), start, Corruption.TRUNCATED_BODY)
        return units

    def read_units(self, topic_id: int, queue_id: int, start: int, count: int) -> list[QueueUnit]:
        """Returns ConsumeQueue units in queue order; see `read_unit_bytes`."""
        data = self.read_unit_bytes(topic_id, queue_id, start, count)
        return [QueueUnit(*fields) for fields in keys.UNIT.iter_unpack(data)]

    # --- consumer offsets -------------------------------------------------------------------

    def consumer_offset(self, group: str, topic: str, queue_id: int) -> int | None:
        """Returns the next queue offset the group will consume, or None if none is stored."""
        config = self._tables.topics.get(topic)
        name = group.encode()
        if config is None or not 0 < len(name) <= keys.NAME_BYTES_MAX or queue_id < 0:
            return None
        with self._environment.read() as transaction:
            value = transaction.get(
                keys.consumer_offset_key(name, config.topic_id, queue_id),
                db=self._environment.databases["consumer_offsets"],
            )
        return None if value is None else int(keys.CONSUMER_OFFSET.unpack(value)[0])

    def consumer_offsets(self, group: str) -> dict[tuple[str, int], int]:
        """Returns all stored offsets of a group by (topic, queue id)."""
        name = group.encode()
        if not 0 < len(name) <= keys.NAME_BYTES_MAX:
            return {}
        offsets = {}
        for key, value in self._range("consumer_offsets", keys.group_prefix(name)):
            _, topic_id, queue_id = keys.split_consumer_offset_key(key)
            topic = self._tables.topic_names[topic_id]
            offsets[topic, queue_id] = int(keys.CONSUMER_OFFSET.unpack(value)[0])
        return offsets

    def groups_with_offsets(self) -> list[str]:
        """Returns the names of all groups that have stored offsets, in byte order."""
        with self._environment.read() as transaction:
            cursor = transaction.cursor(self._environment.databases["consumer_offsets"])
            names = []
            found = cursor.first()
            while found:
                name = keys.split_consumer_offset_key(cursor.key())[0]
                names.append(name.decode())
                found = cursor.set_range(keys.group_prefix(name) + b"\xff" * keys.QUEUE_KEY.size)
        return names

    # --- producers --------------------------------------------------------------------------

    def find_send(
        self, producer_id: int, topic_id: int, queue_id: int, sequence: int, count: int
    ) -> LaneBatch | Repeated:
        """Returns where a producer's request is stored already, or what it is otherwise.

        Args:
            producer_id: The producer.
            topic_id: The topic's number.
            queue_id: The queue.
            sequence: The producer's number of the request's first message.
            count: The request's messages.
        """
        lane = self._tables.lanes.get(LANE_KEY.pack(producer_id, topic_id, queue_id))
        return find_batch(lane, sequence, count)

    # --- key index --------------------------------------------------------------------------

    def find_by_key(
        self,
        topic_id: int,
        key: str,
        *,
        unique: bool,
        begin_ms: int = 0,
        end_ms: int = 1 << 62,
        limit: int = 32,
    ) -> list[int]:
        """Returns physical offsets of messages with a key, the newest first.

        Keys of more than 64 bytes are compared by hash: the caller compares the messages found.

        Args:
            topic_id: The topic's number.
            key: The unique key, or one of the user's keys.
            unique: Which of the two.
            begin_ms: Oldest store timestamp wanted.
            end_ms: Newest store timestamp wanted.
            limit: At most so many; at most 65,536 entries of the key are looked at.
        """
        encoded = key.encode()
        if not encoded or topic_id not in self._tables.topic_names or limit <= 0:
            return []
        stem = keys.key_stem(topic_id, encoded, unique=unique)
        found: list[int] = []
        with self._environment.read() as transaction:
            cursor = transaction.cursor(self._environment.databases["key_index"])
            positioned = _last_with_prefix(cursor, stem)
            for _ in range(KEY_ENTRIES_SCANNED_MAX):
                if not positioned or len(found) >= limit:
                    break
                index_key, value = cursor.item()
                if not index_key.startswith(stem):
                    break
                physical_offset = keys.PHYSICAL_OFFSET.unpack_from(index_key, len(stem))[0]
                if physical_offset < self._tables.retained_offset:
                    break  # and so are all older ones
                if begin_ms <= keys.STORE_TIMESTAMP.unpack(value)[0] <= end_ms:
                    found.append(physical_offset)
                positioned = cursor.prev()
        return found

    # --- writing ----------------------------------------------------------------------------

    @contextmanager
    def write(self) -> Iterator[WriteBatch]:
        """Collects changes and commits them in one transaction when the block ends.

        An exception in the block, or a failed commit, leaves store and tables as they were.

        Raises:
            DiskFullError: From the end of the block: nothing was written.
            DiskFailureError: The disk failed; the replica must stop.

        Durability: written on return.
        """
        invariant(not self._batch_open, "two write batches at once")
        self._batch_open = True
        try:
            batch = WriteBatch(self._environment, self._tables)
            yield batch
            self._tables = batch.commit()
        finally:
            self._batch_open = False

    # --- copies -----------------------------------------------------------------------------

    @contextmanager
    def copying(self) -> Iterator[Callable[[Path], None]]:
        """Lets the block copy the state: what it gets may be called once, on another thread.

        The copy is of one moment between the call and its end. Writes go on meanwhile.
        """
        self._environment.begin_copy()
        try:
            yield self._environment.copy_to
        finally:
            self._environment.end_copy()

    def release_pages(self) -> None:
        """Gives memory back that a copy takes while it runs; to be called now and then."""
        self._environment.release_pages()

    def replace(self) -> None:
        """Goes on with the file that `snapshots.copy_checked` has put beside the live one.

        Raises:
            DiskFailureError: It cannot be used; the replica must stop.

        Durability: synced on return; interrupted, the old file is there or the new one.
        """
        invariant(not self._batch_open, "the state is replaced within a batch")
        with store_errors(self._path):
            self._environment.replace_file(lambda: replace_data_file(self._path))
        _check_format(self._environment)
        self._tables = _load_tables(self._environment)

    # --- inspection -------------------------------------------------------------------------

    def statistics(self) -> StateStatistics:
        """Returns sizes."""
        tables = self._tables
        return StateStatistics(
            applied_index=tables.applied_index,
            topic_count=len(tables.topics),
            group_count=len(tables.groups),
            queue_count=len(tables.bounds),
            lane_count=len(tables.lanes),
            used_bytes=self._environment.used_bytes(),
            map_bytes=self._environment.map_bytes,
        )

    def digest(self) -> str:
        """Returns a hash over the whole visible state, equal on replicas with equal state.

        What deleted topics and retention have left behind and has not been removed yet does not
        count.
        Cost: reads everything.
        """
        hasher = hashlib.sha256()
        live = self._tables.topic_names
        for name in DATABASE_NAMES:
            if name == "garbage":
                continue
            hasher.update(b"\0" + name.encode() + b"\0")
            by_topic = name in ("consume_queue", "key_index")
            for key, value in self._range(name, b""):
                if by_topic and keys.TOPIC_ID.unpack_from(key)[0] not in live:
                    continue
                if by_topic and self._is_trimmed(name, key):
                    continue
                hasher.update(b"%d,%d:" % (len(key), len(value)))
                hasher.update(key)
                hasher.update(value)
        return hasher.hexdigest()

    def _is_trimmed(self, database_name: str, key: bytes) -> bool:
        if database_name == "key_index":
            offset = keys.PHYSICAL_OFFSET.unpack_from(key, len(key) - keys.PHYSICAL_OFFSET.size)[0]
            return bool(offset < self._tables.retained_offset)
        topic_id, queue_id, chunk = keys.CHUNK_KEY.unpack(key)
        low, _ = self.queue_bounds(topic_id, queue_id)
        return bool(chunk < low // keys.CHUNK_UNITS)

    def __repr__(self) -> str:
        tables = self._tables
        return (
            f"<StateStore {self._path} applied={tables.applied_index}/{tables.applied_term} "
            f"topics={len(tables.topics)} queues={len(tables.bounds)}>"
        )

    def _range(self, database_name: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._environment.read() as transaction:
            cursor = transaction.cursor(self._environment.databases[database_name])
            positioned = cursor.set_range(prefix) if prefix else cursor.first()
            while positioned:
                key, value = cursor.item()
                if not key.startswith(prefix):
                    return
                yield key, value
                positioned = cursor.next()


def _last_with_prefix(cursor: ReadCursor, prefix: bytes) -> bool:
    """Positions at the last key that may have the prefix; keys end 8 bytes after it."""
    after = prefix + b"\xff" * (keys.PHYSICAL_OFFSET.size + 1)
    return cursor.prev() if cursor.set_range(after) else cursor.last()


def _check_format(environment: LmdbEnvironment) -> None:
    """Stores the format version in a new environment and compares it in an old one."""
    database = environment.databases["meta"]
    with environment.read() as transaction:
        value = transaction.get(keys.FORMAT_KEY, db=database)
    expected = keys.FORMAT.pack(keys.FORMAT_VERSION)
    if value is None:

        def put_format(transaction: WriteTransaction) -> None:
            transaction.put(keys.FORMAT_KEY, expected, db=database)

        environment.write(put_format, bytes_estimate=0)
    elif value != expected:
        raise UnusableStateError(f"state format {value.hex()}, expected {expected.hex()}")


def _load_tables(environment: LmdbEnvironment) -> StateTables:
    databases = environment.databases
    tables = StateTables()
    with environment.read() as transaction:
        applied = transaction.get(keys.APPLIED_KEY, db=databases["meta"])
        if applied is not None:
            tables.applied_index, tables.applied_term = keys.APPLIED.unpack(applied)
        next_id = transaction.get(keys.NEXT_TOPIC_ID_KEY, db=databases["meta"])
        if next_id is not None:
            tables.next_topic_id = keys.TOPIC_ID.unpack(next_id)[0]
        for _, value in transaction.cursor(databases["topics"]):
            topic = _decode_topic(value)
            tables.topics[topic.name] = topic
            tables.topic_names[topic.topic_id] = topic.name
        for _, value in transaction.cursor(databases["subscription_groups"]):
            group = _decode_group(value)
            tables.groups[group.name] = group
        for key, value in transaction.cursor(databases["queues"]):
            topic_id, queue_id = keys.QUEUE_KEY.unpack(key)
            offset_min, offset_max = keys.QUEUE_BOUNDS.unpack(value)
            tables.bounds[topic_id, queue_id] = (offset_min, offset_max)
        left = [key for key, _ in transaction.cursor(databases["garbage"])]
        size = keys.TOPIC_ID.size
        tables.garbage = tuple(keys.TOPIC_ID.unpack(key)[0] for key in left if len(key) == size)
        for key in left:
            if len(key) == keys.QUEUE_KEY.size:
                topic_id, queue_id = keys.QUEUE_KEY.unpack(key)
                tables.trimmed += ((topic_id, queue_id),)
        digest = transaction.get(keys.DIGEST_KEY, db=databases["meta"])
        if digest is not None:
            tables.digest = digest[: keys.DIGEST_BYTES]
            packed = keys.CHECKPOINT.iter_unpack(digest[keys.DIGEST_BYTES :])
            tables.checkpoints = tuple((index, value) for index, value in packed)
        retained = transaction.get(keys.RETAINED_KEY, db=databases["meta"])
        if retained is not None:
            tables.retained_offset = keys.RETAINED.unpack(retained)[0]
        tables.lanes = load_lanes(iter(transaction.cursor(databases["producer_lanes"])))
    return tables


def _discard(path: Path, reason: str, restore: Callable[[Path], object] | None) -> None:
    _logger.warning("state discarded, to be rebuilt from the log path=%s reason=%s", path, reason)
    for name in (DATA_FILE, LOCK_FILE):
        (path / name).unlink(missing_ok=True)
    if restore is not None:
        restore(path)
