"""The commands of the broker's state machine, as they stand in the log.

A command's first byte is its type; types below 16 belong to Raft. The second byte is the version
of its layout. MESSAGES has a layout of its own (`messages_command`); the others are a msgpack array
of the fields of the records below, which newer versions may extend at the end.

Only our own leader writes commands, so one that cannot be decoded is a broken invariant and never
skipped: skipping would let replicas differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Annotated, Final

import msgspec

from dledger.errors import InvalidParameterError, InvariantError
from dledger.model import GroupConfig, TopicConfig
from store.state_batch import ConsumerOffset

RAFT_TYPES_END: Final = 0x10  # types below belong to Raft
CONTROL_VERSION: Final = 1
NAME_BYTES_MAX: Final = 255
QUEUE_ID_MAX: Final = 0x7FFF_FFFF
OFFSETS_PER_COMMAND_MAX: Final = 10_000
_QUEUE_OFFSET_MAX: Final = 0x7FFF_FFFF_FFFF_FFFF

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
_QueueId = Annotated[int, msgspec.Meta(ge=0, le=QUEUE_ID_MAX)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=_QUEUE_OFFSET_MAX)]


class CommandType(IntEnum):
    """The first byte of a command."""

    MESSAGES = 0x10
    PUT_TOPIC = 0x11
    DELETE_TOPIC = 0x12
    PUT_GROUP = 0x13
    DELETE_GROUP = 0x14
    COMMIT_OFFSETS = 0x15
    TRIM_QUEUES = 0x40
    TRIM_LOG = 0x41
    DIGEST = 0x42


class PutTopic(msgspec.Struct, frozen=True, array_like=True):
    """Creates or changes a topic. Result: the `TopicConfig` as stored, with its topic id.

    With `only_create`, an existing topic stays as it is and is the result.
    """

    config: TopicConfig
    only_create: bool = False


class DeleteTopic(msgspec.Struct, frozen=True, array_like=True):
    """Deletes a topic with its messages and consumer offsets. Result: whether it existed."""

    name: _Name


class PutGroup(msgspec.Struct, frozen=True, array_like=True):
    """Creates or changes a consumer group. Result: the `GroupConfig` as stored.

    With `only_create`, an existing group stays as it is and is the result.
    """

    config: GroupConfig
    only_create: bool = False


class DeleteGroup(msgspec.Struct, frozen=True, array_like=True):
    """Deletes a consumer group. Result: whether it existed."""

    name: _Name
    delete_offsets: bool = True


class CommitOffsets(msgspec.Struct, frozen=True, array_like=True):
    """Stores consumer offsets: (group, topic, queue id, queue offset), the last of several wins.

    Result: how many were stored; those of topics that do not exist are not.
    """

    offsets: list[tuple[_Name, _Name, _QueueId, _Offset]]


class TrimQueues(msgspec.Struct, frozen=True, array_like=True):
    """Raises the minimum offsets of queues: (topic id, queue id, minimum). Result: None.

    The leader has looked the minimums up; every replica only stores them.
    """

    minimums: list[tuple[int, _QueueId, _Offset]]


class TrimLog(msgspec.Struct, frozen=True, array_like=True):
    """Allows every replica to drop its log before a physical offset. Result: None.

    Proposed after the minimums of all queues that had messages there.
    """

    physical_offset: _Offset


class CheckDigest(msgspec.Struct, frozen=True, array_like=True):
    """Says what the leader's state was after an entry. Result: None.

    A replica whose own digest of that entry differs stops.
    """

    index: _Offset
    digest: bytes


Control = (
    PutTopic
    | DeleteTopic
    | PutGroup
    | DeleteGroup
    | CommitOffsets
    | TrimQueues
    | TrimLog
    | CheckDigest
)

_encoder = msgspec.msgpack.Encoder()
_DECODERS: Final[dict[int, msgspec.msgpack.Decoder[Control]]] = {
    CommandType.PUT_TOPIC: msgspec.msgpack.Decoder(PutTopic),
    CommandType.DELETE_TOPIC: msgspec.msgpack.Decoder(DeleteTopic),
    CommandType.PUT_GROUP: msgspec.msgpack.Decoder(PutGroup),
    CommandType.DELETE_GROUP: msgspec.msgpack.Decoder(DeleteGroup),
    CommandType.COMMIT_OFFSETS: msgspec.msgpack.Decoder(CommitOffsets),
    CommandType.TRIM_QUEUES: msgspec.msgpack.Decoder(TrimQueues),
    CommandType.TRIM_LOG: msgspec.msgpack.Decoder(TrimLog),
    CommandType.DIGEST: msgspec.msgpack.Decoder(CheckDigest),
}


def encode_put_topic(config: TopicConfig, *, only_create: bool = False) -> bytes:
    """Returns a PUT_TOPIC command; the `topic_id` in `config` is ignored when it is applied.

    Raises:
        InvalidParameterError: The name is empty or longer than 255 bytes.
    """
    _check_name("topic", config.name)
    return _encode(CommandType.PUT_TOPIC, PutTopic(config, only_create))


def encode_delete_topic(name: str) -> bytes:
    """Returns a DELETE_TOPIC command."""
    _check_name("topic", name)
    return _encode(CommandType.DELETE_TOPIC, DeleteTopic(name))


def encode_put_group(config: GroupConfig, *, only_create: bool = False) -> bytes:
    """Returns a PUT_GROUP command."""
    _check_name("group", config.name)
    return _encode(CommandType.PUT_GROUP, PutGroup(config, only_create))


def encode_delete_group(name: str, *, delete_offsets: bool = True) -> bytes:
    """Returns a DELETE_GROUP command."""
    _check_name("group", name)
    return _encode(CommandType.DELETE_GROUP, DeleteGroup(name, delete_offsets))


def encode_commit_offsets(
    offsets: Iterable[ConsumerOffset | tuple[str, str, int, int]],
) -> bytes:
    """Returns a COMMIT_OFFSETS command.

    Args:
        offsets: (group, topic, queue id, queue offset), 1 to 10,000 of them.

    Raises:
        InvalidParameterError: A name, number or the count is out of range.
    """
    items = [ConsumerOffset(*item) for item in offsets]
    if not 0 < len(items) <= OFFSETS_PER_COMMAND_MAX:
        raise InvalidParameterError(
            f"{len(items)} consumer offsets in one command; 1 to {OFFSETS_PER_COMMAND_MAX} allowed"
        )
    for group, topic, queue_id, queue_offset in items:
        _check_name("group", group)
        _check_name("topic", topic)
        if not 0 <= queue_id <= QUEUE_ID_MAX:
            raise InvalidParameterError(f"queue id {queue_id} is out of range")
        if not 0 <= queue_offset <= _QUEUE_OFFSET_MAX:
            raise InvalidParameterError(f"queue offset {queue_offset} is out of range")
    return _encode(CommandType.COMMIT_OFFSETS, CommitOffsets([*items]))


def encode_trim_queues(minimums: Sequence[tuple[int, int, int]]) -> bytes:
    """Returns a TRIM_QUEUES command of (topic id, queue id, minimum)."""
    return _encode(CommandType.TRIM_QUEUES, TrimQueues(list(minimums)))


def encode_trim_log(physical_offset: int) -> bytes:
    """Returns a TRIM_LOG command."""
    return _encode(CommandType.TRIM_LOG, TrimLog(physical_offset))


def encode_digest(index: int, digest: bytes) -> bytes:
    """Returns a DIGEST command."""
    return _encode(CommandType.DIGEST, CheckDigest(index, digest))


def decode_control(body: bytes | bytearray | memoryview) -> Control:
    """Returns the command in an entry's body; not for MESSAGES.

    Raises:
        InvariantError: The type or version is unknown, or the bytes are malformed.
    """
    decoder = _DECODERS.get(body[0]) if len(body) else None
    if decoder is None or len(body) < 2 or body[1] != CONTROL_VERSION:
        raise InvariantError(f"unknown command type or version {bytes(body[:2]).hex()!r}")
    try:
        return decoder.decode(memoryview(body)[2:])
    except msgspec.DecodeError as exc:
        raise InvariantError(f"malformed {CommandType(body[0]).name} command: {exc}") from exc


def _encode(type_: CommandType, command: Control) -> bytes:
    return bytes((type_, CONTROL_VERSION)) + _encoder.encode(command)


def _check_name(what: str, name: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidParameterError(f"{what} name {name!r} is not valid text") from None
    if not 0 < size <= NAME_BYTES_MAX:
        raise InvalidParameterError(
            f"{what} name of {size} bytes; 1 to {NAME_BYTES_MAX} bytes are allowed"
        )


def offsets_of(command: CommitOffsets) -> Sequence[ConsumerOffset]:
    """Returns the consumer offsets of a decoded command."""
    return [ConsumerOffset(*item) for item in command.offsets]
