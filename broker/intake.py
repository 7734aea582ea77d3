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
from broker.message_run import UNIQUE_KEY_BYTES_MAX, MessageRun
from broker.messages_command import EncodedMessage, Messages
from dledger.codes import MESSAGE_BODY_BYTES_MAX, PROPERTIES_BYTES_MAX, MessageFlag
from dledger.errors import InvalidParameterError, MessageRejectedError, PermissionDeniedError
from dledger.message import (
    StoredRun,
    StoredTemplate,
    decode_properties,
    encode_properties,
    get_property,
    iter_batch,
    java_hash,
    similar_batch,
)

REGION = "DefaultRegion"
BATCH_COUNT_MAX = 16_384
# One request becomes one entry of the replicated log, which is limited as well.
STORED_BYTES_MAX = 5 * 1024 * 1024

_TRANSACTION_BITS = int(MessageFlag.TRANSACTION_ROLLBACK)
_PREPARED = int(MessageFlag.TRANSACTION_PREPARED)
# A message with one of these in its properties may have to wait, or to stay hidden.
_NOT_PLAIN = (b"DELAY", b"TIMER_DELIVER", b"TRAN_MSG")
_TAGS, _KEYS, _UNIQUE_KEY = b"TAGS", b"KEYS", b"UNIQ_KEY"
_TAG_HASHES_MAX = 4096
_PLAIN_MAX = 4096
_PLAIN_BYTES_MAX = 256
_TEMPLATES_MAX = 4096
_UNIQUE_KEY_MARK, _KEYS_MARK = b"UNIQ_KEY\x01", b"KEYS\x01"


class SendFields(Protocol):
    """What both forms of the send header have in common."""

    sys_flag: int
    born_timestamp_ms: int
    flag: int
    properties: str
    reconsume_times: int
    batch: bool


class PlacedSend(SendFields, Protocol):
    """The same of a send that says to which queue it goes."""

    queue_id: int


class Intake(NamedTuple):
    """Messages ready to be appended.

    Attributes:
        messages: In the order of the request.
        unique_key: Of a single message; empty for a batch.
    """

    messages: Messages
    unique_key: str

    @property
    def single(self) -> EncodedMessage:
        """The message of a request that is no batch."""
        (message,) = () if isinstance(self.messages, MessageRun) else self.messages
        return message


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
        # What stands beside UNIQ_KEY in the properties of batched messages, if nothing in it needs
        # the broker's attention -> hash of its tag.  Bounded.
        self._plain: dict[bytes, int] = {}
        self._plain_singles: dict[bytes, int] = {}  # the same of messages that came alone
        # Bounded; mostly one for each topic.
        self._templates: dict[tuple[str, int, int, int], StoredTemplate] = {}

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
        sys_flag = header.sys_flag & ~_TRANSACTION_BITS
        template = self.template(topic, sys_flag, header.reconsume_times, len(born_host))
        born = template.born(header.born_timestamp_ms, born_host)
        if is_batch:
            born_ms = header.born_timestamp_ms
            run = self._encode_run(template, born_ms, born_host, queue_id, body)
            return Intake(run or self._encode_batch(template, born, queue_id, body), "")
        try:
            raw = header.properties.encode()
        except UnicodeEncodeError as error:
            raise MessageRejectedError("message properties hold a lone surrogate") from error
        message = self._encode_one(template, born, queue_id, header.flag, body, raw)
        _check_stored((message,))
        return Intake([message], str(message.unique_key, "utf-8", "replace"))

    def plain(
        self, template: StoredTemplate, born_host: bytes, header: PlacedSend, body: bytes
    ) -> EncodedMessage | None:
        """Returns a single message as `encode` does, None if it is not one that is quickly judged.

        Such a message has a unique key of letters and digits, few other properties, none that the
        broker looks at but TAGS and KEYS, and a body that is certainly not too large.
        """
        try:
            raw = header.properties.encode()
        except UnicodeEncodeError:
            return None
        at = raw.find(_UNIQUE_KEY_MARK)
        if at < 0 or len(raw) > _PLAIN_BYTES_MAX or (at and raw[at - 1] != 2):
            return None
        stop = raw.find(b"\x02", at)
        key = raw[at + len(_UNIQUE_KEY_MARK) : stop]
        if not key.isalnum():
            return None
        others, words = _without_words(raw[:at] + raw[stop + 1 :])
        tag_hash = self._plain_singles.get(others)
        if tag_hash is None and any(map(raw.__contains__, _NOT_PLAIN)):
            return None
        queue_id, flag = header.queue_id, header.flag
        try:
            born = template.born(header.born_timestamp_ms, born_host)
            if tag_hash is not None:
                stored = template.encode(born, queue_id, flag, body, raw + self._suffix)
                return EncodedMessage(stored, tag_hash, key, words)
            message = self._encode_one(template, born, queue_id, flag, body, raw)
        except MessageRejectedError:
            return None
        if message.unique_key != key or not message.stored.endswith(raw + self._suffix):
            return None
        if list(message.keys) == list(words):
            if len(self._plain_singles) >= _PLAIN_MAX:
                self._plain_singles.clear()
            self._plain_singles[others] = message.tag_hash
        return message

    def _encode_run(
        self,
        template: StoredTemplate,
        born_timestamp_ms: int,
        born_host: bytes,
        queue_id: int,
        body: bytes,
    ) -> MessageRun | None:
        """Returns a batch whose messages are alike and need no attention, None if it is another.

        Nothing is refused here: what is too large, or not known yet, is not for the quick way.
        """
        batch = similar_batch(body) if len(body) <= STORED_BYTES_MAX else None
        if batch is None or not 0 < len(batch.keys[0]) <= UNIQUE_KEY_BYTES_MAX:
            return None
        tag_hash = self._plain.get(batch.others)
        if (
            tag_hash is None
            or len(batch.keys) > BATCH_COUNT_MAX
            or max(map(len, batch.bodies)) > MESSAGE_BODY_BYTES_MAX
            or len(batch.others) + len(_UNIQUE_KEY_MARK) + len(batch.keys[0]) > _PLAIN_BYTES_MAX
        ):
            return None
        stored = StoredRun(
            template, born_timestamp_ms, born_host, queue_id, batch, suffix=self._suffix
        )
        if stored.size_bytes > STORED_BYTES_MAX:
            return None
        return MessageRun(stored, tag_hash, batch.keys)

    def _encode_batch(
        self, template: StoredTemplate, born: bytes, queue_id: int, body: bytes
    ) -> list[EncodedMessage]:
        """Returns the messages of any batch; all are decoded before any is stored.

        Most messages of a producer differ in nothing but body and unique key; for those, what
        else is in their properties is looked at once. Several searches in the properties of each
        message would cost more than all the rest.
        """
        if len(body) > STORED_BYTES_MAX:
            raise MessageRejectedError(f"batch of {len(body)} bytes exceeds {STORED_BYTES_MAX}")
        stored: list[EncodedMessage] = []
        add, encode, plain, suffix = stored.append, template.encode, self._plain, self._suffix
        for flag, piece, raw in iter_batch(body):
            if len(stored) == BATCH_COUNT_MAX:
                raise MessageRejectedError(f"batch of more than {BATCH_COUNT_MAX} messages")
            at = raw.find(_UNIQUE_KEY_MARK)
            if at >= 0 and (at == 0 or raw[at - 1] == 2) and len(raw) <= _PLAIN_BYTES_MAX:
                stop = raw.find(b"\x02", at)
                key = raw[at + len(_UNIQUE_KEY_MARK) : stop]
                others = raw[:at] + raw[stop + 1 :]
                tag_hash = plain.get(others)
                if tag_hash is not None and key.isalnum():
                    _check_body(piece)
                    record = encode(born, queue_id, flag, piece, raw + suffix)
                    add(EncodedMessage(record, tag_hash, key))
                    continue
            else:
                key = others = b""
            if is_delayed(raw):
                raise MessageRejectedError("delayed messages in a batch are not supported")
            message = self._encode_one(template, born, queue_id, flag, piece, raw)
            add(message)
            # Stored as it came, and nothing indexed but the tag and the key: so is the next one.
            if key.isalnum() and message.stored.endswith(raw + suffix) and not message.keys:
                if len(plain) >= _PLAIN_MAX:
                    plain.clear()
                plain[others] = message.tag_hash
        if not stored:
            raise MessageRejectedError("a batch without messages")
        _check_stored(stored)
        return stored

    def _encode_one(
        self,
        template: StoredTemplate,
        born: bytes,
        queue_id: int,
        flag: int,
        body: bytes | memoryview,
        raw: bytes,
    ) -> EncodedMessage:
        _check_body(body)
        properties, unique_key = self._complete(raw)
        record = template.encode(born, queue_id, flag, body, properties)
        return self._encoded(record, properties, unique_key)

    def template(
        self, topic: str, sys_flag: int, reconsume_times: int = 0, born_host_bytes: int = 8
    ) -> StoredTemplate:
        """Returns what messages of a topic share, whose senders have such addresses.

        Raises:
            MessageRejectedError: The topic is too long, or a number does not fit its field.
        """
        place = (topic, sys_flag, reconsume_times, born_host_bytes)
        known = self._templates.get(place)
        if known is not None:
            return known
        template = StoredTemplate(
            topic=topic.encode(),
            sys_flag=sys_flag,
            born_host_bytes=born_host_bytes,
            store_host=self._store_host,
            reconsume_times=reconsume_times,
        )
        if len(self._templates) >= _TEMPLATES_MAX:
            self._templates.clear()
        self._templates[place] = template
        return template

    def indexed(self, record: bytes, properties: bytes) -> EncodedMessage:
        """Returns a message that this broker made of a stored one, with what is indexed of it."""
        return self._encoded(record, properties, get_property(properties, _UNIQUE_KEY) or b"")

    def hidden(self, message: EncodedMessage) -> EncodedMessage:
        """Returns a message that no key leads to."""
        return EncodedMessage(message.stored)

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


def _without_words(properties: bytes) -> tuple[bytes, Sequence[bytes]]:
    """Cuts the value of KEYS, in which most messages differ, out of well-formed properties.

    Returns:
        The rest, and the words; unchanged and none where the value is not plainly to be seen.
    """
    at = properties.find(_KEYS_MARK)
    if at < 0 or (at and properties[at - 1] != 2):
        return properties, ()
    start = at + len(_KEYS_MARK)
    stop = properties.find(b"\x02", start)
    value = properties[start:stop]
    if stop < 0 or b"\x01" in value:
        return properties, ()
    return properties[:start] + properties[stop:], value.split()


def _check_body(body: bytes | memoryview) -> None:
    if len(body) > MESSAGE_BODY_BYTES_MAX:
        raise MessageRejectedError(
            f"message body of {len(body)} bytes exceeds {MESSAGE_BODY_BYTES_MAX}"
        )


def _check_stored(messages: Sequence[EncodedMessage]) -> None:
    total_bytes = sum([len(message.stored) for message in messages])
    if total_bytes > STORED_BYTES_MAX:
        raise MessageRejectedError(
            f"{len(messages)} messages of {total_bytes} stored bytes exceed {STORED_BYTES_MAX}"
        )


def _without_broker_names(raw: bytes) -> bytes:
    properties = decode_properties(raw)
    for name in ("CLUSTER", "MSG_REGION", "TRACE_ON", "POP_CK"):
        properties.pop(name, None)
    return encode_properties(properties)
