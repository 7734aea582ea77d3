"""Messages with riders: what must become true together with the storing of a message.

A rider is a small record that rides in the same log entry as the messages of one request, learns
where they were stored, and is applied in the same transaction: so "the message is stored" and "its
transaction has ended", say, cannot come apart.

    offset  size  field
    0       1     type 0x32
    1       1     version 1
    2       2     rider count
    4       4     riders' bytes B
    8       B     riders: kind u8, payload length u16, queue offset u64 and physical offset u64 of
                  the request's first message, its size u32, topic id u32, store timestamp u64,
                  payload
    8+B           a whole MESSAGES command

A rider whose messages were not stored, because their topic had been deleted before, is void.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from broker.messages_command import Part
from dledger.errors import InvariantError, invariant

MESSAGES_WITH_RIDERS: Final = 0x32
VERSION: Final = 1
HEAD: Final = Struct(">BBHI")
RIDER: Final = Struct(">BHQQIIQ")
PAYLOAD_BYTES_MAX: Final = 1024
RIDERS_MAX: Final = 4096

Buffer = bytes | bytearray | memoryview


class Rider(NamedTuple):
    """What rides with the messages of a request.

    Attributes:
        kind: Whose it is and what it says; see `feature_commands`.
        payload: What its owner needs to apply it.
    """

    kind: int
    payload: bytes

    @property
    def size_bytes(self) -> int:
        """Bytes in the command."""
        return RIDER.size + len(self.payload)


class Boarded(NamedTuple):
    """A rider as read back from a command."""

    kind: int
    queue_offset: int
    physical_offset: int
    size_bytes: int
    topic_id: int
    store_timestamp_ms: int
    payload: bytes


def prefix_bytes(riders: Sequence[tuple[Rider, Part, int]]) -> int:
    """Returns the size of everything before the MESSAGES command."""
    return HEAD.size + sum(rider.size_bytes for rider, _, _ in riders)


def encode_prefix(riders: Sequence[tuple[Rider, Part, int]], store_timestamp_ms: int) -> bytes:
    """Returns everything before the MESSAGES command, whose offsets have been given.

    Args:
        riders: Each with the part it rides with and that part's topic id.
        store_timestamp_ms: Of the command.
    """
    pieces = [HEAD.pack(MESSAGES_WITH_RIDERS, VERSION, len(riders), prefix_bytes(riders) - 8)]
    for rider, part, topic_id in riders:
        invariant(len(rider.payload) <= PAYLOAD_BYTES_MAX, "rider too large", kind=rider.kind)
        pieces.append(
            RIDER.pack(
                rider.kind,
                len(rider.payload),
                part.first_queue_offset,
                part.physical_offsets[0],
                part.first_bytes,
                topic_id,
                store_timestamp_ms,
            )
        )
        pieces.append(rider.payload)
    return b"".join(pieces)


def decode_riders(body: Buffer) -> tuple[list[Boarded], memoryview]:
    """Returns the riders of a command, and its MESSAGES command.

    Raises:
        InvariantError: It is malformed or of an unknown version.
    """
    view = memoryview(body)
    if len(view) < HEAD.size:
        raise InvariantError("malformed MESSAGES_WITH_RIDERS command: head")
    type_, version, count, size = HEAD.unpack_from(view)
    stop = HEAD.size + size
    if type_ != MESSAGES_WITH_RIDERS or version != VERSION or stop >= len(view):
        raise InvariantError(f"malformed MESSAGES_WITH_RIDERS command: {bytes(view[:8]).hex()}")
    riders: list[Boarded] = []
    at = HEAD.size
    for _ in range(count):
        if at + RIDER.size > stop:
            raise InvariantError("malformed MESSAGES_WITH_RIDERS command: rider")
        kind, length, queue_offset, physical, size_bytes, topic_id, time_ms = RIDER.unpack_from(
            view, at
        )
        at += RIDER.size
        payload = bytes(view[at : at + length])
        at += length
        riders.append(Boarded(kind, queue_offset, physical, size_bytes, topic_id, time_ms, payload))
    if at != stop:
        raise InvariantError("malformed MESSAGES_WITH_RIDERS command: riders' bytes")
    return riders, view[stop:]
