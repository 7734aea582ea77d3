"""The body of a batch send: elements of one topic and queue, one after the other.

One element, big endian; magic and CRC are zero because the header of the request carries the
topic, and the broker computes the checksum when it stores the message:

     0      4       8     12     16        20     20+n       22+n     22+n+m
     +------+-------+-----+------+---------+------+----------+------------+
     | size | magic | CRC | flag | body    | body | prop.    | properties |
     |      | 0     | 0   |      | length  |      | length   |            |
     +------+-------+-----+------+---------+------+----------+------------+
      int32  int32   int32 int32  int32      n      int16       m
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dledger.codes import PROPERTIES_BYTES_MAX
from dledger.errors import MessageRejectedError
from dledger.message.properties import encode_properties
from dledger.message.records import Message, message_properties

_HEAD = struct.Struct(">iiiii")
_HEAD_READ = struct.Struct(">i8xii")  # without magic and CRC
_PROPERTIES_LENGTH = struct.Struct(">H")
_ELEMENT_SIZE_MIN = _HEAD.size + _PROPERTIES_LENGTH.size


class BatchElement(NamedTuple):
    """One message of a batch; the body is a view of the request's body."""

    flag: int
    body: memoryview
    properties: bytes


def encode_batch_element(body: bytes, properties: bytes, flag: int = 0) -> bytes:
    """Returns one element.

    Raises:
        MessageRejectedError: The properties are longer than 32,767 bytes or the flag does not fit
            32 bits.
    """
    if len(properties) > PROPERTIES_BYTES_MAX:
        raise MessageRejectedError(
            f"message properties of {len(properties)} bytes exceed {PROPERTIES_BYTES_MAX}"
        )
    length = len(body)
    try:
        head = _HEAD.pack(_ELEMENT_SIZE_MIN + length + len(properties), 0, 0, flag, length)
    except struct.error as exc:
        raise MessageRejectedError(f"message flag {flag} does not fit 32 bits") from exc
    return b"".join((head, body, _PROPERTIES_LENGTH.pack(len(properties)), properties))


def encode_batch(messages: Iterable[Message]) -> bytes:
    """Returns the body of a batch send of these messages, in order.

    Raises:
        MessageRejectedError: A property is not encodable.
    """
    return b"".join(
        [
            encode_batch_element(
                message.body, encode_properties(message_properties(message)), message.flag
            )
            for message in messages
        ]
    )


def iter_batch(buffer: bytes) -> Iterator[BatchElement]:
    """Yields the elements of a batch body.

    Raises:
        MessageRejectedError: An element is torn or its lengths disagree. Elements before it have
            been yielded already: whoever stores them collects all first.
    """
    view = memoryview(buffer)
    end = len(buffer)
    at = 0
    while at < end:
        if end - at < _ELEMENT_SIZE_MIN:
            raise MessageRejectedError(f"batch element at byte {at} is torn")
        size, flag, length = _HEAD_READ.unpack_from(buffer, at)
        body_at = at + _HEAD.size
        if size < _ELEMENT_SIZE_MIN or size > end - at:
            raise MessageRejectedError(f"batch element at byte {at} has a bad size {size}")
        if length < 0 or length > size - _ELEMENT_SIZE_MIN:
            raise MessageRejectedError(f"batch element at byte {at} has a bad body length {length}")
        properties_at = body_at + length
        (properties_length,) = _PROPERTIES_LENGTH.unpack_from(buffer, properties_at)
        if properties_length != size - _ELEMENT_SIZE_MIN - length:
            raise MessageRejectedError(
                f"batch element at byte {at} has a bad properties length {properties_length}"
            )
        if properties_length > PROPERTIES_BYTES_MAX:
            raise MessageRejectedError(
                f"message properties of {properties_length} bytes exceed {PROPERTIES_BYTES_MAX}"
            )
        at += size
        yield BatchElement(
            flag,
            view[body_at:properties_at],
            buffer[properties_at + _PROPERTIES_LENGTH.size : at],
        )
