"""Which sends of which producers are stored: what a repeated send is recognised by. Pure.

A *lane* is one producer's way to one queue. Its producer numbers the messages it sends there and
has one request under way, so the last few requests of a lane are all that a repetition can mean,
and everything older than the newest recorded one can only be a straggler.

The table is bounded: lanes that have not been used for long are dropped, and the longest unused
ones when there are too many. Both are decided by what stands in the log (order, the leader's
time, the leader's limits), never by a clock or setting of the replica that applies, and entry by
entry, so that all replicas keep the same lanes however they cut the log into transactions.

    key      producer id u64, topic id u32, queue id u32
    value    log index of the last use u64, its number in that entry u32, store timestamp u64,
             then the last batches, oldest first: first sequence u64, message count u32,
             first queue offset u64, physical offset of the first message u64
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import Final, NamedTuple

from dledger.errors import ConfigError

LANE_KEY: Final = Struct(">QII")
LANE_HEAD: Final = Struct(">QIQ")
LANE_BATCH: Final = Struct(">QIQQ")
# What one send may drop. Two, so that a table above a lowered limit shrinks with every send.
DROPPED_PER_SEND_MAX: Final = 2
_USED_MS: Final = slice(LANE_HEAD.size - 8, LANE_HEAD.size)

Lanes = OrderedDict[bytes, bytes]


@dataclass(frozen=True, kw_only=True)
class LaneLimits:
    """How much is remembered. The leader's limits travel in the log and hold on all replicas.

    Attributes:
        lanes_max: Lanes (producer and queue) of the whole broker group; the longest unused ones
            are dropped beyond it. One takes about 400 bytes of memory and 150 on disk.
        idle_s: A lane unused for so long is dropped.
        batches_max: Requests remembered of each lane.
    """

    lanes_max: int = 65_536
    idle_s: int = 86_400
    batches_max: int = 4

    def __post_init__(self) -> None:
        for name, ceiling in (("lanes_max", 10_000_000), ("idle_s", 2**31), ("batches_max", 64)):
            value = getattr(self, name)
            if not 1 <= value <= ceiling:
                raise ConfigError(name, value, f"must lie in 1..{ceiling}")


class SendRecord(NamedTuple):
    """One request of a producer as it was stored.

    Attributes:
        sequence: The producer's number of the first message; the others follow.
        queue_offset: Of the first message; the others follow.
        physical_offset: Of the first message.
    """

    producer_id: int
    sequence: int
    topic_id: int
    queue_id: int
    queue_offset: int
    message_count: int
    physical_offset: int


class LaneBatch(NamedTuple):
    """What a lane remembers of one request; see `SendRecord`."""

    sequence: int
    message_count: int
    queue_offset: int
    physical_offset: int


class Repeated(Enum):
    """What a send is to a lane when no remembered request is the same."""

    NO = "newer than all that is stored"
    TOO_OLD = "older than the newest stored, and not remembered"


def find_batch(lane: bytes | None, sequence: int, count: int) -> LaneBatch | Repeated:
    """Returns the remembered request that a send repeats, or what it is otherwise.

    Args:
        lane: The lane's value in the table; None without one.
        sequence: The send's first sequence number.
        count: Its messages.
    """
    if lane is None:
        return Repeated.NO
    next_sequence = 0
    for batch in _batches(lane):
        if batch.sequence == sequence and batch.message_count == count:
            return batch
        next_sequence = batch.sequence + batch.message_count
    return Repeated.NO if sequence >= next_sequence else Repeated.TOO_OLD


def load_lanes(pairs: Iterator[tuple[bytes, bytes]]) -> Lanes:
    """Returns the table, the longest unused lane first, from its pairs in any order."""
    return OrderedDict(sorted(pairs, key=lambda pair: pair[1][: LANE_HEAD.size]))


class LaneChanges:
    """What one transaction does to the table, which stays as it is until `apply`.

    Attributes:
        changed: The lanes used, in the order of their last use, and those dropped (None).
    """

    def __init__(self, base: Lanes) -> None:
        self._base = base
        self.changed: dict[bytes, bytes | None] = {}
        self._size = len(base)
        # Goes over the base only once: what it has passed is changed (used again or dropped).
        self._unused = iter(base.items())
        self._oldest: tuple[bytes, bytes] | None = None

    def record(
        self,
        sends: Iterable[SendRecord],
        *,
        limits: LaneLimits,
        index: int,
        timestamp_ms: int,
        without: Collection[int] = (),
    ) -> None:
        """Remembers the sends of one log entry and drops what the limits say.

        Args:
            sends: The requests as they were stored, all of the entry, in its order.
            limits: The leader's, from the log entry.
            index: Index of the log entry.
            timestamp_ms: The entry's store timestamp.
            without: Topics that are gone; sends to them are not remembered.

        Cost: about two microseconds a send; there may be one for every message.
        """
        base_get, changed = self._base.get, self.changed
        pack_key, pack_head, pack_batch = LANE_KEY.pack, LANE_HEAD.pack, LANE_BATCH.pack
        head_bytes, kept_bytes = LANE_HEAD.size, LANE_BATCH.size * (limits.batches_max - 1)
        lanes_max, used_min_ms = limits.lanes_max, timestamp_ms - limits.idle_s * 1000
        for number, send in enumerate(sends):
            producer_id, sequence, topic_id, queue_id, queue_offset, count, physical_offset = send
            if topic_id in without:
                continue
            key = pack_key(producer_id, topic_id, queue_id)
            lane = changed.pop(key) if key in changed else base_get(key)
            head = pack_head(index, number, timestamp_ms)
            batch = pack_batch(sequence, count, queue_offset, physical_offset)
            if lane is None:
                self._size += 1
                changed[key] = head + batch
            else:
                changed[key] = head + lane[max(head_bytes, len(lane) - kept_bytes) :] + batch
            for _ in range(DROPPED_PER_SEND_MAX):
                oldest = self._oldest
                if oldest is None or oldest[0] in changed:
                    oldest = self._find_oldest()
                if oldest is None or oldest[0] == key:
                    break
                if self._size <= lanes_max and _used_ms(oldest[1]) >= used_min_ms:
                    break
                self._drop(oldest[0])

    def drop_topic(self, topic_id: int) -> None:
        """Drops all lanes to a topic's queues. Cost: looks at every lane."""
        dead = [
            key
            for lanes in (self._base, self.changed)
            for key in lanes
            if LANE_KEY.unpack(key)[1] == topic_id
        ]
        for key in dict.fromkeys(dead):
            if self.changed.get(key, b"") is not None:
                self._drop(key)

    def apply(self) -> None:
        """Takes the changes over into the table."""
        base = self._base
        for key, lane in self.changed.items():
            base.pop(key, None)
            if lane is not None:
                base[key] = lane

    def _drop(self, key: bytes) -> None:
        self.changed.pop(key, None)
        self.changed[key] = None
        self._size -= 1

    def _find_oldest(self) -> tuple[bytes, bytes] | None:
        while self._oldest is None or self._oldest[0] in self.changed:
            self._oldest = next(self._unused, None)
            if self._oldest is None:
                break
        if self._oldest is not None:
            return self._oldest
        # Everything in the base was used again or dropped.
        for key, lane in self.changed.items():
            if lane is not None:
                return key, lane
        return None


def _used_ms(lane: bytes) -> int:
    return int.from_bytes(lane[_USED_MS], "big")


def _batches(lane: bytes) -> Iterator[LaneBatch]:
    return map(LaneBatch._make, LANE_BATCH.iter_unpack(memoryview(lane)[LANE_HEAD.size :]))
