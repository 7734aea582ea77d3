"""One write transaction over the state of a replica, collected first and executed at the end.

Collecting first has three reasons: a transaction that fails (no map space, no disk space) can be
run again or dropped without undoing anything; units and index entries of many log entries go to
LMDB sorted, through one cursor; and the tables in memory change only if the commit succeeded.

Deleting a topic takes its tables, bounds and consumer offsets away at once. Its ConsumeQueue and
key index, which may be millions of pairs, are only unreachable from then on: topic ids are never
used again. Later transactions remove them, a bounded number each. The same holds for what
retention leaves behind: ConsumeQueue chunks below a queue's minimum, and index entries of messages
that are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from struct import Struct
from typing import Final, NamedTuple

import msgspec

from dledger.errors import invariant
from dledger.model import GroupConfig, TopicConfig
from store import state_keys as keys
from store import timer_table
from store.lmdb_env import Database, LmdbEnvironment, WriteTransaction
from store.producer_lanes import LaneChanges, LaneLimits, SendRecord
from store.state_cleaning import Cleaned, clean, delete_prefix
from store.state_rows import ROW_DATABASES, RowChanges
from store.state_tables import StateTables

DATABASE_NAMES: Final = (
    "meta",
    "topics",
    "subscription_groups",
    "queues",
    "consume_queue",
    "consumer_offsets",
    "key_index",
    "producer_lanes",
    "garbage",
    *timer_table.DATABASE_NAMES,
    *ROW_DATABASES,
)

Buffer = bytes | bytearray | memoryview
_encode = msgspec.msgpack.Encoder().encode
_NAME_ROOM_BYTES: Final = 4096  # one touched page for each small change, as an estimate


class ConsumerOffset(NamedTuple):
    """The next queue offset that a group will consume from a queue."""

    group: str
    topic: str
    queue_id: int
    queue_offset: int


class _Run:
    """Units to be added at the end of one queue."""

    __slots__ = ("first", "offset_min", "parts", "stop")

    def __init__(self, offset_min: int, first: int) -> None:
        self.offset_min = offset_min
        self.first = first
        self.stop = first
        self.parts: list[Buffer] = []


class WriteBatch:
    """Changes that become visible together. Made by `StateStore.write`.

    Names have been checked by whoever made the log entry: 1 to 255 bytes in UTF-8.
    """

    def __init__(self, environment: LmdbEnvironment, tables: StateTables) -> None:
        self._environment = environment
        self._base = tables
        self._tables = replace(tables)
        self._changed_topics: set[str] = set()
        self._changed_groups: set[str] = set()
        self._dead_topics: list[int] = []
        self._dead_offset_groups: list[bytes] = []
        self._offsets: dict[bytes, bytes] = {}
        self._runs: dict[tuple[int, int], _Run] = {}
        self._minimums: dict[tuple[int, int], int] = {}
        self._index_records: list[tuple[int, Buffer]] = []
        self._index_count = 0
        self._lanes = LaneChanges(tables.lanes)
        self._bytes_estimate = 0
        self.timers = timer_table.TimerChanges(environment)
        self.rows = RowChanges(environment)

    # --- topics and groups ------------------------------------------------------------------

    def topic(self, name: str) -> TopicConfig | None:
        """Returns the topic as this batch has made it."""
        return self._tables.topics.get(name)

    def group(self, name: str) -> GroupConfig | None:
        """Returns the group as this batch has made it."""
        return self._tables.groups.get(name)

    def put_topic(self, config: TopicConfig) -> TopicConfig:
        """Creates a topic with the next topic id, or changes one, which keeps its id.

        Args:
            config: The topic; its `topic_id` is ignored.

        Returns:
            The topic as stored.
        """
        _check_name(config.name)
        existing = self._tables.topics.get(config.name)
        topic_id = self._tables.next_topic_id if existing is None else existing.topic_id
        stored = msgspec.structs.replace(config, topic_id=topic_id)
        if stored == existing:
            return stored
        self._own_topics()
        self._tables.topics[stored.name] = stored
        if existing is None:
            self._tables.topic_names[topic_id] = stored.name
            self._tables.next_topic_id = topic_id + 1
        self._changed_topics.add(stored.name)
        return stored

    def delete_topic(self, name: str) -> bool:
        """Removes a topic, its queues and all consumer offsets in it.

        Returns:
            Whether it existed.
        """
        existing = self._tables.topics.get(name)
        if existing is None:
            return False
        topic_id = existing.topic_id
        self._own_topics()
        del self._tables.topics[name]
        del self._tables.topic_names[topic_id]
        self._changed_topics.add(name)
        self._dead_topics.append(topic_id)
        self._tables.garbage = (*self._tables.garbage, topic_id)
        self._runs = {queue: run for queue, run in self._runs.items() if queue[0] != topic_id}
        self._minimums = {
            queue: minimum for queue, minimum in self._minimums.items() if queue[0] != topic_id
        }
        self._offsets = {
            key: value
            for key, value in self._offsets.items()
            if keys.split_consumer_offset_key(key)[1] != topic_id
        }
        self._lanes.drop_topic(topic_id)
        return True

    def put_group(self, config: GroupConfig) -> GroupConfig:
        """Creates or changes a consumer group."""
        _check_name(config.name)
        if self._tables.groups.get(config.name) != config:
            self._own_groups()
            self._tables.groups[config.name] = config
            self._changed_groups.add(config.name)
        return config

    def delete_group(self, name: str, *, delete_offsets: bool) -> bool:
        """Removes a consumer group.

        Args:
            name: The group; it need not exist for its offsets to be removed.
            delete_offsets: Remove its consumer offsets too.

        Returns:
            Whether the group existed.
        """
        _check_name(name)
        if delete_offsets:
            encoded = name.encode()
            prefix = keys.group_prefix(encoded)
            self._offsets = {
                key: value for key, value in self._offsets.items() if not key.startswith(prefix)
            }
            self._dead_offset_groups.append(encoded)
        if name not in self._tables.groups:
            return False
        self._own_groups()
        del self._tables.groups[name]
        self._changed_groups.add(name)
        return True

    # --- offsets and messages ---------------------------------------------------------------

    def put_consumer_offsets(self, offsets: Iterable[ConsumerOffset]) -> int:
        """Stores consumer offsets; the last of several for one queue wins.

        Returns:
            How many were stored: those of topics that do not exist are not.
        """
        topics = self._tables.topics
        count = 0
        for group, topic, queue_id, queue_offset in offsets:
            config = topics.get(topic)
            if config is None:
                continue
            name = group.encode()
            invariant(0 < len(name) <= keys.NAME_BYTES_MAX, "group name out of range", group=group)
            key = keys.consumer_offset_key(name, config.topic_id, queue_id)
            self._offsets[key] = keys.CONSUMER_OFFSET.pack(queue_offset)
            count += 1
        return count

    def consumer_offset(self, group: str, topic_id: int, queue_id: int) -> int | None:
        """Returns a consumer offset as this batch has made it, None if none is stored."""
        name = group.encode()
        key = keys.consumer_offset_key(name, topic_id, queue_id)
        value = self._offsets.get(key)
        if value is None and name not in self._dead_offset_groups:
            database = self._environment.databases["consumer_offsets"]
            with self._environment.read() as transaction:
                value = transaction.get(key, db=database)
        return None if value is None else int(keys.CONSUMER_OFFSET.unpack(value)[0])

    def append_units(
        self, topic_id: int, queue_id: int, first_offset: int, units: Buffer
    ) -> int | None:
        """Adds ConsumeQueue units at the end of a queue.

        Args:
            topic_id: The topic's number.
            queue_id: The queue.
            first_offset: Queue offset of the first unit. Invariant: the queue's maximum so far.
            units: Packed units. Not copied: must not change until the batch is committed.

        Returns:
            The queue's new maximum, or None (and nothing added) if there is no such topic.
        """
        if topic_id not in self._tables.topic_names:
            return None
        queue = (topic_id, queue_id)
        run = self._runs.get(queue)
        if run is None:
            run = self._runs[queue] = _Run(*self._base.bounds.get(queue, (0, 0)))
        size = len(units)
        count = size // keys.UNIT_BYTES
        if first_offset != run.stop or count * keys.UNIT_BYTES != size or not size:
            invariant(  # asked only then: this is done for every queue of an entry
                False,
                "queue offsets not contiguous",
                topic_id=topic_id,
                queue_id=queue_id,
                first_offset=first_offset,
                expected=run.stop,
                units_bytes=size,
            )
        run.parts.append(units)
        run.stop += count
        self._bytes_estimate += 2 * size + _NAME_ROOM_BYTES
        return run.stop

    def trim_queue(self, topic_id: int, queue_id: int, offset_min: int) -> None:
        """Raises a queue's minimum, at most to its maximum; never lowers it."""
        queue = (topic_id, queue_id)
        if topic_id not in self._tables.topic_names:
            return
        low, high = self._base.bounds.get(queue, (0, 0))
        run = self._runs.get(queue)
        low = self._minimums.get(queue, low)
        offset_min = min(offset_min, high if run is None else run.stop)
        if offset_min > low:
            self._minimums[queue] = offset_min

    def set_retained(self, physical_offset: int) -> None:
        """Says that messages before this physical offset are gone. Never goes back."""
        if physical_offset > self._tables.retained_offset:
            self._tables.retained_offset = physical_offset

    def put_keys(self, key_bytes: int, records: Buffer) -> None:
        """Adds key index entries of one length.

        Args:
            key_bytes: Length of each index key.
            records: Concatenated pairs of index key and 8-byte store timestamp; see `state_keys`.
                Not copied: must not change until the batch is committed.
        """
        count, rest = divmod(len(records), key_bytes + keys.KEY_VALUE_BYTES)
        invariant(
            keys.INDEX_KEY_BYTES_MIN <= key_bytes <= keys.INDEX_KEY_BYTES_MAX and rest == 0,
            "malformed key index records",
            key_bytes=key_bytes,
            records_bytes=len(records),
        )
        self._index_records.append((key_bytes, records))
        self._index_count += count
        # Near-sequential keys share pages; a scattered one touches a page of its own.
        self._bytes_estimate += 2 * len(records) + count * 512 + _NAME_ROOM_BYTES

    @property
    def digest(self) -> bytes:
        """Returns the digest as this batch has made it."""
        return self._tables.digest

    def set_digest(self, digest: bytes) -> None:
        """Sets the digest of everything applied."""
        self._tables.digest = digest

    def checkpoint(self, index: int) -> None:
        """Remembers the digest as that of the state after this entry."""
        kept = self._tables.checkpoints[1 - keys.CHECKPOINTS_KEPT :]
        self._tables.checkpoints = (*kept, (index, self._tables.digest))

    def digest_at(self, index: int) -> bytes | None:
        """Returns the digest that was remembered for an entry, None if none (any more) is."""
        return dict(self._tables.checkpoints).get(index)

    def record_sends(
        self,
        sends: Iterable[SendRecord],
        *,
        limits: LaneLimits,
        index: int,
        timestamp_ms: int,
        without: Collection[int] = (),
    ) -> None:
        """Remembers an entry's requests, so that a repetition is known; see `producer_lanes`."""
        self._lanes.record(
            sends, limits=limits, index=index, timestamp_ms=timestamp_ms, without=without
        )

    def set_applied(self, index: int, term: int) -> None:
        """Sets the applied index and its term."""
        self._tables.applied_index = index
        self._tables.applied_term = term

    # --- commit -----------------------------------------------------------------------------

    def commit(self) -> StateTables:
        """Executes everything in one transaction.

        Returns:
            The new tables.

        Raises:
            DiskFullError: Nothing was written.
        """
        small = len(self._changed_topics) + len(self._changed_groups) + len(self._dead_topics)
        small += len(self._minimums)
        estimate = self._bytes_estimate + _NAME_ROOM_BYTES * (8 + small)
        # Producer ids are random: each lane touches a page of its own.
        estimate += 256 * len(self._offsets) + _NAME_ROOM_BYTES * len(self._lanes.changed)
        estimate += self.timers.bytes_estimate
        estimate += self.rows.bytes_estimate
        new_bounds = self._new_bounds()
        tables = self._tables
        databases = self._environment.databases
        cleaned = Cleaned(tables.garbage, tables.trimmed, tables.sweep)

        def bounds_of(queue: tuple[int, int]) -> tuple[int, int]:
            return new_bounds.get(queue) or self._base.bounds.get(queue, (0, 0))

        def operations(transaction: WriteTransaction) -> None:
            nonlocal cleaned
            self._execute(transaction, new_bounds)
            cleaned = clean(
                transaction,
                databases,
                tables,
                self._minimums,
                bounds_of,
                index_put_count=self._index_count,
            )

        self._environment.write(operations, bytes_estimate=estimate)
        tables.garbage, tables.trimmed, tables.sweep = cleaned
        self._lanes.apply()
        bounds = self._base.bounds
        bounds.update(new_bounds)
        if self._dead_topics:
            dead = set(self._dead_topics)
            for queue in [queue for queue in bounds if queue[0] in dead]:
                del bounds[queue]
        return self._tables

    def _new_bounds(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Returns the bounds of every queue that this batch has changed."""
        changed = {queue: (run.offset_min, run.stop) for queue, run in self._runs.items()}
        for queue, minimum in self._minimums.items():
            _, high = changed.get(queue) or self._base.bounds.get(queue, (0, 0))
            changed[queue] = (minimum, high)
        return changed

    def _execute(
        self,
        transaction: WriteTransaction,
        new_bounds: dict[tuple[int, int], tuple[int, int]],
    ) -> None:
        databases = self._environment.databases
        for topic_id in self._dead_topics:
            transaction.put(keys.TOPIC_ID.pack(topic_id), b"", db=databases["garbage"])
            _delete_topic_pairs(transaction, databases["queues"], topic_id)
            self._delete_topic_offsets(transaction, topic_id)
        for group in self._dead_offset_groups:
            cursor = transaction.cursor(databases["consumer_offsets"])
            delete_prefix(cursor, keys.group_prefix(group), None)
        _put_table(transaction, databases["topics"], self._changed_topics, self._tables.topics)
        _put_table(
            transaction,
            databases["subscription_groups"],
            self._changed_groups,
            self._tables.groups,
        )
        if self._runs:
            self._put_units(transaction)
        if new_bounds:
            pairs = [
                (keys.QUEUE_KEY.pack(*queue), keys.QUEUE_BOUNDS.pack(*bounds))
                for queue, bounds in sorted(new_bounds.items())
            ]
            transaction.cursor(databases["queues"]).putmulti(pairs)
        for queue in self._minimums:
            transaction.put(keys.QUEUE_KEY.pack(*queue), b"", db=databases["garbage"])
        for key_bytes, records in self._index_records:
            records_of = Struct(f"{key_bytes}s{keys.KEY_VALUE_BYTES}s").iter_unpack(records)
            transaction.cursor(databases["key_index"]).putmulti(records_of)
        self.timers.execute(transaction)
        if self._offsets:
            offsets = sorted(self._offsets.items())
            transaction.cursor(databases["consumer_offsets"]).putmulti(offsets)
        self.rows.execute(transaction)
        if self._lanes.changed:
            self._put_lanes(transaction)
        meta = databases["meta"]
        tables = self._tables
        if tables.next_topic_id != self._base.next_topic_id:
            next_id = keys.TOPIC_ID.pack(tables.next_topic_id)
            transaction.put(keys.NEXT_TOPIC_ID_KEY, next_id, db=meta)
        if tables.retained_offset != self._base.retained_offset:
            retained = keys.RETAINED.pack(tables.retained_offset)
            transaction.put(keys.RETAINED_KEY, retained, db=meta)
        if (tables.digest, tables.checkpoints) != (self._base.digest, self._base.checkpoints):
            packed = [keys.CHECKPOINT.pack(*checkpoint) for checkpoint in tables.checkpoints]
            transaction.put(keys.DIGEST_KEY, b"".join([tables.digest, *packed]), db=meta)
        if tables.applied_index != self._base.applied_index:
            applied = keys.APPLIED.pack(tables.applied_index, tables.applied_term)
            transaction.put(keys.APPLIED_KEY, applied, db=meta)

    def _put_units(self, transaction: WriteTransaction) -> None:
        database = self._environment.databases["consume_queue"]
        chunks: list[tuple[bytes, bytes]] = []
        pack = keys.CHUNK_KEY.pack
        size = keys.CHUNK_BYTES
        for (topic_id, queue_id), run in sorted(self._runs.items()):
            chunk, held = divmod(run.first, keys.CHUNK_UNITS)
            key = pack(topic_id, queue_id, chunk)
            units = b"".join(run.parts)
            if held:
                tail = transaction.get(key, b"", db=database)
                if len(tail) != held * keys.UNIT_BYTES:
                    invariant(
                        False,
                        "last ConsumeQueue chunk does not match the queue's maximum",
                        topic_id=topic_id,
                        queue_id=queue_id,
                        offset_max=run.first,
                        tail_bytes=len(tail),
                    )
                units = tail + units
            chunks.append((key, units[:size]))
            if len(units) > size:
                chunks.extend(
                    (pack(topic_id, queue_id, chunk + at // size), units[at : at + size])
                    for at in range(size, len(units), size)
                )
        transaction.cursor(database).putmulti(chunks)

    def _put_lanes(self, transaction: WriteTransaction) -> None:
        database = self._environment.databases["producer_lanes"]
        kept: list[tuple[bytes, bytes]] = []
        for key, lane in sorted(self._lanes.changed.items()):
            if lane is None:
                transaction.delete(key, db=database)
            else:
                kept.append((key, lane))
        transaction.cursor(database).putmulti(kept)

    def _delete_topic_offsets(self, transaction: WriteTransaction, topic_id: int) -> None:
        cursor = transaction.cursor(self._environment.databases["consumer_offsets"])
        topic = keys.TOPIC_ID.pack(topic_id)
        found = cursor.first()
        while found:
            group = keys.group_prefix(keys.split_consumer_offset_key(cursor.key())[0])
            delete_prefix(cursor, group + topic, None)
            found = cursor.set_range(group + b"\xff" * keys.QUEUE_KEY.size)

    def _own_topics(self) -> None:
        if self._tables.topics is self._base.topics:
            self._tables.topics = dict(self._base.topics)
            self._tables.topic_names = dict(self._base.topic_names)

    def _own_groups(self) -> None:
        if self._tables.groups is self._base.groups:
            self._tables.groups = dict(self._base.groups)


def _put_table(
    transaction: WriteTransaction,
    database: Database,
    names: set[str],
    table: dict[str, TopicConfig] | dict[str, GroupConfig],
) -> None:
    for name in sorted(names):
        config = table.get(name)
        if config is None:
            transaction.delete(name.encode(), db=database)
        else:
            transaction.put(name.encode(), _encode(config), db=database)


def _delete_topic_pairs(transaction: WriteTransaction, database: Database, topic_id: int) -> None:
    delete_prefix(transaction.cursor(database), keys.TOPIC_ID.pack(topic_id), None)


def _check_name(name: str) -> None:
    size = len(name.encode())
    invariant(0 < size <= keys.NAME_BYTES_MAX, "name out of range", name=name, size_bytes=size)
