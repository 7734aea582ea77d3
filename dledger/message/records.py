"""The stored layout of a message: what the CommitLog holds and a pull returns, byte for byte.

Big endian. Version 1 has a one-byte topic length; version 2, with a two-byte one, is used only for
topics of more than 127 bytes, because several clients always read one byte. Hosts take 8 bytes
(address and port) or, where the flags say IPv6, 20.

      0      4       8      12      16     20        28         36       40
      +------+-------+------+-------+------+---------+----------+--------+-----------+
      | size | magic | body | queue | flag | queue   | physical | sys    | born      |
      |      |       | CRC  | id    |      | offset  | offset   | flag   | timestamp |
      +------+-------+------+-------+------+---------+----------+--------+-----------+
      48     56          64      72          76         84       88
      +------+-----------+-------+-----------+----------+--------+------+-------+-------+
      | born | store     | store | reconsume | prepared | body   | body | topic | prop. |
      | host | timestamp | host  | times     | offset   | length |      |       |       |
      +------+-----------+-------+-----------+----------+--------+------+-------+-------+
                                                                    n   1+t/2+t    2+p
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Iterator, Sequence

import msgspec

from dledger.checksum import crc32
from dledger.codes import PROPERTIES_BYTES_MAX, MessageFlag
from dledger.errors import InvalidParameterError, MessageRejectedError, RemoteProtocolError
from dledger.message.compression import DECOMPRESSED_BYTES_MAX, decompress_body
from dledger.message.identity import format_host, offset_message_id, pack_host
from dledger.message.properties import Property, decode_properties

STORED_SIZE_AT = 0
QUEUE_OFFSET_AT = 20
PHYSICAL_OFFSET_AT = 28
SYS_FLAG_AT = 36
_BORN_TIMESTAMP_AT = 40
STORE_TIMESTAMP_AT = 56  # with an IPv4 born host; `stored_store_timestamp` knows both
_RECONSUME_TIMES_AT = 72  # with IPv4 hosts
STORED_SIZE_MIN = 91  # version 1, IPv4, nothing in it

MAGIC_V1 = 0xDAA320A7
_MAGIC_V2 = 0xDAA320AB
_TOPIC_BYTES_V1_MAX = 127
_TOPIC_BYTES_MAX = 0x7FFF

# Everything before the body; which one of the four depends on the two IPv6 bits of the flags.
_HEADS = tuple(
    struct.Struct(f">IIIiiqqiq{born}sq{store}siqi")
    for born, store in ((8, 8), (20, 8), (8, 20), (20, 20))
)
STORED_HEAD = _HEADS[0]  # of version 1 with IPv4 hosts
_HEAD_SIZE = STORED_HEAD.size
_V6_SHIFT = 4
# The part of it that differs between the messages of one request.
_FRONT = struct.Struct(">IIIii")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_I32 = struct.Struct(">i")
_I64 = struct.Struct(">q")
_ONE_BYTE = [bytes((n,)) for n in range(128)]

_BORN_V6 = int(MessageFlag.BORN_HOST_V6)
_STORE_V6 = int(MessageFlag.STORE_HOST_V6)
_ANY_V6 = _BORN_V6 | _STORE_V6
_COMPRESSED = int(MessageFlag.COMPRESSED)

_Buffer = bytes | bytearray | memoryview


class Message(msgspec.Struct):
    """What a user sends.

    `keys` are indexed and may not contain spaces; `properties` are the user's own; `flag` is a
    number that travels with the message and means nothing to the broker.
    """

    topic: str
    body: bytes
    tags: str = ""
    keys: Sequence[str] = ()
    properties: dict[str, str] = {}
    flag: int = 0


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer wants done with a message that it could not process; see `nack`."""

    delay_ms: int | None = None
    reason: str = ""
    dead_letter: bool = False


class ReceivedMessage(msgspec.Struct, gc=False):
    """A stored message, decoded. Hosts are `ip:port`; times are milliseconds since the epoch.

    `rejection` is what `nack` has noted. Make one with names: the order of the fields may change.
    """

    topic: str
    body: bytes
    properties: dict[str, str] = {}
    queue_id: int = 0
    queue_offset: int = 0
    physical_offset: int = 0
    size_bytes: int = 0
    flag: int = 0
    sys_flag: int = 0
    born_timestamp_ms: int = 0
    born_host: str = ""
    store_timestamp_ms: int = 0
    store_host: str = ""
    reconsume_times: int = 0
    prepared_transaction_offset: int = 0
    body_crc: int = 0
    broker_name: str = ""
    rejection: Rejection | None = None

    def nack(
        self,
        delay: float | datetime.timedelta | None = None,
        *,
        reason: str = "",
        dead_letter: bool = False,
    ) -> None:
        """Says that the message could not be processed, for a push consumer to act on.

        It takes effect when the handler returns, or the iteration asks for the next message: the
        message goes back to the broker and comes to the group again later, like after an exception.

        Args:
            delay: Seconds, or a timedelta, until it comes again; by default the broker chooses,
                longer with every failure.
            reason: Kept with the message, at most 512 characters.
            dead_letter: Put it among the group's dead letters; it does not come again.

        Raises:
            InvalidParameterError: A negative delay.
        """
        seconds = delay.total_seconds() if isinstance(delay, datetime.timedelta) else delay
        if seconds is not None and not 0 <= seconds < 2**31:
            raise InvalidParameterError(f"a delay of {seconds} s is out of range")
        delay_ms = None if seconds is None else round(seconds * 1000)
        self.rejection = Rejection(delay_ms=delay_ms, reason=reason, dead_letter=dead_letter)

    @property
    def tags(self) -> str:
        """The tag, or an empty string."""
        return self.properties.get(Property.TAGS, "")

    @property
    def keys(self) -> list[str]:
        """The indexed keys that the producer gave."""
        return self.properties.get(Property.KEYS, "").split()

    @property
    def unique_key(self) -> str:
        """The id that the producing client made, or an empty string."""
        return self.properties.get(Property.UNIQUE_KEY, "")

    @property
    def offset_message_id(self) -> str:
        """The id made of the store host and the physical offset; empty without a store host."""
        ip, _, port = self.store_host.rpartition(":")
        if not port.isdigit() or int(port) > 0xFFFF:
            return ""
        return offset_message_id(pack_host(ip.strip("[]"), int(port)), self.physical_offset)

    @property
    def message_id(self) -> str:
        """The unique key if there is one, else the offset message id."""
        return self.unique_key or self.offset_message_id


def message_properties(message: Message) -> dict[str, str]:
    """Returns the user's properties with tag and keys added under their wire names.

    Raises:
        MessageRejectedError: A key is empty or contains a space.
    """
    properties = dict(message.properties)
    if message.tags:
        properties[Property.TAGS] = message.tags
    if message.keys:
        keys = (message.keys,) if isinstance(message.keys, str) else message.keys
        for key in keys:
            if not key or " " in key:
                raise MessageRejectedError(f"message key {key!r} is empty or contains a space")
        properties[Property.KEYS] = " ".join(keys)
    return properties


def encode_stored(
    *,
    topic: bytes,
    queue_id: int,
    flag: int,
    queue_offset: int,
    physical_offset: int,
    sys_flag: int,
    born_timestamp_ms: int,
    born_host: bytes,
    store_timestamp_ms: int,
    store_host: bytes,
    reconsume_times: int,
    prepared_transaction_offset: int,
    body: _Buffer,
    properties: bytes,
) -> bytes:
    """Returns a message as it is stored.

    Args:
        topic: UTF-8.
        queue_offset, physical_offset: May be 0 and stamped later, where `QUEUE_OFFSET_AT` and
            `PHYSICAL_OFFSET_AT` say.
        sys_flag: The IPv6 bits are set or cleared to fit the hosts.
        born_host, store_host: Packed by `pack_host`.
        body: As stored, compressed if `sys_flag` says so; `properties` by `encode_properties`.

    Raises:
        MessageRejectedError: Topic or properties are too long, or a number does not fit its field.
    """
    topic_length = len(topic)
    properties_length = len(properties)
    if properties_length > PROPERTIES_BYTES_MAX or topic_length > _TOPIC_BYTES_MAX:
        raise MessageRejectedError(
            f"a topic of {topic_length} or message properties of {properties_length} bytes exceed "
            f"the limit of {PROPERTIES_BYTES_MAX}"
        )
    wide = topic_length > _TOPIC_BYTES_V1_MAX
    topic_prefix = _U16.pack(topic_length) if wide else _ONE_BYTE[topic_length]
    sys_flag &= ~_ANY_V6
    head = STORED_HEAD
    if len(born_host) != 8 or len(store_host) != 8:
        if len(born_host) not in (8, 20) or len(store_host) not in (8, 20):
            raise MessageRejectedError("a packed host has 8 or 20 bytes")
        sys_flag |= _BORN_V6 if len(born_host) == 20 else 0
        sys_flag |= _STORE_V6 if len(store_host) == 20 else 0
        head = _HEADS[(sys_flag & _ANY_V6) >> _V6_SHIFT]
    body_length = len(body)
    try:
        front = head.pack(
            head.size + body_length + len(topic_prefix) + topic_length + 2 + properties_length,
            _MAGIC_V2 if wide else MAGIC_V1,
            crc32(body) & 0x7FFFFFFF,
            queue_id,
            flag,
            queue_offset,
            physical_offset,
            sys_flag,
            born_timestamp_ms,
            born_host,
            store_timestamp_ms,
            store_host,
            reconsume_times,
            prepared_transaction_offset,
            body_length,
        )
    except struct.error as exc:
        raise MessageRejectedError(f"a number does not fit its field: {exc}") from exc
    return b"".join((front, body, topic_prefix, topic, _U16.pack(properties_length), properties))


class StoredTemplate:
    """Messages as they are stored in one topic: what they share is packed once.

    Cost: about a third of `encode_stored` for each message.
    """

    __slots__ = ("_after_host", "_before_time", "fixed_bytes", "magic", "topic")

    def __init__(
        self,
        *,
        topic: bytes,
        sys_flag: int,
        born_host_bytes: int,
        store_host: bytes,
        reconsume_times: int,
    ) -> None:
        """Prepares messages whose offsets and store timestamp are stamped later.

        Args:
            born_host_bytes: Length of the senders' packed addresses.
            topic, sys_flag, store_host, reconsume_times: As of `encode_stored`.

        Raises:
            MessageRejectedError: The topic is too long, or a number does not fit its field.
        """
        empty = encode_stored(
            topic=topic,
            queue_id=0,
            flag=0,
            queue_offset=0,
            physical_offset=0,
            sys_flag=sys_flag,
            born_timestamp_ms=0,
            born_host=bytes(born_host_bytes),
            store_timestamp_ms=0,
            store_host=store_host,
            reconsume_times=reconsume_times,
            prepared_transaction_offset=0,
            body=b"",
            properties=b"",
        )
        topic_at = _HEAD_SIZE + born_host_bytes - 8 + len(store_host) - 8
        born_host_stop = _BORN_TIMESTAMP_AT + _I64.size + born_host_bytes
        self.fixed_bytes = len(empty)  # of a message without body and properties
        self.magic: int = _FRONT.unpack_from(empty)[1]
        self._before_time = empty[QUEUE_OFFSET_AT:_BORN_TIMESTAMP_AT]
        self._after_host = empty[born_host_stop : topic_at - _U32.size]
        self.topic = empty[topic_at : -_U16.size]  # with its length

    def born(self, timestamp_ms: int, host: bytes) -> bytes:
        """Returns what `encode` needs for messages of this time and of this packed address.

        Raises:
            MessageRejectedError: The time does not fit 64 bits.
        """
        try:
            return self._before_time + _I64.pack(timestamp_ms) + host + self._after_host
        except struct.error as exc:
            raise MessageRejectedError(f"a number does not fit its field: {exc}") from exc

    def middle(self, born: bytes, store_timestamp_ms: int) -> bytes:
        """Returns what stands between the physical offset and the length of the body.

        Args:
            born: Time, eight bytes, and packed address of the sender.
            store_timestamp_ms: When the message is stored.
        """
        return b"".join(
            (
                self._before_time[SYS_FLAG_AT - QUEUE_OFFSET_AT :],
                born,
                _I64.pack(store_timestamp_ms),
                self._after_host[_I64.size :],
            )
        )

    def encode(
        self, born: bytes, queue_id: int, flag: int, body: _Buffer, properties: bytes
    ) -> bytes:
        """Returns one message.

        Args:
            born: What `born` returned.
            queue_id: Where it goes.
            flag: The message's own.
            body: As stored.
            properties: Encoded.

        Raises:
            MessageRejectedError: The properties are too long, or a number does not fit its field.
        """
        body_length, properties_length = len(body), len(properties)
        try:
            return b"".join(
                (
                    _FRONT.pack(
                        self.fixed_bytes + body_length + properties_length,
                        self.magic,
                        crc32(body) & 0x7FFFFFFF,
                        queue_id,
                        flag,
                    ),
                    born,
                    _U32.pack(body_length),
                    body,
                    self.topic,
                    _U16.pack(properties_length),
                    properties,
                )
            )
        except struct.error as exc:
            raise MessageRejectedError(f"a number does not fit its field: {exc}") from exc


def stored_size(buffer: _Buffer, start: int = 0) -> int:
    """Returns the announced size of the stored message that begins at `start`.

    Raises:
        RemoteProtocolError: Fewer bytes than that follow, or too few for any message.
    """
    room = len(buffer) - start
    if start < 0 or room < STORED_SIZE_MIN:
        raise RemoteProtocolError(f"stored message at byte {start} is torn: {room} bytes left")
    size: int = _U32.unpack_from(buffer, start)[0]
    if not STORED_SIZE_MIN <= size <= room:
        raise RemoteProtocolError(
            f"stored message at byte {start} announces {size} bytes where {room} are left"
        )
    return size


def stored_store_timestamp(buffer: _Buffer, start: int = 0) -> int:
    """Returns the store timestamp in milliseconds of the stored message at `start`.

    Raises:
        RemoteProtocolError: The message is torn.
    """
    if len(buffer) - start < STORED_SIZE_MIN:
        raise RemoteProtocolError(f"stored message at byte {start} is torn")
    at = start + STORE_TIMESTAMP_AT
    if buffer[start + SYS_FLAG_AT + 3] & _BORN_V6:
        at += 12
    timestamp: int = _I64.unpack_from(buffer, at)[0]
    return timestamp


def stored_reconsume_times(buffer: _Buffer) -> int:
    """Returns how often a stored message had failed when it was stored.

    Raises:
        RemoteProtocolError: The message is torn.
    """
    times: int = _I32.unpack_from(buffer, _reconsume_times_at(buffer))[0]
    return times


def with_reconsume_times(stored: _Buffer, times: int) -> bytes:
    """Returns a copy of a stored message that says it has failed so often.

    Raises:
        RemoteProtocolError: The message is torn.
    """
    copy = bytearray(stored)
    _I32.pack_into(copy, _reconsume_times_at(stored), times)
    return bytes(copy)


def _reconsume_times_at(buffer: _Buffer) -> int:
    if len(buffer) < STORED_SIZE_MIN:
        raise RemoteProtocolError(f"stored message of {len(buffer)} bytes is torn")
    flags = buffer[SYS_FLAG_AT + 3]
    return _RECONSUME_TIMES_AT + (12 if flags & _BORN_V6 else 0) + (12 if flags & _STORE_V6 else 0)


def stored_properties(buffer: _Buffer, start: int = 0) -> bytes:
    """Returns the raw properties string of the stored message at `start`.

    Raises:
        RemoteProtocolError: The message is torn or its lengths disagree.
    """
    stop = start + stored_size(buffer, start)
    head = _HEADS[(buffer[start + SYS_FLAG_AT + 3] & _ANY_V6) >> _V6_SHIFT]
    _, _, properties_at = _body_and_topic(buffer, start, start + head.size, stop)
    return bytes(buffer[properties_at:stop])


def decode_stored(
    buffer: _Buffer,
    start: int = 0,
    *,
    decompress: bool = True,
    verify_crc: bool = False,
    broker_name: str = "",
    decompressed_bytes_max: int = DECOMPRESSED_BYTES_MAX,
) -> ReceivedMessage:
    """Decodes the stored message that begins at `start`.

    Args:
        decompress: Inflates a compressed body and clears the bit in `sys_flag`.
        verify_crc: Checks the checksum of the body as stored.
        broker_name: Noted in the result.
        decompressed_bytes_max: Limit of an inflated body.

    Raises:
        RemoteProtocolError: Torn, damaged or not a stored message.
    """
    size = stored_size(buffer, start)
    stop = start + size
    head = _HEADS[(buffer[start + SYS_FLAG_AT + 3] & _ANY_V6) >> _V6_SHIFT]
    body_at, topic_at, properties_at = _body_and_topic(buffer, start, start + head.size, stop)
    (
        _,
        magic,
        checksum,
        queue_id,
        flag,
        queue_offset,
        physical_offset,
        sys_flag,
        born_timestamp_ms,
        born_host,
        store_timestamp_ms,
        store_host,
        reconsume_times,
        prepared_offset,
        body_length,
    ) = head.unpack_from(buffer, start)
    if magic != MAGIC_V1 and magic != _MAGIC_V2:
        raise RemoteProtocolError(f"stored message at byte {start} has a bad magic {magic:#x}")
    body: bytes = bytes(buffer[body_at : body_at + body_length])
    if verify_crc and crc32(body) & 0x7FFFFFFF != checksum:
        raise RemoteProtocolError(f"stored message at byte {start} has a bad body checksum")
    if decompress and sys_flag & _COMPRESSED:
        body = decompress_body(body, sys_flag, bytes_max=decompressed_bytes_max)
        sys_flag &= ~_COMPRESSED
    return ReceivedMessage(  # by position: names cost several times as much
        str(buffer[topic_at : properties_at - 2], "utf-8", "replace"),
        body,
        decode_properties(bytes(buffer[properties_at:stop])),
        queue_id,
        queue_offset,
        physical_offset,
        size,
        flag,
        sys_flag,
        born_timestamp_ms,
        format_host(born_host),
        store_timestamp_ms,
        format_host(store_host),
        reconsume_times,
        prepared_offset,
        checksum,
        broker_name,
    )


def iter_stored(
    buffer: _Buffer,
    *,
    decompress: bool = True,
    verify_crc: bool = False,
    broker_name: str = "",
) -> Iterator[ReceivedMessage]:
    """Yields the messages of a pull or query body, in order.

    Raises:
        RemoteProtocolError: A message is torn or damaged; those before it have been yielded.
    """
    at = 0
    end = len(buffer)
    while at < end:
        message = decode_stored(
            buffer, at, decompress=decompress, verify_crc=verify_crc, broker_name=broker_name
        )
        yield message
        at += message.size_bytes


def _body_and_topic(buffer: _Buffer, start: int, body_at: int, stop: int) -> tuple[int, int, int]:
    """Returns where body, topic and properties begin, having checked that all fill the size."""
    wide = _U32.unpack_from(buffer, start + 4)[0] == _MAGIC_V2
    if body_at <= stop:
        topic_length_at = body_at + _U32.unpack_from(buffer, body_at - 4)[0]
        topic_at = topic_length_at + (2 if wide else 1)
        if topic_at <= stop:
            if wide:
                topic_length = _U16.unpack_from(buffer, topic_length_at)[0]
            else:
                topic_length = buffer[topic_length_at]
            properties_at = topic_at + topic_length + 2
            if (
                properties_at <= stop
                and properties_at + _U16.unpack_from(buffer, properties_at - 2)[0] == stop
            ):
                return body_at, topic_at, properties_at
    raise RemoteProtocolError(f"stored message at byte {start} has lengths that disagree")
