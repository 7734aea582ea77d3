"""Decodes the messages of one answer together: what neighbours share is looked at once.

Readers of a backlog decode hundreds of thousands of messages a second, nearly all of which look
alike: the layout's first version, addresses of IPv4, not compressed, one topic, few hosts. Those
are decoded here in one pass; whatever is rarer, or damaged, goes to `decode_stored`, which decides.
Most of these differ from their neighbours in a few fields only, beside the body: what is the same
is then compared in pieces as it is stored, not looked at.
"""

from __future__ import annotations

import functools
import struct

from dledger.codes import MessageFlag
from dledger.message.identity import format_host
from dledger.message.properties import KEY_BYTES, KEY_MARK, Property, SimilarProperties
from dledger.message.records import (
    MAGIC_V1,
    STORED_HEAD,
    STORED_SIZE_MIN,
    ReceivedMessage,
    decode_stored,
)

_RARE = int(MessageFlag.BORN_HOST_V6 | MessageFlag.STORE_HOST_V6 | MessageFlag.COMPRESSED)
_HEAD_SIZE = STORED_HEAD.size
_LENGTH = struct.Struct(">H").unpack_from
# As `STORED_HEAD`, but what neighbours share comes in pieces: magic number; queue and flag; flags;
# from the store's host to the prepared offset.
_FRONT = struct.Struct(">I4sI8sqq4sq8sq20si").unpack_from
_FRUITLESS_MAX = 8  # looks at a neighbour that was different, in one answer


def decode_run(buffer: bytes, *, broker_name: str = "") -> list[ReceivedMessage]:
    """Returns the messages of a pull or query body, in order: as `iter_stored`, but faster.

    Args:
        buffer: Whole stored messages, one after the other.
        broker_name: Noted in the results.

    Raises:
        RemoteProtocolError: A message is torn or damaged.

    Cost: about 1 µs for each message, a third of `decode_stored`; 0.7 µs for those that are alike.
    """
    messages: list[ReceivedMessage] = []
    add = messages.append
    unpack = STORED_HEAD.unpack_from
    similar = SimilarProperties()
    decode_properties = similar.decode
    # What the message before had, as it is stored and as it reads.
    topic_raw = born_raw = store_raw = b""
    topic = born_host = store_host = ""
    at = 0
    end = len(buffer)
    fruitless = 0
    while at < end:
        if end - at >= STORED_SIZE_MIN:
            (
                size,
                magic,
                checksum,
                queue_id,
                flag,
                queue_offset,
                physical_offset,
                sys_flag,
                born_ms,
                born,
                store_ms,
                store,
                reconsume_times,
                prepared,
                body_length,
            ) = unpack(buffer, at)
            body_at = at + _HEAD_SIZE
            topic_at = body_at + body_length
            stop = at + size
            if magic == MAGIC_V1 and not sys_flag & _RARE and body_at <= topic_at < stop <= end:
                name_at = topic_at + 1
                length_at = name_at + buffer[topic_at]
                raw_at = length_at + 2
                if raw_at <= stop and raw_at + _LENGTH(buffer, length_at)[0] == stop:
                    if buffer[name_at:length_at] != topic_raw:
                        topic_raw = buffer[name_at:length_at]
                        topic = str(topic_raw, "utf-8", "replace")
                    if born != born_raw:
                        born_raw, born_host = born, format_host(born)
                    if store != store_raw:
                        store_raw, store_host = store, format_host(store)
                    add(
                        ReceivedMessage(
                            topic,
                            buffer[body_at:topic_at],
                            decode_properties(buffer[raw_at:stop]),
                            queue_id,
                            queue_offset,
                            physical_offset,
                            size,
                            flag,
                            sys_flag,
                            born_ms,
                            born_host,
                            store_ms,
                            store_host,
                            reconsume_times,
                            prepared,
                            checksum,
                            broker_name,
                        )
                    )
                    if stop < end and fruitless < _FRUITLESS_MAX:
                        at = _decode_alike(buffer, at, raw_at, messages, similar)
                        fruitless += at == stop
                    else:
                        at = stop
                    continue
        message = decode_stored(buffer, at, broker_name=broker_name)
        add(message)
        at += message.size_bytes
    return messages


def _decode_alike(
    buffer: bytes,
    at: int,
    raw_at: int,
    messages: list[ReceivedMessage],
    similar: SimilarProperties,
) -> int:
    """Adds the messages that follow the last of the list as long as they are alike.

    They may differ in size, places, times, checksum, body, unique key, which must come first among
    the properties, in others of the same length, and in where they were born.

    Args:
        buffer: Whole stored messages.
        at: Where the last of the list begins in it.
        raw_at: Where its properties begin.
        messages: Gets the messages.
        similar: Knows the properties.

    Returns:
        Where the first begins that is not alike.
    """
    first = messages[-1]
    stop = at + first.size_bytes
    topic_at = at + _HEAD_SIZE + len(first.body)
    rest_length = stop - raw_at - len(KEY_MARK) - KEY_BYTES
    if rest_length < 1:
        return stop
    back = _back(raw_at - topic_at + len(KEY_MARK), rest_length)
    _, magic, _, place, _, _, flags, _, born_raw, _, ids, _ = _FRONT(buffer, at)
    named, _, rest = back.unpack_from(buffer, topic_at)
    others = similar.beside_key(rest[1:])
    if not named.endswith(KEY_MARK) or rest[:1] != b"\x02" or not others:
        return stop
    same = (magic, place, flags, ids, named)
    rest_before = rest
    front_of, back_of = _FRONT, back.unpack_from
    beside_body = _HEAD_SIZE + back.size
    topic, born_host, store_host = first.topic, first.born_host, first.store_host
    queue_id, flag, sys_flag = first.queue_id, first.flag, first.sys_flag
    reconsume_times, prepared = first.reconsume_times, first.prepared_transaction_offset
    broker_name = first.broker_name
    add = messages.append
    unique_key = Property.UNIQUE_KEY
    at, end = stop, len(buffer)
    while end - at > _HEAD_SIZE:
        (
            size,
            magic,
            checksum,
            place,
            queue_offset,
            physical_offset,
            flags,
            born_ms,
            born,
            store_ms,
            ids,
            body_length,
        ) = front_of(buffer, at)
        stop = at + size
        if body_length < 0 or body_length != size - beside_body or stop > end:
            break
        body_at = at + _HEAD_SIZE
        topic_at = body_at + body_length
        named, key, rest = back_of(buffer, topic_at)
        if (magic, place, flags, ids, named) != same or not key.isalnum():
            break
        if rest != rest_before:
            others = similar.beside_key(rest[1:])
            if rest[:1] != b"\x02" or not others:
                break
            rest_before = rest
        if born != born_raw:
            born_raw, born_host = born, format_host(born)
        properties = others.copy()
        properties[unique_key] = key.decode()
        add(
            ReceivedMessage(
                topic,
                buffer[body_at:topic_at],
                properties,
                queue_id,
                queue_offset,
                physical_offset,
                size,
                flag,
                sys_flag,
                born_ms,
                born_host,
                store_ms,
                store_host,
                reconsume_times,
                prepared,
                checksum,
                broker_name,
            )
        )
        at = stop
    return at


@functools.lru_cache(maxsize=256)
def _back(named_length: int, rest_length: int) -> struct.Struct:
    """Returns what follows a body if the unique key comes first: up to its name; it; the rest."""
    return struct.Struct(f">{named_length}s{KEY_BYTES}s{rest_length}s")
