"""From a user's message to what travels: checks, unique key, properties, compression."""

from __future__ import annotations

import asyncio
import datetime
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from dledger.client.batching import (
    Pending,
    check_properties,
    encode_elements,
    encode_similar,
    give_keys,
    wants_to_be_alone,
)
from dledger.client.config import ProducerConfig
from dledger.codes import PROPERTIES_BYTES_MAX
from dledger.errors import InvalidParameterError, MessageRejectedError
from dledger.message import (
    RESERVED_PROPERTIES,
    Message,
    Property,
    UniqueKeyGenerator,
    compress_body,
    encode_properties,
    message_properties,
)

# Reserved names that are the user's to set: brokers act on them on the sender's behalf.
_SETTABLE = frozenset(
    {
        Property.WAIT,
        Property.DELAY,
        Property.UNIQUE_KEY,
        Property.SHARDING_KEY,
        Property.TIMER_DELAY_SECONDS,
        Property.TIMER_DELAY_MS,
        Property.TIMER_DELIVER_MS,
        Property.CORRELATION_ID,
        Property.REPLY_TO_CLIENT,
        Property.TTL,
        Property.INSTANCE_ID,
    }
)
_FORBIDDEN = RESERVED_PROPERTIES - _SETTABLE
_FLAG_MAX = 2**31
_SECONDS_MAX = 2**40
_DELAYS = frozenset(
    {
        Property.DELAY,
        Property.TIMER_DELAY_SECONDS,
        Property.TIMER_DELAY_MS,
        Property.TIMER_DELIVER_MS,
    }
)


def delayed(
    message: Message,
    delay: float | datetime.timedelta | None,
    deliver_at: float | datetime.datetime | None,
) -> Message:
    """Returns the message with the property that delays it; the same one without a delay.

    Args:
        message: As the user made it; not changed.
        delay: Seconds, or a timedelta, from when the broker gets it.
        deliver_at: Seconds since the epoch, or a time that knows its zone.

    Raises:
        InvalidParameterError: Both are given, a delay is negative, or a time has no zone.
        MessageRejectedError: The message says itself when it is to be delivered.
    """
    if delay is None and deliver_at is None:
        return message
    if delay is not None and deliver_at is not None:
        raise InvalidParameterError("give a delay or a time to deliver at, not both")
    if not _DELAYS.isdisjoint(message.properties):
        raise MessageRejectedError("the message has a property that delays it already")
    if delay is not None:
        seconds = delay.total_seconds() if isinstance(delay, datetime.timedelta) else delay
        name = Property.TIMER_DELAY_MS
        if not 0 <= seconds < _SECONDS_MAX:
            raise InvalidParameterError(f"a delay of {seconds} s is out of range")
    else:
        name = Property.TIMER_DELIVER_MS
        if isinstance(deliver_at, datetime.datetime):
            if deliver_at.tzinfo is None:
                raise InvalidParameterError("a time to deliver at needs a time zone")
            deliver_at = deliver_at.timestamp()
        seconds = deliver_at or 0.0
        if not 0 <= seconds < _SECONDS_MAX:
            raise InvalidParameterError(f"{deliver_at} is no time to deliver at")
    # Rounded up: never early.
    value = str(math.ceil(round(seconds * 1000, 3)))
    return msgspec.structs.replace(message, properties={**message.properties, name: value})


def refuse_delay(message: Message) -> None:
    """Refuses a delay where the cluster would not keep it: on a half message.

    Raises:
        MessageRejectedError: The message has a property that delays it.
    """
    if not _DELAYS.isdisjoint(message.properties):
        raise MessageRejectedError("a transactional message cannot be delayed")


class MessageEncoder:
    """Encodes messages for one producer. Each message gets its unique key here, once."""

    def __init__(self, config: ProducerConfig, unique_keys: UniqueKeyGenerator) -> None:
        self._config = config
        self._unique_keys = unique_keys
        self._tags: dict[str, bytes] = {}  # tag -> its checked property; bounded
        # A body up to this size is neither refused nor compressed, and never too much for a batch.
        self._plain_bytes_max = min(
            config.message_bytes_max,
            (config.compress_min_bytes or config.message_bytes_max + 1) - 1,
            config.batch_bytes_max - 2 * PROPERTIES_BYTES_MAX,
        )

    def encode(self, message: Message, future: asyncio.Future[Any]) -> Pending:
        """Returns the message ready to travel, but for its key: see `give_keys`.

        Raises:
            MessageRejectedError: Body too large, or a property that is not allowed. Nothing was
                sent.
        """
        body = message.body
        if (  # nearly every message: what `_encode_any` would do
            type(body) is bytes
            and len(body) <= self._plain_bytes_max
            and not message.properties
            and not message.keys
            and not message.flag
        ):
            tags = self._tags.get(message.tags)
            if tags is not None:
                return Pending(future, "", body, tags)
        return self._encode_any(message, future)

    def give_keys(self, items: Sequence[Pending]) -> None:
        """Gives messages that are about to leave their keys, unless they have them."""
        give_keys(items, self._unique_keys.take)

    def _encode_any(self, message: Message, future: asyncio.Future[Any]) -> Pending:
        """Returns the message as `encode` does.

        Raises:
            MessageRejectedError: Body too large, or a property that is not allowed. Nothing was
                sent.
        """
        body = message.body
        if type(body) is not bytes:
            body = self._as_bytes(body)
        if len(body) > self._config.message_bytes_max:
            raise MessageRejectedError(
                f"body of {len(body)} bytes exceeds {self._config.message_bytes_max}"
            )
        if not -_FLAG_MAX <= message.flag < _FLAG_MAX:
            raise MessageRejectedError(f"message flag {message.flag} does not fit 32 bits")
        key, properties = self._properties(message)
        pending = Pending(future, key, body, properties, message.flag)
        if message.properties and wants_to_be_alone(message.properties):
            pending.alone = True
        compress_min = self._config.compress_min_bytes
        if compress_min and len(body) >= compress_min:
            compressed, flags = compress_body(body)
            if len(compressed) < len(body):
                pending.body, pending.sys_flag, pending.alone = compressed, flags, True
        if pending.size_bytes > self._config.batch_bytes_max:
            pending.alone = True
        return pending

    def encode_batch(self, messages: Sequence[Message], future: asyncio.Future[Any]) -> Pending:
        """Returns messages of one topic as one request, stored together or not at all.

        Raises:
            MessageRejectedError: No messages, several topics, a message that cannot share a batch,
                or more bytes than a batch may have. Nothing was sent.
        """
        if not messages:
            raise MessageRejectedError("a batch needs at least one message")
        similar = self._encode_similar(messages)
        if similar is not None:
            body, unique_keys = similar
            return Pending(future, "", body, b"", keys=tuple(unique_keys))
        elements: list[Pending] = []
        size = 0
        for message in messages:
            if message.topic != messages[0].topic:
                raise MessageRejectedError("all messages of a batch must have the same topic")
            if wants_to_be_alone(message.properties):
                raise MessageRejectedError("delayed and transactional messages cannot be batched")
            key, properties = self._properties(message)
            element = Pending(future, key, self._as_bytes(message.body), properties, message.flag)
            size += element.size_bytes
            if size > self._config.message_bytes_max:
                raise MessageRejectedError(
                    f"a batch may have {self._config.message_bytes_max} bytes; send it in parts"
                )
            elements.append(element)
        self.give_keys(elements)
        keys = tuple(element.key for element in elements)
        return Pending(future, "", encode_elements(elements), b"", keys=keys)

    def _encode_similar(self, messages: Sequence[Message]) -> tuple[bytes, list[str]] | None:
        """Returns the elements and keys of messages that differ in their bodies only.

        None if they are not of that kind or too large: the general way knows why.
        """
        topic, tags = messages[0].topic, messages[0].tags
        properties = self._tags.get(tags)
        if properties is None:
            return None
        for message in messages:
            if (
                message.topic != topic
                or message.tags != tags
                or message.properties
                or message.keys
                or message.flag
                or type(message.body) is not bytes
            ):
                return None
        bodies = [message.body for message in messages]
        # No more than this: a key's property and the lengths take fewer bytes.
        if (
            sum(map(len, bodies)) + len(bodies) * (128 + len(properties))
            > self._config.message_bytes_max
        ):
            return None
        unique_keys = self._unique_keys.take(len(bodies))
        return encode_similar(bodies, properties, unique_keys), unique_keys

    def _properties(self, message: Message) -> tuple[str, bytes]:
        """Returns key and properties; no key, and properties without one, if it comes later."""
        properties = message.properties
        if not properties and not message.keys:
            tags = self._tags.get(message.tags)
            return "", self._tags_property(message.tags) if tags is None else tags
        if properties and not _FORBIDDEN.isdisjoint(properties):
            names = sorted(_FORBIDDEN.intersection(properties))
            raise MessageRejectedError(f"property names {names} are reserved")
        merged = message_properties(message)
        key = merged.get(Property.UNIQUE_KEY) or self._unique_keys()
        merged[Property.UNIQUE_KEY] = key
        return key, encode_properties(merged)

    def _tags_property(self, tags: str) -> bytes:
        """Returns the property of a tag, which is checked here, once, with a key beside it."""
        raw = encode_properties({Property.TAGS: tags}) if tags else b""
        # All keys are of one length. Without this a tag that only just fits by itself would make
        # the whole batch around it fail.
        check_properties(raw + encode_properties({Property.UNIQUE_KEY: "0" * 32}))
        if len(self._tags) < 1024:
            self._tags[tags] = raw
        return raw

    @staticmethod
    def _as_bytes(body: object) -> bytes:
        if isinstance(body, (bytes, bytearray, memoryview)):
            return bytes(body)
        raise MessageRejectedError(f"a message body is bytes, not {type(body).__name__}")
