"""Resets of consumer offsets that the members of a group have not followed yet.

Setting an offset is not enough while a consumer runs: it goes on from where it is, and its next
commit overwrites what was set. So a reset is also *pending*, replicated: until a member has come to
the new offset, a pull of the queue is told to move there (21), a question for the offset (14) is
answered with it, and commits of other offsets are ignored. A member that pulls from the new
offset, or commits it, has followed; that ends the pending reset, by a log entry. No member need be
online, and a change of leader changes nothing.

Row in `offset_resets`: group name, preceded by its length (u8), topic id u32, queue id u32 ->
queue offset u64.

Source: RocketMQ `ConsumerOffsetManager` with `useServerSideResetOffset`, whose pending resets are
one broker's memory and end with the first pull, followed or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import msgspec

from store.state_batch import ConsumerOffset, WriteBatch
from store.state_keys import (
    CONSUMER_OFFSET,
    consumer_offset_key,
    group_prefix,
    split_consumer_offset_key,
)
from store.state_rows import OFFSET_RESETS, RowChanges, RowReader

RESETS_MAX: Final = 1_000_000
QUEUES_PER_COMMAND_MAX: Final = 10_000

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_QueueId = Annotated[int, msgspec.Meta(ge=0, le=0x7FFF_FFFF)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=0x7FFF_FFFF_FFFF_FFFF)]

Key = tuple[str, int, int]  # group, topic id, queue id


class ResetOffsets(msgspec.Struct, frozen=True, array_like=True):
    """Sets offsets of a group and has its members follow. Result: how many; 0 without the topic."""

    group: _Name
    topic: _Name
    offsets: list[tuple[_QueueId, _Offset]]


class ResetsFollowed(msgspec.Struct, frozen=True, array_like=True):
    """Ends pending resets to these very offsets. Result: how many there were."""

    group: _Name
    topic_id: _QueueId
    offsets: list[tuple[_QueueId, _Offset]]


def apply_reset(batch: WriteBatch, command: ResetOffsets, changed: list[tuple[int, int]]) -> int:
    """Sets offsets and makes the resets pending; notes the queues in `changed`."""
    topic = batch.topic(command.topic)
    if topic is None:
        return 0
    group = command.group.encode()
    for queue_id, offset in command.offsets:
        key = consumer_offset_key(group, topic.topic_id, queue_id)
        batch.rows.put(OFFSET_RESETS, key, CONSUMER_OFFSET.pack(offset))
        changed.append((topic.topic_id, queue_id))
    return batch.put_consumer_offsets(
        ConsumerOffset(command.group, command.topic, queue_id, offset)
        for queue_id, offset in command.offsets
    )


def apply_followed(
    batch: WriteBatch, command: ResetsFollowed, changed: list[tuple[int, int]]
) -> int:
    """Ends pending resets; a newer one to another offset stays."""
    group = command.group.encode()
    count = 0
    for queue_id, offset in command.offsets:
        key = consumer_offset_key(group, command.topic_id, queue_id)
        if batch.rows.get(OFFSET_RESETS, key) == CONSUMER_OFFSET.pack(offset):
            batch.rows.delete(OFFSET_RESETS, key)
            changed.append((command.topic_id, queue_id))
            count += 1
    return count


def drop_topic(rows: RowChanges, topic_id: int) -> None:
    """Forgets what is pending in a topic that is deleted."""
    for key, _ in rows.scan(OFFSET_RESETS, b"", limit=RESETS_MAX):
        if split_consumer_offset_key(key)[1] == topic_id:
            rows.delete(OFFSET_RESETS, key)


def drop_group(rows: RowChanges, group: str) -> None:
    """Forgets what is pending for a group that is deleted with its offsets."""
    for key, _ in rows.scan(OFFSET_RESETS, group_prefix(group.encode()), limit=RESETS_MAX):
        rows.delete(OFFSET_RESETS, key)


class PendingResets:
    """The pending resets as applied here, at hand for every pull. Loop only."""

    def __init__(self, rows: RowReader, follow: Callable[[Key, int], None]) -> None:
        """Reads nothing yet.

        Args:
            rows: The table.
            follow: Called on the leader when a member has come to a new offset: has the end of
                the pending reset proposed, and calls `settled` when that is done or failed.
        """
        self._rows = rows
        self._follow = follow
        self._pending: dict[Key, int] | None = None
        self._followed: dict[Key, int] = {}

    def changed(self) -> None:
        """Notes that the table has changed."""
        self._pending = None

    def target(self, key: Key) -> int | None:
        """Returns the offset that a member has still to move to, or None."""
        pending = self._pending
        if pending is None:
            pending = self._pending = self._load()
        if not pending:
            return None
        offset = pending.get(key)
        return None if offset is None or self._followed.get(key) == offset else offset

    def has_come(self, key: Key, offset: int) -> None:
        """Notes, on the leader, that a member has come to the offset it had to move to."""
        self._followed[key] = offset
        self._follow(key, offset)

    def settled(self, key: Key, offset: int) -> None:
        """Notes that the end of a pending reset was applied, or failed."""
        if self._followed.get(key) == offset:
            del self._followed[key]

    def _load(self) -> dict[Key, int]:
        found: dict[Key, int] = {}
        for raw, value in self._rows.scan(OFFSET_RESETS, b""):
            group, topic_id, queue_id = split_consumer_offset_key(raw)
            found[group.decode(), topic_id, queue_id] = CONSUMER_OFFSET.unpack(value)[0]
        return found
