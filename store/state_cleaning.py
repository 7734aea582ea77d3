"""Removes what deleted topics and retention have left behind, a bounded part a transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from store import state_keys as keys
from store.lmdb_env import Database, ReadCursor, WriteTransaction
from store.state_tables import StateTables

# Pairs of deleted topics removed by one transaction: well under a millisecond.
GARBAGE_REMOVED_MAX: Final = 512
# Index entries that one transaction looks at for messages that retention has removed.
INDEX_SWEPT_MAX: Final = 1024

Databases = Mapping[str, Database]
Queue = tuple[int, int]


class Cleaned(NamedTuple):
    """How far cleaning has come; fields of `StateTables`."""

    garbage: tuple[int, ...]
    trimmed: tuple[Queue, ...]
    swept_offset: int
    sweep_key: bytes


def clean(
    transaction: WriteTransaction,
    databases: Databases,
    tables: StateTables,
    trimmed: Iterable[Queue],
    bounds_of: Callable[[Queue], tuple[int, int]],
) -> Cleaned:
    """Goes on with cleaning.

    Args:
        transaction: The one under way.
        databases: All, by name.
        tables: How far cleaning has come, and what is retained.
        trimmed: Queues whose minimum this transaction raises.
        bounds_of: A queue's minimum and maximum after this transaction.

    Raises:
        DiskFullError: The transaction cannot be committed.
    """
    known = set(tables.trimmed)
    queues = tables.trimmed + tuple(queue for queue in trimmed if queue not in known)
    return Cleaned(
        _remove_garbage(transaction, databases, tables.garbage),
        _remove_trimmed(transaction, databases, queues, bounds_of),
        *_sweep_index(transaction, databases, tables),
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
    transaction: WriteTransaction, databases: Databases, tables: StateTables
) -> tuple[int, bytes]:
    """Removes index entries of messages that are gone; returns how far sweeping has come."""
    retained = tables.retained_offset
    if tables.swept_offset >= retained:
        return tables.swept_offset, b""
    cursor = transaction.cursor(databases["key_index"])
    found = cursor.set_range(tables.sweep_key) if tables.sweep_key else cursor.first()
    for _ in range(INDEX_SWEPT_MAX):
        if not found:
            return retained, b""
        key = cursor.key()
        if keys.PHYSICAL_OFFSET.unpack_from(key, len(key) - 8)[0] < retained:
            cursor.delete()
            found = bool(cursor.key())
        else:
            found = cursor.next()
    return tables.swept_offset, cursor.key() if found else b""
