"""What consumers hold by POP: which messages, until when. Pure state, replicated.

A pop gives a consumer messages of a queue for a while; what it does not acknowledge in time comes
again, to any member of the group. No message is copied for that: it stays where it is in its queue,
and the table says which queue offsets are out. What one pop took of one queue is a *run*: a start,
a bitmap of the offsets after it that are not acknowledged yet, and the time at which they become
visible again. A message that is given out again, or whose time is changed, moves to a new run.

All messages of a queue below its *cursor* were given out. The *floor* is at most the lowest offset
that is still out; it is the group's consumer offset, so that progress can be seen, and a group that
goes over to pulling goes on from there and misses nothing. Where somebody else has moved the
consumer offset (a reset, or members that pulled meanwhile), popping begins anew from it.

The leader chooses what a pop takes, with filters and clock at hand; a command names its choice and
the state it was made from. A replica applies a part only to that very state: otherwise nothing
happens and the part is refused, in the same way everywhere.

Rows in `pop`. A queue's key is topic id u32, group name preceded by its length (u8), queue id u32:

    "q", queue                                     -> msgpack QueueRow
    "r", queue, start u64, pop time u64            -> msgpack RunRow
    "v", queue, until u64, start u64, pop time u64 -> empty: runs by when they are visible again

Start and pop time name a run in receipt handles. A message's runs have growing pop times, so no
handle is ever taken for a later one's.

Source: RocketMQ `PopMessageProcessor`, `PopReviveService`, `ConsumerOrderInfoManager`. We differ:
check-points are rows and not messages, and a message is not stored again when it comes again.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Annotated, Final, NamedTuple

import msgspec

from broker.riders import Boarded, Rider
from store.state_batch import ConsumerOffset, WriteBatch
from store.state_keys import TOPIC_ID, group_prefix
from store.state_rows import POP, RowChanges, RowReader

SPAN_MAX: Final = 1024  # queue offsets that one run may cover
ACKS_PER_COMMAND_MAX: Final = 4096
ENDED_RIDER: Final = 0x50
_ROWS_MAX: Final = 1 << 30
_QUEUE_ID: Final = Struct(">I")
_RUN: Final = Struct(">QQ")
_VISIBLE: Final = Struct(">QQQ")

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_QueueId = Annotated[int, msgspec.Meta(ge=0, le=0x7FFF_FFFF)]
_U62 = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Bits = Annotated[bytes, msgspec.Meta(max_length=SPAN_MAX // 8 + 1)]


class QueueRow(msgspec.Struct, frozen=True, array_like=True):
    """How far a group has come in a queue.

    Attributes:
        cursor: First offset that was never given out.
        floor: Everything below is done; the consumer offset that was stored last.
        run_count: Runs that are out.
        newest_pop_ms: The highest pop time of any run so far.
        attempt_id: Of the newest pop in order, empty if it named none.
    """

    cursor: int
    floor: int
    run_count: int = 0
    newest_pop_ms: int = 0
    attempt_id: str = ""


class RunRow(msgspec.Struct, frozen=True, array_like=True):
    """Messages that were given out together.

    Attributes:
        until_ms: When they are visible again.
        deliveries: How often they were given out.
        bits: Bit n, the lowest first, is set if start + n is out.
    """

    until_ms: int
    deliveries: int
    bits: bytes


class RunKey(msgspec.Struct, frozen=True, array_like=True):
    """The name of a run in a queue."""

    start: _U62
    pop_ms: _U62


class Pick(msgspec.Struct, frozen=True, array_like=True):
    """Messages of a run; bits relative to its start."""

    key: RunKey
    bits: _Bits


class Part(msgspec.Struct, frozen=True, array_like=True):
    """What a pop does in one queue.

    Attributes:
        topic, queue_id: The queue.
        seen_cursor: The cursor from which this was chosen; -1: to begin anew, at `begin`.
        seen_offset: The consumer offset stored then, -1 for none.
        begin: Where to begin; only with `seen_cursor` -1.
        stop: The cursor afterwards.
        start: First offset of the new run.
        bits: The messages of the new run, relative to `start`; none for a part that only skips.
        taken: Where they are out already, if they come again.
        dropped: Out, and done with: they are gone, or no longer wanted.
    """

    topic: _Name
    queue_id: _QueueId
    seen_cursor: Annotated[int, msgspec.Meta(ge=-1, le=1 << 62)]
    seen_offset: Annotated[int, msgspec.Meta(ge=-1, le=1 << 62)]
    begin: _U62
    stop: _U62
    start: _U62
    bits: _Bits
    taken: list[Pick] = []
    dropped: list[Pick] = []


class PopMessages(msgspec.Struct, frozen=True, array_like=True):
    """Gives messages out. Result: `Popped`."""

    group: _Name
    now_ms: _U62
    invisible_ms: _U62
    attempt_id: str
    parts: list[Part]


class Popped(NamedTuple):
    """What became of a pop: the pop time of its runs, and which parts took effect."""

    pop_ms: int
    accepted: tuple[bool, ...]


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """Messages of a run that are done with."""

    group: _Name
    topic: _Name
    queue_id: _QueueId
    key: RunKey
    bits: _Bits


class AckMessages(msgspec.Struct, frozen=True, array_like=True):
    """Takes messages for processed. Result: an `Acked` for each, in a tuple."""

    acks: list[Ack]


class Acked(IntEnum):
    """What became of an acknowledgement."""

    DONE = 0
    BEFORE = 1  # they were done with already
    STALE = 2  # some are out by another handle, or not at all


class Change(msgspec.Struct, frozen=True, array_like=True):
    """Sets anew for how long a message is out."""

    group: _Name
    topic: _Name
    queue_id: _QueueId
    key: RunKey
    offset: _U62
    invisible_ms: _U62


class ChangeVisibility(msgspec.Struct, frozen=True, array_like=True):
    """Sets times anew. Result: for each the new pop time, 0 if the handle is stale; a tuple."""

    now_ms: _U62
    changes: list[Change]


_encode = msgspec.msgpack.Encoder().encode
_decode_queue = msgspec.msgpack.Decoder(QueueRow).decode
_decode_run = msgspec.msgpack.Decoder(RunRow).decode
_decode_ack = msgspec.msgpack.Decoder(Ack).decode


def pack_bits(value: int) -> bytes:
    """Returns a bitmap, its lowest bit first; no trailing zero bytes."""
    return value.to_bytes((value.bit_length() + 7) // 8, "little")


def unpack_bits(bits: bytes) -> int:
    """Returns a bitmap as a number."""
    return int.from_bytes(bits, "little")


def offsets_of(start: int, bits: int) -> list[int]:
    """Returns the queue offsets of a bitmap, ascending."""
    found = []
    while bits:
        low = bits & -bits
        found.append(start + low.bit_length() - 1)
        bits ^= low
    return found


def queue_key(group: str, topic_id: int, queue_id: int) -> bytes:
    """Returns the key of a group's state in a queue."""
    return TOPIC_ID.pack(topic_id) + group_prefix(group.encode()) + _QUEUE_ID.pack(queue_id)


# --- reading --------------------------------------------------------------------------------------


def queue_row(rows: RowReader | RowChanges, queue: bytes) -> QueueRow | None:
    """Returns a group's state in a queue, None if it never popped there."""
    raw = rows.get(POP, b"q" + queue)
    return None if raw is None else _decode_queue(raw)


def run_row(rows: RowReader | RowChanges, queue: bytes, key: RunKey) -> RunRow | None:
    """Returns a run, None if nothing of it is out."""
    raw = rows.get(POP, _run_key(queue, key))
    return None if raw is None else _decode_run(raw)


def runs_by_time(rows: RowReader, queue: bytes, limit: int) -> list[tuple[int, RunKey]]:
    """Returns (visible again at, run) of the runs of a queue, the first to be visible first."""
    found = []
    for key, _ in rows.scan(POP, b"v" + queue, limit=limit):
        until_ms, start, pop_ms = _VISIBLE.unpack_from(key, len(key) - _VISIBLE.size)
        found.append((until_ms, RunKey(start, pop_ms)))
    return found


# --- applying -------------------------------------------------------------------------------------


def apply_pop(batch: WriteBatch, command: PopMessages) -> Popped:
    """Gives out what the command names, as far as the state is the one it was chosen from."""
    checked = [_Checked.of(batch, command.group, part) for part in command.parts]
    pop_ms = max([command.now_ms, *(part.pop_ms_min for part in checked if part is not None)])
    until_ms = command.now_ms + command.invisible_ms
    for part in checked:
        if part is not None:
            part.apply(pop_ms, until_ms, command.attempt_id)
    return Popped(pop_ms, tuple(part is not None for part in checked))


class _Checked:
    """A part that fits the state."""

    def __init__(self, batch: WriteBatch, group: str, part: Part, topic_id: int) -> None:
        self.batch = batch
        self.group = group
        self.part = part
        self.queue = queue_key(group, topic_id, part.queue_id)
        self.row: QueueRow | None = queue_row(batch.rows, self.queue)
        stored = batch.consumer_offset(group, topic_id, part.queue_id)
        self.offset = -1 if stored is None else stored
        self.pop_ms_min = 0
        self.deliveries = 1

    @classmethod
    def of(cls, batch: WriteBatch, group: str, part: Part) -> _Checked | None:
        topic = batch.topic(part.topic)
        if topic is None:
            return None
        checked = cls(batch, group, part, topic.topic_id)
        return checked if checked._fits() else None

    def _fits(self) -> bool:
        part, row = self.part, self.row
        if self.offset != part.seen_offset:
            return False
        if part.seen_cursor != valid_cursor(row, self.offset):
            return False
        if row is not None:
            self.pop_ms_min = row.newest_pop_ms + 1 if part.seen_cursor < 0 else 0
        for pick in (*part.taken, *part.dropped):
            run = run_row(self.batch.rows, self.queue, pick.key)
            if run is None or unpack_bits(pick.bits) & ~unpack_bits(run.bits):
                return False
        for pick in part.taken:
            run = run_row(self.batch.rows, self.queue, pick.key)
            if run is not None:
                self.deliveries = max(self.deliveries, run.deliveries + 1)
                self.pop_ms_min = max(self.pop_ms_min, pick.key.pop_ms + 1)
        return True

    def apply(self, pop_ms: int, until_ms: int, attempt_id: str) -> None:
        rows, part = self.batch.rows, self.part
        if part.seen_cursor < 0:
            _drop_runs(rows, self.queue)
            row = QueueRow(cursor=part.begin, floor=self.offset)
        elif self.row is None:
            return
        else:
            row = self.row
        count = row.run_count
        for pick in (*part.taken, *part.dropped):
            count -= _clear(rows, self.queue, pick.key, unpack_bits(pick.bits)) == 0
        if part.bits:
            key = RunKey(part.start, pop_ms)
            _put_run(rows, self.queue, key, RunRow(until_ms, self.deliveries, part.bits))
            count += 1
        row = QueueRow(
            max(row.cursor, part.stop),
            row.floor,
            count,
            max(row.newest_pop_ms, pop_ms),
            attempt_id,
        )
        _settle(self.batch, self.group, part.topic, part.queue_id, self.queue, row)


def valid_cursor(row: QueueRow | None, offset: int) -> int:
    """Returns the cursor, -1 if popping has to begin anew.

    Args:
        row: The group's state in the queue.
        offset: The consumer offset as stored, -1 for none.
    """
    return -1 if row is None or row.floor != offset else row.cursor


def apply_acks(batch: WriteBatch, command: AckMessages) -> tuple[int, ...]:
    """Takes messages out of their runs."""
    queues: dict[bytes, _AckedQueue] = {}
    results = []
    for ack in command.acks:
        topic = batch.topic(ack.topic)
        if topic is None:
            results.append(int(Acked.STALE))
            continue
        key = queue_key(ack.group, topic.topic_id, ack.queue_id)
        if key not in queues:
            queues[key] = _AckedQueue(batch, key, ack, topic.topic_id)
        results.append(int(queues[key].acknowledge(ack)))
    for queue in queues.values():
        queue.settle()
    return tuple(results)


class _AckedQueue:
    """A queue of which messages are acknowledged."""

    def __init__(self, batch: WriteBatch, key: bytes, ack: Ack, topic_id: int) -> None:
        self._batch = batch
        self._key = key
        self._place = (ack.group, ack.topic, ack.queue_id)
        self._row = queue_row(batch.rows, key)
        stored = batch.consumer_offset(ack.group, topic_id, ack.queue_id)
        self._offset = -1 if stored is None else stored
        self._is_valid = valid_cursor(self._row, self._offset) >= 0
        self._ended = 0
        self._is_touched = False

    def acknowledge(self, ack: Ack) -> Acked:
        wanted = unpack_bits(ack.bits)
        if not self._is_valid:
            # The group was moved: what counts is where to.
            is_below = ack.key.start + wanted.bit_length() <= self._offset
            return Acked.BEFORE if is_below else Acked.STALE
        rows = self._batch.rows
        run = run_row(rows, self._key, ack.key)
        held = 0 if run is None else unpack_bits(run.bits) & wanted
        if held:
            self._is_touched = True
            self._ended += _clear(rows, self._key, ack.key, held) == 0
        rest = wanted & ~held
        if rest and not _are_done(rows, self._key, ack.key.start, rest):
            return Acked.STALE
        return Acked.DONE if held else Acked.BEFORE

    def settle(self) -> None:
        if self._is_touched and self._row is not None:
            count = self._row.run_count - self._ended
            row = msgspec.structs.replace(self._row, run_count=count)
            _settle(self._batch, *self._place, self._key, row)


def apply_changes(batch: WriteBatch, command: ChangeVisibility) -> tuple[int, ...]:
    """Moves messages into runs of their own, with another time."""
    return tuple(_change(batch, change, command.now_ms) for change in command.changes)


def _change(batch: WriteBatch, change: Change, now_ms: int) -> int:
    topic = batch.topic(change.topic)
    if topic is None:
        return 0
    rows = batch.rows
    queue = queue_key(change.group, topic.topic_id, change.queue_id)
    run, row = run_row(rows, queue, change.key), queue_row(rows, queue)
    place = change.offset - change.key.start
    stored = batch.consumer_offset(change.group, topic.topic_id, change.queue_id)
    if valid_cursor(row, -1 if stored is None else stored) < 0:
        return 0
    if run is None or row is None or not 0 <= place <= SPAN_MAX:
        return 0
    if not unpack_bits(run.bits) >> place & 1:
        return 0
    pop_ms = max(now_ms, change.key.pop_ms + 1)
    left = _clear(rows, queue, change.key, 1 << place)
    key = RunKey(change.offset, pop_ms)
    _put_run(rows, queue, key, RunRow(now_ms + change.invisible_ms, run.deliveries, b"\1"))
    row = msgspec.structs.replace(
        row,
        run_count=row.run_count + (left != 0),
        newest_pop_ms=max(row.newest_pop_ms, pop_ms),
    )
    # The lowest offset that is out stays the same: the floor need not be looked at.
    rows.put(POP, b"q" + queue, _encode(row))
    return pop_ms


def ended_rider(ack: Ack) -> Rider:
    """Returns the rider that ends messages together with storing what takes their place."""
    return Rider(ENDED_RIDER, _encode(ack))


def apply_rider(batch: WriteBatch, rider: Boarded) -> None:
    """Ends messages."""
    apply_acks(batch, AckMessages([_decode_ack(rider.payload)]))


def drop_topic(rows: RowChanges, topic_id: int) -> None:
    """Forgets what is out of a topic that is deleted."""
    for kind in (b"q", b"r", b"v"):
        for key, _ in rows.scan(POP, kind + TOPIC_ID.pack(topic_id), limit=_ROWS_MAX):
            rows.delete(POP, key)


def drop_group(rows: RowChanges, group: str) -> None:
    """Forgets what is out for a group that is deleted with its offsets.

    Cost: a look at every queue from which any group has popped.
    """
    name = group_prefix(group.encode())
    at = 1 + TOPIC_ID.size
    for key, _ in rows.scan(POP, b"q", limit=_ROWS_MAX):
        if key[at:].startswith(name) and len(key) == at + len(name) + _QUEUE_ID.size:
            rows.delete(POP, key)
            _drop_runs(rows, key[1:])


# --- inside ---------------------------------------------------------------------------------------


def _run_key(queue: bytes, key: RunKey) -> bytes:
    return b"r" + queue + _RUN.pack(key.start, key.pop_ms)


def _visible_key(queue: bytes, key: RunKey, until_ms: int) -> bytes:
    return b"v" + queue + _VISIBLE.pack(until_ms, key.start, key.pop_ms)


def _put_run(rows: RowChanges, queue: bytes, key: RunKey, run: RunRow) -> None:
    rows.put(POP, _run_key(queue, key), _encode(run))
    rows.put(POP, _visible_key(queue, key, run.until_ms), b"")


def _clear(rows: RowChanges, queue: bytes, key: RunKey, bits: int) -> int:
    """Takes messages out of a run; returns the bitmap of those left, and ends an empty run."""
    run = run_row(rows, queue, key)
    if run is None:
        return -1
    left = unpack_bits(run.bits) & ~bits
    if left:
        run = msgspec.structs.replace(run, bits=pack_bits(left))
        rows.put(POP, _run_key(queue, key), _encode(run))
    else:
        rows.delete(POP, _run_key(queue, key))
        rows.delete(POP, _visible_key(queue, key, run.until_ms))
    return left


def _drop_runs(rows: RowChanges, queue: bytes) -> None:
    for kind in (b"r", b"v"):
        for key, _ in rows.scan(POP, kind + queue, limit=_ROWS_MAX):
            rows.delete(POP, key)


def _settle(
    batch: WriteBatch, group: str, topic: str, queue_id: int, queue: bytes, row: QueueRow
) -> None:
    """Stores a queue's row, and the consumer offset if the floor has risen."""
    floor = row.cursor
    # Runs come in the order of their starts: none after the third has a lower offset out than the
    # third's start. Two are looked at closely, so that the floor follows consumers that keep up.
    for number, (key, raw) in enumerate(batch.rows.scan(POP, b"r" + queue, limit=3)):
        low = _RUN.unpack_from(key, len(key) - _RUN.size)[0]
        if number < 2:
            bits = unpack_bits(_decode_run(raw).bits)
            low += (bits & -bits).bit_length() - 1
        floor = min(floor, low)
    floor = max(floor, row.floor)
    if floor != row.floor:
        batch.put_consumer_offsets([ConsumerOffset(group, topic, queue_id, floor)])
        row = msgspec.structs.replace(row, floor=floor)
    batch.rows.put(POP, b"q" + queue, _encode(row))


def _are_done(rows: RowChanges, queue: bytes, start: int, bits: int) -> bool:
    """Whether messages were given out and nobody holds them any more."""
    row = queue_row(rows, queue)
    offsets = offsets_of(start, bits)
    if row is None or offsets[-1] >= row.cursor:
        return False
    if offsets[-1] < row.floor:
        return True
    first = max(0, offsets[0] - SPAN_MAX)
    found = rows.scan(
        POP, b"r" + queue, start=_run_key(queue, RunKey(first, 0)), limit=row.run_count
    )
    for key, raw in found:
        run_start, _ = _RUN.unpack_from(key, len(key) - _RUN.size)
        if run_start > offsets[-1]:
            break
        out = unpack_bits(_decode_run(raw).bits)
        if any(o >= run_start and out >> (o - run_start) & 1 for o in offsets):
            return False
    return True
