"""Transactions: half messages that are open, and what became of those that ended. Pure state.

A half message is stored in RMQ_SYS_TRANS_HALF_TOPIC, which nobody can read, by the same log entry
that opens its transaction. Committing stores the real message and ends the transaction, again by
one entry: so a commit takes effect once, however often it is asked for. How a transaction ended is
remembered for an hour, to tell a repeated end from a contradicting one.

Rows in `transactions`:

    "h", queue offset u64 of the half message -> msgpack HalfRow
    "d", due time u64 in ms, queue offset u64 -> empty: when to ask the producer, in order
    "e", queue offset u64 -> msgpack EndRow

Times are the leader's, as in the commands.

Source: RocketMQ `TransactionalMessageServiceImpl`, `EndTransactionProcessor`. We differ: open half
messages are rows instead of op messages; a check does not store the half message again; and a
check that could be sent to nobody does not count.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Annotated, Final

import msgspec

from broker.riders import Boarded, Rider
from store.state_rows import TRANSACTIONS, RowChanges, RowReader

HALF_TOPIC: Final = "RMQ_SYS_TRANS_HALF_TOPIC"
GIVEN_UP_TOPIC: Final = "TRANS_CHECK_MAX_TIME_TOPIC"
ENDS_KEPT_MS: Final = 3_600_000
_ENDS_PRUNED_MAX: Final = 8

_OFFSET: Final = Struct(">cQ")
_DUE: Final = Struct(">cQQ")
_OPEN: Final = Struct(">I")
_END: Final = Struct(">BQ")

_U62 = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class RiderKind(IntEnum):
    """Riders of transactions."""

    OPEN_HALF = 1
    END_HALF = 2


class Outcome(IntEnum):
    """How a transaction ended."""

    COMMITTED = 1
    ROLLED_BACK = 2
    GIVEN_UP = 3


class HalfRow(msgspec.Struct, frozen=True, array_like=True):
    """An open transaction.

    Attributes:
        physical_offset, size_bytes: Where the half message lies.
        group: The producer group that is asked and may end it.
        stored_ms: When it was stored.
        due_ms: When the producer is asked next.
        checks: How often it was asked.
    """

    physical_offset: int
    size_bytes: int
    group: str
    stored_ms: int
    due_ms: int
    checks: int = 0


class EndRow(msgspec.Struct, frozen=True, array_like=True):
    """An ended transaction."""

    outcome: int
    ended_ms: int
    physical_offset: int


class EndHalves(msgspec.Struct, frozen=True, array_like=True):
    """Ends transactions without storing anything. Result: which were open, in order."""

    now_ms: _U62
    ends: list[tuple[_U62, int]]


class ChecksSent(msgspec.Struct, frozen=True, array_like=True):
    """Sets when transactions are looked at next, and counts checks. Result: None."""

    due_ms: _U62
    halves: list[tuple[_U62, bool]]


_encode = msgspec.msgpack.Encoder().encode
_decode_half = msgspec.msgpack.Decoder(HalfRow).decode
_decode_end = msgspec.msgpack.Decoder(EndRow).decode


def open_rider(group: str, immunity_ms: int) -> Rider:
    """Returns the rider that opens a transaction with the half message it rides with.

    Args:
        group: Producer group.
        immunity_ms: How long after storing the producer is not asked.
    """
    return Rider(RiderKind.OPEN_HALF, _OPEN.pack(min(immunity_ms, 0xFFFF_FFFF)) + group.encode())


def end_rider(half_offset: int, outcome: Outcome) -> Rider:
    """Returns the rider that ends a transaction with the message it rides with."""
    return Rider(RiderKind.END_HALF, _END.pack(outcome, half_offset))


def apply_rider(rows: RowChanges, rider: Boarded) -> None:
    """Opens or ends a transaction."""
    if rider.kind == RiderKind.OPEN_HALF:
        (immunity_ms,) = _OPEN.unpack_from(rider.payload)
        half = HalfRow(
            physical_offset=rider.physical_offset,
            size_bytes=rider.size_bytes,
            group=rider.payload[_OPEN.size :].decode(),
            stored_ms=rider.store_timestamp_ms,
            due_ms=rider.store_timestamp_ms + immunity_ms,
        )
        _put_half(rows, rider.queue_offset, half)
    elif rider.kind == RiderKind.END_HALF:
        outcome, half_offset = _END.unpack(rider.payload)
        _end(rows, half_offset, outcome, rider.store_timestamp_ms)


def apply_end(rows: RowChanges, command: EndHalves) -> list[bool]:
    """Ends transactions that are open."""
    return [
        _end(rows, half_offset, outcome, command.now_ms) for half_offset, outcome in command.ends
    ]


def apply_checks(rows: RowChanges, command: ChecksSent) -> None:
    """Puts off open transactions; those that ended meanwhile stay ended."""
    for half_offset, counts in command.halves:
        raw = rows.get(TRANSACTIONS, _OFFSET.pack(b"h", half_offset))
        if raw is None:
            continue
        half = _decode_half(raw)
        rows.delete(TRANSACTIONS, _DUE.pack(b"d", half.due_ms, half_offset))
        checks = half.checks + counts
        later = msgspec.structs.replace(half, due_ms=command.due_ms, checks=checks)
        _put_half(rows, half_offset, later)


def open_half(rows: RowReader | RowChanges, half_offset: int) -> HalfRow | None:
    """Returns the open transaction of a half message's queue offset, or None."""
    if half_offset < 0:
        return None
    raw = rows.get(TRANSACTIONS, _OFFSET.pack(b"h", half_offset))
    return None if raw is None else _decode_half(raw)


def ended_half(rows: RowReader, half_offset: int) -> EndRow | None:
    """Returns how a transaction ended, None if it did not or that was long ago."""
    if half_offset < 0:
        return None
    raw = rows.get(TRANSACTIONS, _OFFSET.pack(b"e", half_offset))
    return None if raw is None else _decode_end(raw)


def due_halves(rows: RowReader, now_ms: int, limit: int) -> list[tuple[int, HalfRow]]:
    """Returns the open transactions that are due, the longest due first.

    Cost: of those returned, however many are open.
    """
    found: list[tuple[int, HalfRow]] = []
    for key, _ in rows.scan(TRANSACTIONS, b"d", limit=limit):
        _, due_ms, half_offset = _DUE.unpack(key)
        if due_ms > now_ms:
            break
        half = open_half(rows, half_offset)
        if half is not None:
            found.append((half_offset, half))
    return found


def _put_half(rows: RowChanges, half_offset: int, half: HalfRow) -> None:
    rows.put(TRANSACTIONS, _OFFSET.pack(b"h", half_offset), _encode(half))
    rows.put(TRANSACTIONS, _DUE.pack(b"d", half.due_ms, half_offset), b"")


def _end(rows: RowChanges, half_offset: int, outcome: int, now_ms: int) -> bool:
    half = open_half(rows, half_offset)
    if half is None:
        return False
    rows.delete(TRANSACTIONS, _OFFSET.pack(b"h", half_offset))
    rows.delete(TRANSACTIONS, _DUE.pack(b"d", half.due_ms, half_offset))
    row = EndRow(outcome, now_ms, half.physical_offset)
    rows.put(TRANSACTIONS, _OFFSET.pack(b"e", half_offset), _encode(row))
    # More than one for each that is added: what is kept stays bounded by an hour's transactions.
    for key, raw in rows.scan(TRANSACTIONS, b"e", limit=_ENDS_PRUNED_MAX):
        if now_ms - _decode_end(raw).ended_ms >= ENDS_KEPT_MS:
            rows.delete(TRANSACTIONS, key)
    return True
