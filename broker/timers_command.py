"""What the log says about timers: parking, delivering and cancelling. Pure but for the batch.

A delayed message is *parked*: an ordinary MESSAGES command stores it in one of the parking topics
(`SCHEDULE_TOPIC_XXXX`, a queue per delay level, or `rmq_sys_wheel_timer`). The tag hash of its
ConsumeQueue unit is its delivery time in ms, as in RocketMQ, and tells every replica to add a
timer. The leader proposes everything else; all integers are big-endian:

    DELIVER_TIMERS   0x20 u8 | version 1 u8 | 0 u16 | count N u32 | 16*N timer keys | MESSAGES
    CANCEL_TIMERS    0x21 u8 | version 1 u8 | 0 u16 | count N u32 | 16*N timer keys

DELIVER_TIMERS removes its timers and stores their messages in the queues they are meant for, or
does nothing at all if one of its timers is gone: a timer is delivered once, whoever proposes it
how often. CANCEL_TIMERS removes those of its timers that are still there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.names import SCHEDULE_TOPIC, TIMER_TOPIC
from dledger.errors import InvariantError, invariant
from dledger.message import get_property, stored_properties
from store import state_keys as keys
from store.state_batch import WriteBatch
from store.timer_table import TIMER_KEY, TIMER_KEY_BYTES, timer_key

if TYPE_CHECKING:
    from broker.messages_command import MessagesCommand, Run
    from broker.state_machine import AppliedEffects, MessagesApplied

VERSION: Final = 1
HEAD: Final = Struct(">BBHI")
TIMERS_PER_COMMAND_MAX: Final = 4096
_UNIQUE_KEY: Final = b"UNIQ_KEY"

Buffer = bytes | bytearray | memoryview


class TimerCommandType(IntEnum):
    """The first byte of a command about timers."""

    DELIVER_TIMERS = 0x20
    CANCEL_TIMERS = 0x21


class TimersDelivered(NamedTuple):
    """Result of DELIVER_TIMERS: `messages` is None if nothing was done, for a timer was gone."""

    messages: MessagesApplied | None


class TimersCancelled(NamedTuple):
    """Result of CANCEL_TIMERS: the names of the timers that it removed."""

    removed: tuple[bytes, ...]


def deliver_prefix(timer_keys: Sequence[bytes]) -> bytes:
    """Returns what stands before the MESSAGES command in a DELIVER_TIMERS command."""
    return _encode(TimerCommandType.DELIVER_TIMERS, timer_keys)


def encode_cancel(timer_keys: Sequence[bytes]) -> bytes:
    """Returns a CANCEL_TIMERS command."""
    return _encode(TimerCommandType.CANCEL_TIMERS, timer_keys)


def _encode(type_: TimerCommandType, timer_keys: Sequence[bytes]) -> bytes:
    invariant(
        0 < len(timer_keys) <= TIMERS_PER_COMMAND_MAX, "timers in a command", n=len(timer_keys)
    )
    return HEAD.pack(type_, VERSION, 0, len(timer_keys)) + b"".join(timer_keys)


def is_timer_command(type_: int) -> bool:
    """Says whether a command's first byte makes it one of this module's."""
    return type_ in (TimerCommandType.DELIVER_TIMERS, TimerCommandType.CANCEL_TIMERS)


def parking_topic_ids(batch: WriteBatch) -> tuple[int, ...]:
    """Returns the numbers of the parking topics, as far as they exist."""
    found = (batch.topic(SCHEDULE_TOPIC), batch.topic(TIMER_TOPIC))
    return tuple(topic.topic_id for topic in found if topic is not None)


def apply_parked(
    batch: WriteBatch, run: Run, command: MessagesCommand, effects: AppliedEffects
) -> None:
    """Adds a timer for every message of a run of a parking topic."""
    first = keys.UNIT.unpack_from(command.runs[0].units)[0]
    for physical_offset, size, deliver_ms in keys.UNIT.iter_unpack(run.units):
        at = physical_offset - first
        stored = command.messages[at : at + size]
        key = timer_key(max(0, deliver_ms), physical_offset)
        batch.timers.add(key, stored, unique_key_of(stored))
        if effects.timers_due_ms is None or deliver_ms < effects.timers_due_ms:
            effects.timers_due_ms = deliver_ms


def apply(
    batch: WriteBatch,
    index: int,
    body: Buffer,
    effects: AppliedEffects,
    apply_messages: Callable[[WriteBatch, int, Buffer, AppliedEffects], MessagesApplied],
) -> TimersDelivered | TimersCancelled:
    """Applies a command about timers.

    Raises:
        InvariantError: It is malformed.
    """
    view = memoryview(body)
    type_, timer_keys, rest = _decode(view)
    if type_ == TimerCommandType.CANCEL_TIMERS:
        return TimersCancelled(tuple(key for key in timer_keys if _remove(batch, key)))
    if not all(batch.timers.exists(key) for key in timer_keys):
        return TimersDelivered(None)
    for key in timer_keys:
        _remove(batch, key)
    return TimersDelivered(apply_messages(batch, index, rest, effects))


def unique_key_of(stored: Buffer) -> bytes:
    """Returns the unique key of a stored message; empty if it has none."""
    return get_property(stored_properties(stored), _UNIQUE_KEY) or b""


def _remove(batch: WriteBatch, key: bytes) -> bool:
    stored = batch.timers.stored(key)
    if stored is None:
        return False
    batch.timers.remove(key, unique_key_of(stored))
    return True


def _decode(view: memoryview) -> tuple[int, list[bytes], memoryview]:
    if len(view) < HEAD.size:
        raise InvariantError(f"torn timer command of {len(view)} bytes")
    type_, version, _, count = HEAD.unpack_from(view)
    stop = HEAD.size + count * TIMER_KEY_BYTES
    # A cancellation ends with its timers; a delivery goes on with messages.
    fits = stop == len(view) if type_ == TimerCommandType.CANCEL_TIMERS else stop < len(view)
    if version != VERSION or not 0 < count <= TIMERS_PER_COMMAND_MAX or not fits:
        head = bytes(view[: HEAD.size]).hex()
        raise InvariantError(f"malformed timer command {head} of {len(view)} bytes")
    timer_keys = [
        bytes(view[at : at + TIMER_KEY.size]) for at in range(HEAD.size, stop, TIMER_KEY_BYTES)
    ]
    if len(set(timer_keys)) != len(timer_keys):
        raise InvariantError("a timer command names a timer twice")
    return type_, timer_keys, view[stop:]
