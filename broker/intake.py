"""Turns what a client sends into what is stored. Pure but for the maker of unique keys.

Properties: the broker adds CLUSTER, MSG_REGION, TRACE_ON and, where the client gave none, UNIQ_KEY,
and removes POP_CK, which would be taken for a receipt of its own. The stored string ends in 0x02,
which clients may leave out.

Source: RocketMQ `SendMessageProcessor`, `MessageExtEncoder`. We differ: delayed messages in a batch
are refused, as this broker cannot keep their promise, rather than delivered at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from broker.delay_rules import is_delayed
from broker.messages_command import EncodedMessage
from dledger.codes import MESSAGE_BODY_BYTES_MAX, PROPERTIES_BYTES_MAX, MessageFlag
from dledger.errors import InvalidParameterError, MessageRejectedError, PermissionDeniedError
from dledger.message import (
    decode_properties,
    encode_properties,
    encode_stored,
    get_property,
    iter_batch,
    java_hash,
)

REGION = "DefaultRegion"
BATCH_COUNT_MAX = 16_384
# One request becomes one entry of the replicated log, which is limited as well.
STORED_BYTES_MAX = 5 * 1024 * 1024

_TRANSACTION_BITS = int(MessageFlag.TRANSACTION_ROLLBACK)
_PREPARED = int(MessageFlag.TRANSACTION_PREPARED)
_TAGS, _KEYS, _UNIQUE_KEY = b"TAGS", b"KEYS", b"UNIQ_KEY"
_TAG_HASHES_MAX = 4096


class SendFields(Protocol):
    """What both forms of the send header have in common."""

    sys_flag: int
    born_timestamp_ms: int
    flag: int
    properties: str
    reconsume_times: int
    batch: bool


class Intake(NamedTuple):
    """Messages ready to be appended.

    Attributes:
        messages: In the order of the request.
        unique_key: Of a single message; empty for a batch.
    """

    messages: list[EncodedMessage]
    unique_key: str


class MessageIntake:
    """Encodes messages as one broker stores them."""

    def __init__(
        self, *, cluster_name: str, store_host: bytes, new_unique_key: Callable[[], str]
    ) -> None:
        """Prepares encoding.

        Args:
            cluster_name: Added to every message.
            store_host: Packed address at which this replica answers for its message ids.
            new_unique_key: Makes ids for messages of clients that make none.
        """
        self._store_host = store_host
        self._new_unique_key = new_unique_key
        self._suffix = (
            f"CLUSTER\x01{cluster_name}\x02MSG_REGION\x01{REGION}\x02TRACE_ON\x01true\x02".encode()
        )
        # Few different tags are used over and over; hashing one takes longer than finding it.
        self._tag_hashes: dict[bytes, int] = {}

    def encode(
        self,
        header: SendFields,
        body: bytes,
        *,
        topic: str,
        queue_id: int,
        born_host: bytes,
        is_batch: bool,
    ) -> Intake:
        """Returns the messages of one request; offsets and store time are stamped later.

        Args:
            header: The request's header.
            body: The request's body: one message's, or the elements of a batch.
            topic: Where it goes; checked by the caller.
            queue_id: And to which queue.
            born_host: Packed address of the sender.
            is_batch: Whether the body is a batch.

        Raises:
            MessageRejectedError: Something is too large, torn or not supported. Nothing happened.
            PermissionDeniedError: A batch of transactional messages.
            InvalidParameterError: A number makes no sense.
        """
        if header.sys_flag & _TRANSACTION_BITS == _PREPARED:
            raise PermissionDeniedError("a transactional message cannot be in a batch")
        if header.reconsume_times < 0:
            raise InvalidParameterError("reconsumeTimes must not be negative")
        topic_raw = topic.encode()
        stored: list[EncodedMessage] = []
        total_bytes = 0
        unique = ""
        for flag, piece, raw in self._elements(header, body, is_batch=is_batch):
            if len(stored) >= BATCH_COUNT_MAX:
                raise MessageRejectedError(f"batch of more than {BATCH_COUNT_MAX} messages")
            if len(piece) > MESSAGE_BODY_BYTES_MAX:
                raise MessageRejectedError(
                    f"message body of {len(piece)} bytes exceeds {MESSAGE_BODY_BYTES_MAX}"
                )
            if is_batch and is_delayed(raw):
                raise MessageRejectedError("delayed messages in a batch are not supported")
            properties, unique_key = self._complete(raw)
            record = encode_stored(
                topic=topic_raw,
                queue_id=queue_id,
                flag=flag,
                queue_offset=0,
                physical_offset=0,
                sys_flag=header.sys_flag & ~_TRANSACTION_BITS,
                born_timestamp_ms=header.born_timestamp_ms,
                born_host=born_host,
                store_timestamp_ms=0,
                store_host=self._store_host,
                reconsume_times=header.reconsume_times,
                prepared_transaction_offset=0,
                body=piece,
                properties=properties,
            )
            total_bytes += len(record)
            stored.append(self._encoded(record, properties, unique_key))
            if not is_batch:
                unique = str(unique_key, "utf-8", "replace")
        if not stored:
            raise MessageRejectedError("a batch without messages")
        if total_bytes > STORED_BYTES_MAX:
            raise MessageRejectedError(
                f"{len(stored)} messages of {total_bytes} stored bytes exceed {STORED_BYTES_MAX}"
            )
        return Intake(stored, unique)

    def indexed(self, record: bytes, properties: bytes) -> EncodedMessage:
        """Returns a message that this broker made of a stored one, with what is indexed of it."""
        return self._encoded(record, properties, get_property(properties, _UNIQUE_KEY) or b"")

    def hidden(self, message: EncodedMessage) -> EncodedMessage:
        """Returns a message that no key leads to."""
        return EncodedMessage(message.stored)

    def _elements(
        self, header: SendFields, body: bytes, *, is_batch: bool
    ) -> list[tuple[int, bytes | memoryview, bytes]]:
        if is_batch:
            if len(body) > STORED_BYTES_MAX:
                raise MessageRejectedError(f"batch of {len(body)} bytes exceeds {STORED_BYTES_MAX}")
            # All are decoded before any is stored: a torn batch loses nothing.
            return [(e.flag, e.body, e.properties) for e in iter_batch(body)]
        try:
            raw = header.properties.encode()
        except UnicodeEncodeError as error:
            raise MessageRejectedError("message properties hold a lone surrogate") from error
        return [(header.flag, body, raw)]

    def _complete(self, raw: bytes) -> tuple[bytes, bytes]:
        """Returns the properties to store, and the unique key in them.

        One search of the whole string is several times cheaper than taking it apart, and most
        messages have none of the names looked for.
        """
        if raw and raw[-1] != 2:
            raw += b"\x02"
        if (
            b"CLUSTER\x01" in raw
            or b"MSG_REGION\x01" in raw
            or b"TRACE_ON\x01" in raw
            or b"POP_CK\x01" in raw
        ):
            raw = _without_broker_names(raw)
        unique_key = get_property(raw, _UNIQUE_KEY)
        if unique_key is None:
            unique_key = self._new_unique_key().encode()
            raw += b"UNIQ_KEY\x01" + unique_key + b"\x02"
        raw += self._suffix
        if len(raw) > PROPERTIES_BYTES_MAX:
            raise MessageRejectedError(
                f"message properties of {len(raw)} bytes, with those that the broker adds, "
                f"exceed {PROPERTIES_BYTES_MAX}"
            )
        return raw, unique_key

    def _encoded(self, record: bytes, properties: bytes, unique_key: bytes) -> EncodedMessage:
        tag_hash = 0
        words: Sequence[bytes] = ()
        if b"TAGS\x01" in properties:
            tags = get_property(properties, _TAGS)
            tag_hash = self._hash(tags) if tags else 0
        if b"KEYS\x01" in properties:
            keys = get_property(properties, _KEYS)
            words = keys.split() if keys else ()
        return EncodedMessage(record, tag_hash, unique_key, words)

    def _hash(self, tags: bytes) -> int:
        known = self._tag_hashes.get(tags)
        if known is None:
            if len(self._tag_hashes) >= _TAG_HASHES_MAX:
                self._tag_hashes.clear()
            known = self._tag_hashes[tags] = java_hash(str(tags, "utf-8", "replace"))
        return known


def _without_broker_names(raw: bytes) -> bytes:
    properties = decode_properties(raw)
    for name in ("CLUSTER", "MSG_REGION", "TRACE_ON", "POP_CK"):
        properties.pop(name, None)
    return encode_properties(properties)
