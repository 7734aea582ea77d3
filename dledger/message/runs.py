"""Decodes the messages of one answer together: what neighbours share is looked at once.

Readers of a backlog decode hundreds of thousands of messages a second, nearly all of which look
alike: the layout's first version, addresses of IPv4, not compressed, one topic, few hosts. Those
are decoded here in one pass; whatever is rarer, or damaged, goes to `decode_stored`, which decides.
"""

from __future__ import annotations

import struct

from dledger.codes import MessageFlag
from dledger.message.identity import format_host
from dledger.message.properties import SimilarProperties
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


def decode_run(buffer: bytes, *, broker_name: str = "") -> list[ReceivedMessage]:
    """Returns the messages of a pull or query body, in order: as `iter_stored`, but faster.

    Args:
        buffer: Whole stored messages, one after the other.
        broker_name: Noted in the results.

    Raises:
        RemoteProtocolError: A message is torn or damaged.

    Cost: about 1 µs for each message, a third of `decode_stored`.
    """
    messages: list[ReceivedMessage] = []
    add = messages.append
    unpack = STORED_HEAD.unpack_from
    decode_properties = SimilarProperties().decode
    # What the message before had, as it is stored and as it reads.
    topic_raw = born_raw = store_raw = b""
    topic = born_host = store_host = ""
    at = 0
    end = len(buffer)
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
                    at = stop
                    continue
        message = decode_stored(buffer, at, broker_name=broker_name)
        add(message)
        at += message.size_bytes
    return messages
