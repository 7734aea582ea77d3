"""The body of REGISTER_BROKER (103), plain and compressed.

The compressed form is a zlib stream of, big endian:

    int32 n, n bytes   DataVersion as JSON
    int32 count        topics
      int32 n, n bytes   `name read write perm filterType {attributes as JSON}`
    int32 n, n bytes   filter servers as JSON
    int32 count        queue mappings, from senders of version 413 on; we have none
      int32 n, n bytes   mapping as JSON
"""

from __future__ import annotations

import struct
import zlib

import msgspec

from dledger.codes import FRAME_BYTES_MAX
from dledger.errors import MalformedBodyError
from dledger.model import TopicConfig
from dledger.remoting.bodies.codec import decode_json
from dledger.remoting.bodies.tables import (
    DataVersion,
    RegisterBrokerBody,
    decode_register_json,
    encode_register_json,
)

REGISTRATION_BYTES_MAX = 2 * FRAME_BYTES_MAX  # once inflated
_LENGTH = struct.Struct(">i")


def encode_register_broker(body: RegisterBrokerBody, *, compressed: bool = False) -> bytes:
    """Returns the body of a REGISTER_BROKER; the header's `compressed` field must agree."""
    if not compressed:
        return encode_register_json(body)
    pieces = [_sized(msgspec.json.encode(body.data_version)), _LENGTH.pack(len(body.topics))]
    for topic in body.topics.values():
        attributes = msgspec.json.encode(topic.attributes).decode()
        pieces.append(
            _sized(
                f"{topic.name} {topic.read_queue_count} {topic.write_queue_count} "
                f"{topic.permission} {topic.filter_type} {attributes}".encode()
            )
        )
    pieces.append(_sized(msgspec.json.encode(body.filter_servers)))
    pieces.append(_LENGTH.pack(0))
    return zlib.compress(b"".join(pieces))


def decode_register_broker(data: bytes, *, compressed: bool = False) -> RegisterBrokerBody:
    """Decodes the body of a REGISTER_BROKER.

    Args:
        data: Body; empty means no topics.
        compressed: The header's `compressed` field.

    Raises:
        MalformedBodyError: Torn, damaged, or over 32 MiB once inflated.
    """
    if not data:
        return RegisterBrokerBody()
    if not compressed:
        return decode_register_json(data)
    reader = _Reader(_inflate(data))
    version = decode_json(reader.sized(), DataVersion)
    topics: dict[str, TopicConfig] = {}
    for _ in range(reader.count()):
        topic = _topic_from_line(reader.sized())
        topics[topic.name] = topic
    filter_servers = decode_json(reader.sized(), list[str])
    return RegisterBrokerBody(topics=topics, data_version=version, filter_servers=filter_servers)


class _Reader:
    """Takes lengths and pieces off a buffer, each checked against what is left."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def count(self) -> int:
        """Returns the next int32, which may not be negative or larger than what is left."""
        left = len(self._data) - self._at - _LENGTH.size
        if left < 0:
            raise MalformedBodyError("registration body is torn")
        (value,) = _LENGTH.unpack_from(self._data, self._at)
        if not 0 <= value <= left:
            raise MalformedBodyError(
                f"registration body announces {value} where {left} bytes are left"
            )
        self._at += _LENGTH.size
        return int(value)

    def sized(self) -> bytes:
        """Returns the next piece."""
        length = self.count()
        start = self._at
        self._at += length
        return self._data[start : self._at]


def _sized(piece: bytes) -> bytes:
    return _LENGTH.pack(len(piece)) + piece


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        result = inflater.decompress(data, REGISTRATION_BYTES_MAX + 1)
    except zlib.error as exc:
        raise MalformedBodyError(f"registration body is damaged: {exc}") from exc
    if len(result) > REGISTRATION_BYTES_MAX:
        raise MalformedBodyError(f"registration body inflates to over {REGISTRATION_BYTES_MAX}")
    if not inflater.eof:
        raise MalformedBodyError("registration body is torn")
    return result


def _topic_from_line(line: bytes) -> TopicConfig:
    try:
        fields = line.decode().split(" ", 5)
        name, read, write, permission, filter_type = fields[:5]
        numbers = (int(read), int(write), int(permission))
    except (ValueError, UnicodeDecodeError) as exc:
        raise MalformedBodyError(f"registration holds a bad topic line {line!r}") from exc
    attributes = fields[5].strip() if len(fields) > 5 else ""
    return TopicConfig(
        name=name,
        read_queue_count=numbers[0],
        write_queue_count=numbers[1],
        permission=numbers[2],
        filter_type=filter_type,
        attributes=decode_json(attributes.encode(), dict[str, str]) if attributes else {},
    )
