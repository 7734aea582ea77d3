"""Removes what deleted topics and retention have left behind, a bounded part a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Final, NamedTuple

from store import state_keys as keys
from store.lmdb_env import Database, ReadCursor, WriteTransaction
from store.state_tables import StateTables, Sweep

# Pairs of deleted topics removed by one transaction: well under a millisecond.
GARBAGE_REMOVED_MAX: Final = 512
# Index entries that one transaction looks at for messages that retention has removed: so many, and
# more if it puts many. Then a pass is over before the index has grown by a quarter, however long it
# is and however few transactions there are.
INDEX_SWEPT_MIN: Final = 1024
INDEX_SWEPT_PER_PUT: Final = 4

Databases = Mapping[str, Database]
Queue = tuple[int, int]


class Cleaned(NamedTuple):
    """How far cleaning has come; fields of `StateTables`."""

    garbage: tuple[int, ...]
    trimmed: tuple[Queue, ...]
    sweep: Sweep


def clean(
    transaction: WriteTransaction,
    databases: Databases,
    tables: StateTables,
    trimmed: Iterable[Queue],
    bounds_of: Callable[[Queue], tuple[int, int]],
    *,
    index_put_count: int,
) -> Cleaned:
    """Goes on with cleaning.

    Args:
        transaction: The one under way.
        databases: All, by name.
        tables: How far cleaning has come, and what is retained.
        trimmed: Queues whose minimum this transaction raises.
        bounds_of: A queue's minimum and maximum after this transaction.
        index_put_count: Index entries that this transaction puts.

    Raises:
        DiskFullError: The transaction cannot be committed.
    """
    known = set(tables.trimmed)
    queues = tables.trimmed + tuple(queue for queue in trimmed if queue not in known)
    return Cleaned(
        _remove_garbage(transaction, databases, tables.garbage),
        _remove_trimmed(transaction, databases, queues, bounds_of),
        _sweep_index(
            transaction,
            databases["key_index"],
            tables.sweep.towards(tables.retained_offset),
            index_put_count,
        ),
    )


def delete_prefix(cursor: ReadCursor, prefix: bytes, count_max: int | None) -> int:
    """Deletes up to `count_max` pairs whose keys begin with the prefix; returns how many."""
    count = 0
    found = cursor.set_range(prefix)
    while found and (count_max is None or count < count_max):
        if not cursor.key().startswith(prefix):
            break
        cursor.delete()
        count += 1
        # Deleting leaves the cursor at the next pair, or nowhere after the last one.
        found = bool(cursor.key())
    return count


def _remove_garbage(
    transaction: WriteTransaction, databases: Databases, left: tuple[int, ...]
) -> tuple[int, ...]:
    """Removes pairs of deleted topics; returns the ids still left."""
    room = GARBAGE_REMOVED_MAX
    while left and room > 0:
        topic = keys.TOPIC_ID.pack(left[0])
        for name in ("consume_queue", "key_index"):
            room -= delete_prefix(transaction.cursor(databases[name]), topic, room)
        if room > 0:
            transaction.delete(topic, db=databases["garbage"])
            left = left[1:]
    return left


def _remove_trimmed(
    transaction: WriteTransaction,
    databases: Databases,
    left: tuple[Queue, ...],
    bounds_of: Callable[[Queue], tuple[int, int]],
) -> tuple[Queue, ...]:
    """Removes chunks below queues' minimums; returns the queues left."""
    room = GARBAGE_REMOVED_MAX
    while left and room > 0:
        queue = left[0]
        low, _ = bounds_of(queue)
        stop = keys.CHUNK_KEY.pack(*queue, low // keys.CHUNK_UNITS)
        cursor = transaction.cursor(databases["consume_queue"])
        found = cursor.set_range(keys.CHUNK_KEY.pack(*queue, 0))
        while found and room > 0 and cursor.key() < stop:
            cursor.delete()
            room -= 1
            found = bool(cursor.key())
        if room > 0:
            transaction.delete(keys.QUEUE_KEY.pack(*queue), db=databases["garbage"])
            left = left[1:]
    return left


def _sweep_index(
    transaction: WriteTransaction, database: Database, sweep: Sweep, put_count: int
) -> Sweep:
    """Removes index entries of messages that are gone; returns how far sweeping has come."""
    if not sweep.goal:
        return sweep
    count = max(INDEX_SWEPT_MIN, INDEX_SWEPT_PER_PUT * put_count)
    cursor = transaction.cursor(database)
    if not (cursor.set_range(sweep.key) if sweep.key else cursor.first()):
        return Sweep(done=sweep.goal)
    looked_at = list(islice(cursor.iternext(keys=True, values=False), count))
    # Big-endian, so that bytes compare as the numbers do.
    goal = keys.PHYSICAL_OFFSET.pack(sweep.goal)
    tail = -len(goal)
    for key in looked_at:
        if key[tail:] < goal:
            transaction.delete(key, db=database)
    if len(looked_at) < count:
        return Sweep(done=sweep.goal)
    return sweep._replace(key=looked_at[-1])
