"""From a half message to the message it stands for, and to what its producer is asked. Pure."""

from __future__ import annotations

from broker.delay_rules import is_delayed
from dledger.codes import MessageFlag
from dledger.errors import MessageRejectedError, RemoteProtocolError
from dledger.message import (
    Property,
    ReceivedMessage,
    decode_properties,
    decode_stored,
    encode_properties,
    encode_stored,
    pack_host,
)

TRANSACTION_BITS = int(MessageFlag.TRANSACTION_ROLLBACK)
_PREPARED = int(MessageFlag.TRANSACTION_PREPARED)
_COMMIT = int(MessageFlag.TRANSACTION_COMMIT)
_NUMBER_MAX = 10**9


def is_half(sys_flag: int, properties: str) -> bool:
    """Tells whether a send is one of a half message."""
    if sys_flag & TRANSACTION_BITS == _PREPARED:
        return True
    name = Property.TRANSACTION_PREPARED
    if f"{name}\x01" not in properties:
        return False
    return decode_properties(properties.encode("utf-8", "replace")).get(name, "").lower() == "true"


def half_properties(
    properties: str, *, topic: str, queue_id: int, producer_group: str
) -> tuple[str, str, float | None]:
    """Returns the properties of a half message as sent by a client, completed.

    Returns:
        The properties; the producer group that may end the transaction; the seconds before the
        producer may be asked, None if the message does not say.

    Raises:
        MessageRejectedError: The immunity is not a number, or it is delayed as well.
    """
    raw = properties.encode("utf-8", "replace")
    if is_delayed(raw):
        # RocketMQ's Java client takes the level out unasked; its broker delays the half message
        # itself, of which nothing ever comes to a consumer (apache/rocketmq #1540, #9923).
        raise MessageRejectedError("a transactional message cannot be delayed")
    values = decode_properties(raw)
    values[Property.REAL_TOPIC] = topic
    values[Property.REAL_QUEUE_ID] = str(queue_id)
    values[Property.TRANSACTION_PREPARED] = "true"
    group = values.setdefault(Property.PRODUCER_GROUP, producer_group)
    immunity = values.get(Property.CHECK_IMMUNITY_SECONDS)
    try:
        seconds = None if immunity is None else float(immunity)
    except ValueError:
        seconds = -2.0
    if seconds is not None and not (seconds == -1 or 0 <= seconds <= _NUMBER_MAX):
        raise MessageRejectedError(f"{Property.CHECK_IMMUNITY_SECONDS} is {immunity!r}")
    # -1 is how the original writes "as the broker is set up".
    return encode_properties(values).decode(), group, None if seconds == -1 else seconds


def real_place(half: ReceivedMessage) -> tuple[str, int]:
    """Returns topic and queue id that a half message is meant for.

    Raises:
        RemoteProtocolError: It does not say; it is not one that we stored.
    """
    try:
        return half.properties[Property.REAL_TOPIC], int(half.properties[Property.REAL_QUEUE_ID])
    except (KeyError, ValueError) as exc:
        raise RemoteProtocolError("a half message without its real topic and queue") from exc


def decode_half(stored: memoryview) -> ReceivedMessage:
    """Returns a half message; its body stays as stored."""
    return decode_stored(stored, decompress=False)


def committed(half: ReceivedMessage, *, store_host: bytes) -> tuple[bytes, bytes]:
    """Returns the message to store in place of a half message, and its properties."""
    return _rewritten(half, _COMMIT, half.physical_offset, store_host, _without_half_names(half))


def given_up(half: ReceivedMessage, topic: str, *, store_host: bytes) -> tuple[bytes, bytes]:
    """Returns the message to store of a half message whose producer never answered."""
    values = dict(half.properties)
    del values[Property.TRANSACTION_PREPARED]
    return _rewritten(half, 0, half.physical_offset, store_host, values, topic=topic, queue_id=0)


def question(half: ReceivedMessage, checks: int) -> bytes:
    """Returns the body of a CHECK_TRANSACTION_STATE: the half message under its real name.

    Args:
        half: As stored.
        checks: How often its producer was asked before.
    """
    values = {**half.properties, Property.TRANSACTION_CHECK_TIMES: str(checks + 1)}
    host, _, port = half.store_host.rpartition(":")
    record, _ = _rewritten(half, 0, 0, pack_host(host.strip("[]"), int(port)), values)
    return record


def _without_half_names(half: ReceivedMessage) -> dict[str, str]:
    dropped = (
        Property.TRANSACTION_PREPARED,
        Property.REAL_TOPIC,
        Property.REAL_QUEUE_ID,
    )
    return {name: value for name, value in half.properties.items() if name not in dropped}


def _rewritten(
    half: ReceivedMessage,
    transaction_bits: int,
    prepared_offset: int,
    store_host: bytes,
    properties: dict[str, str],
    *,
    topic: str | None = None,
    queue_id: int | None = None,
) -> tuple[bytes, bytes]:
    if topic is None or queue_id is None:
        topic, queue_id = real_place(half)
    host, _, port = half.born_host.rpartition(":")
    raw = encode_properties(properties)
    record = encode_stored(
        topic=topic.encode(),
        queue_id=queue_id,
        flag=half.flag,
        queue_offset=half.queue_offset,
        physical_offset=half.physical_offset,
        sys_flag=(half.sys_flag & ~TRANSACTION_BITS) | transaction_bits,
        born_timestamp_ms=half.born_timestamp_ms,
        born_host=pack_host(host.strip("[]"), int(port)),
        store_timestamp_ms=half.store_timestamp_ms,
        store_host=store_host,
        reconsume_times=half.reconsume_times,
        prepared_transaction_offset=prepared_offset,
        body=half.body,
        properties=raw,
    )
    return record, raw
