"""Locks on queues, by which one consumer of a group at a time consumes a queue in order.

The table is replicated: a lock is granted, renewed and given back by log entries, so a new leader
knows every lock that was granted, and a leader that has lost its office can grant none.

Locks expire by a clock of their own, the *lock clock*. The leader reads it, it travels in the
command, and every command moves it on in the table. Within a term it runs with the leader's
monotonic clock, from where the table stands: wall clocks that differ between replicas cannot end a
lock early, and the time of an election does not count. So a lock lives for at least 60 s of any
leader's time after its last renewal, and a client that considers its own lock dead 30 s after it
asked for the renewal never overlaps with the next owner.

Row in `locks`: group name and topic, each preceded by its length (u8), queue id u32 ->
msgpack [client id, lock clock of the last renewal in ms]. The row b"\\0" holds the clock, u64.

Source: RocketMQ `RebalanceLockManager`, whose table lives and dies with one broker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Annotated, Final

import msgspec

from dledger.clock import Clock
from store.state_keys import group_prefix
from store.state_rows import LOCKS, RowChanges, RowReader

EXPIRY_MS: Final = 60_000
QUEUES_PER_COMMAND_MAX: Final = 10_000
_PRUNE_AFTER_MS: Final = 600_000
_PRUNED_MAX: Final = 256
_CLOCK_KEY: Final = b"\0"
_CLOCK: Final = Struct(">Q")
_QUEUE_ID: Final = Struct(">I")

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Client = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Queue = tuple[_Name, Annotated[int, msgspec.Meta(ge=0, le=0x7FFF_FFFF)]]
_Ms = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class LockQueues(msgspec.Struct, frozen=True, array_like=True):
    """Locks queues for a client or renews its locks. Result: the queues it now holds."""

    group: _Name
    client_id: _Client
    now_ms: _Ms
    queues: list[_Queue]


class UnlockQueues(msgspec.Struct, frozen=True, array_like=True):
    """Gives locks back; those of other clients stay. Result: how many were given back."""

    group: _Name
    client_id: _Client
    queues: list[_Queue]


class LockRow(msgspec.Struct, frozen=True, array_like=True):
    """Who holds a lock, and since when it was not renewed."""

    client_id: str
    renewed_ms: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LockRow).decode


def apply_lock(rows: RowChanges, command: LockQueues) -> list[tuple[str, int]]:
    """Grants what is free, expired or the client's own already."""
    now_ms = max(command.now_ms, _clock(rows.get(LOCKS, _CLOCK_KEY)))
    rows.put(LOCKS, _CLOCK_KEY, _CLOCK.pack(now_ms))
    granted: list[tuple[str, int]] = []
    is_new = False
    value = _encode(LockRow(command.client_id, now_ms))
    for topic, queue_id in command.queues:
        key = lock_key(command.group, topic, queue_id)
        raw = rows.get(LOCKS, key)
        row = None if raw is None else _decode(raw)
        if row is None or row.client_id != command.client_id:
            if row is not None and now_ms - row.renewed_ms < EXPIRY_MS:
                continue
            is_new = True
        rows.put(LOCKS, key, value)
        granted.append((topic, queue_id))
    if is_new:
        _prune(rows, command.group, now_ms)
    return granted


def apply_unlock(rows: RowChanges, command: UnlockQueues) -> int:
    """Removes the client's own locks."""
    count = 0
    for topic, queue_id in command.queues:
        key = lock_key(command.group, topic, queue_id)
        raw = rows.get(LOCKS, key)
        if raw is not None and _decode(raw).client_id == command.client_id:
            rows.delete(LOCKS, key)
            count += 1
    return count


def lock_key(group: str, topic: str, queue_id: int) -> bytes:
    """Returns the key of a queue's lock."""
    return group_prefix(group.encode()) + group_prefix(topic.encode()) + _QUEUE_ID.pack(queue_id)


def _prune(rows: RowChanges, group: str, now_ms: int) -> None:
    """Forgets locks of clients that have long gone; nobody else may ever ask for their queues."""
    for key, raw in rows.scan(LOCKS, group_prefix(group.encode()), limit=_PRUNED_MAX):
        if now_ms - _decode(raw).renewed_ms >= _PRUNE_AFTER_MS:
            rows.delete(LOCKS, key)


def _clock(raw: bytes | None) -> int:
    return 0 if raw is None else int(_CLOCK.unpack(raw)[0])


class LockClock:
    """The leader's reading of the lock clock. Satisfies `RaftListener`."""

    def __init__(self, rows: RowReader, clock: Clock) -> None:
        self._rows = rows
        self._clock = clock
        self._base_ms = 0
        self._base_s = clock.monotonic()

    def now_ms(self) -> int:
        """Returns the lock clock; meaningful while this replica serves as leader."""
        return self._base_ms + int((self._clock.monotonic() - self._base_s) * 1000)

    def on_serving(self, term: int) -> None:
        """Goes on from what the table says, which by now holds all that was ever granted."""
        self._base_ms = _clock(self._rows.get(LOCKS, _CLOCK_KEY))
        self._base_s = self._clock.monotonic()

    def on_stopped_serving(self) -> None:
        """Does nothing."""

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Does nothing."""


def holder(rows: RowReader, group: str, topic: str, queue_id: int, now_ms: int) -> str | None:
    """Returns the client that holds a queue's lock at a time of the lock clock, or None."""
    raw = rows.get(LOCKS, lock_key(group, topic, queue_id))
    if raw is None:
        return None
    row = _decode(raw)
    return row.client_id if now_ms - row.renewed_ms < EXPIRY_MS else None


def acceptable(
    queues: Sequence[tuple[str, str, int]],
    *,
    broker_name: str,
    queue_count: Callable[[str], int],
) -> list[tuple[str, int]]:
    """Returns, each once and in order, the queues that exist here and may be locked.

    Args:
        queues: (topic, broker name, queue id) as asked for.
        broker_name: This group's.
        queue_count: Topic to the number of its queues, 0 if there is no such topic.
    """
    wanted = {
        (topic, queue_id): None
        for topic, broker, queue_id in queues
        if broker == broker_name and 0 <= queue_id < queue_count(topic)
    }
    return list(wanted)
