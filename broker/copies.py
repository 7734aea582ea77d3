"""Copies of stored messages, to be stored elsewhere. Pure."""

from __future__ import annotations

from broker.messages_command import EncodedMessage
from dledger.message import (
    Property,
    ReceivedMessage,
    encode_stored,
    pack_host,
    tag_hash,
)


def copy_of(
    message: ReceivedMessage,
    *,
    topic: str,
    queue_id: int,
    reconsume_times: int,
    properties: dict[str, str],
    raw: bytes,
    store_host: bytes,
) -> EncodedMessage:
    """Returns a copy of a stored message, to be stored elsewhere.

    Args:
        message: As decoded, its body as stored.
        topic, queue_id: Where the copy goes.
        reconsume_times: How often it has failed.
        properties: What it is to be found by.
        raw: Its properties as they are stored.
        store_host: Packed address in message ids.
    """
    born_ip, _, born_port = message.born_host.rpartition(":")
    record = encode_stored(
        topic=topic.encode(),
        queue_id=queue_id,
        flag=message.flag,
        queue_offset=0,
        physical_offset=0,
        sys_flag=message.sys_flag,
        born_timestamp_ms=message.born_timestamp_ms,
        born_host=pack_host(born_ip.strip("[]"), int(born_port)),
        store_timestamp_ms=0,
        store_host=store_host,
        reconsume_times=reconsume_times,
        prepared_transaction_offset=message.prepared_transaction_offset,
        body=message.body,
        properties=raw,
    )
    tags = properties.get(Property.TAGS, "")
    return EncodedMessage(
        record,
        tag_hash(tags) if tags else 0,
        properties.get(Property.UNIQUE_KEY, "").encode(),
        properties.get(Property.KEYS, "").encode().split(),
    )
