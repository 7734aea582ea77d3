"""Commands of features that keep tables of their own: types 0x30 to 0x3F and 0x50 to 0x60.

Each feature's module holds the records of its commands and what applying them does; here is what
they have in common: the type byte, the version and the way through the state machine. All are a
msgpack array behind two bytes, as in `commands`, but MESSAGES_WITH_RIDERS.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

import msgspec

from broker import (
    live_settings,
    locks,
    offset_resets,
    pop_state,
    request_modes,
    transactions,
)
from broker.riders import MESSAGES_WITH_RIDERS, Boarded
from dledger.errors import InvariantError
from store.state_batch import WriteBatch

FEATURE_TYPES: Final = frozenset((*range(0x30, 0x40), *range(0x50, 0x61)))
VERSION: Final = 1

Buffer = bytes | bytearray | memoryview


class FeatureType(IntEnum):
    """The first byte of a feature's command."""

    LOCK_QUEUES = 0x30
    UNLOCK_QUEUES = 0x31
    MESSAGES_WITH_RIDERS = MESSAGES_WITH_RIDERS
    END_HALVES = 0x33
    CHECKS_SENT = 0x34
    RESET_OFFSETS = 0x35
    RESETS_FOLLOWED = 0x36
    POP_MESSAGES = 0x50
    ACK_MESSAGES = 0x51
    CHANGE_VISIBILITY = 0x52
    SET_REQUEST_MODE = 0x53
    PUT_SETTINGS = 0x60


_Apply = Callable[[WriteBatch, Any, list[tuple[int, int]]], object]
_RECORDS: Final[dict[type[msgspec.Struct], FeatureType]] = {
    locks.LockQueues: FeatureType.LOCK_QUEUES,
    locks.UnlockQueues: FeatureType.UNLOCK_QUEUES,
    transactions.EndHalves: FeatureType.END_HALVES,
    transactions.ChecksSent: FeatureType.CHECKS_SENT,
    offset_resets.ResetOffsets: FeatureType.RESET_OFFSETS,
    offset_resets.ResetsFollowed: FeatureType.RESETS_FOLLOWED,
    live_settings.PutSettings: FeatureType.PUT_SETTINGS,
    pop_state.PopMessages: FeatureType.POP_MESSAGES,
    pop_state.AckMessages: FeatureType.ACK_MESSAGES,
    pop_state.ChangeVisibility: FeatureType.CHANGE_VISIBILITY,
    request_modes.SetRequestMode: FeatureType.SET_REQUEST_MODE,
}
_APPLY: Final[dict[FeatureType, _Apply]] = {
    FeatureType.LOCK_QUEUES: lambda batch, command, _: locks.apply_lock(batch.rows, command),
    FeatureType.UNLOCK_QUEUES: lambda batch, command, _: locks.apply_unlock(batch.rows, command),
    FeatureType.END_HALVES: lambda batch, command, _: transactions.apply_end(batch.rows, command),
    FeatureType.CHECKS_SENT: lambda batch, command, _: transactions.apply_checks(
        batch.rows, command
    ),
    FeatureType.RESET_OFFSETS: offset_resets.apply_reset,
    FeatureType.RESETS_FOLLOWED: offset_resets.apply_followed,
    FeatureType.PUT_SETTINGS: lambda batch, command, _: live_settings.apply_settings(
        batch.rows, command
    ),
    FeatureType.POP_MESSAGES: lambda batch, command, _: pop_state.apply_pop(batch, command),
    FeatureType.ACK_MESSAGES: lambda batch, command, _: pop_state.apply_acks(batch, command),
    FeatureType.CHANGE_VISIBILITY: lambda batch, command, _: pop_state.apply_changes(
        batch, command
    ),
    FeatureType.SET_REQUEST_MODE: lambda batch, command, _: request_modes.apply(batch, command),
}
_DECODERS: Final[dict[int, msgspec.msgpack.Decoder[Any]]] = {
    type_: msgspec.msgpack.Decoder(record) for record, type_ in _RECORDS.items()
}
_encoder = msgspec.msgpack.Encoder()


def encode_feature(command: msgspec.Struct) -> bytes:
    """Returns a feature's command as it stands in the log."""
    return bytes((_RECORDS[type(command)], VERSION)) + _encoder.encode(command)


def decode_feature(body: Buffer) -> Any:
    """Returns the record of a command.

    Raises:
        InvariantError: The type or version is unknown, or the bytes are malformed.
    """
    decoder = _DECODERS.get(body[0])
    if decoder is None or len(body) < 2 or body[1] != VERSION:
        raise InvariantError(f"unknown command type or version {bytes(body[:2]).hex()!r}")
    try:
        return decoder.decode(memoryview(body)[2:])
    except msgspec.DecodeError as exc:
        raise InvariantError(f"malformed {FeatureType(body[0]).name} command: {exc}") from exc


def apply_feature(batch: WriteBatch, body: Buffer, resets: list[tuple[int, int]]) -> object:
    """Applies a feature's command; deterministic and total, as the state machine demands.

    Args:
        batch: What it changes.
        body: The command.
        resets: Gets (topic id, queue id) of every queue in which a group was moved.

    Returns:
        The command's result, see its record.
    """
    command = decode_feature(body)
    return _APPLY[FeatureType(body[0])](batch, command, resets)


def apply_rider(batch: WriteBatch, rider: Boarded) -> None:
    """Applies what rides with messages that were stored."""
    if rider.kind == pop_state.ENDED_RIDER:
        pop_state.apply_rider(batch, rider)
    else:
        transactions.apply_rider(batch.rows, rider)


def topic_deleted(batch: WriteBatch, topic_id: int) -> None:
    """Removes what features hold of a topic."""
    offset_resets.drop_topic(batch.rows, topic_id)
    pop_state.drop_topic(batch.rows, topic_id)
    request_modes.drop_topic(batch.rows, topic_id)


def group_deleted(batch: WriteBatch, name: str) -> None:
    """Removes what features hold of a group that is deleted with its offsets."""
    offset_resets.drop_group(batch.rows, name)
    pop_state.drop_group(batch.rows, name)
    request_modes.drop_group(batch.rows, name)
