"""The properties string of a message: `name 0x01 value 0x02`, repeated.

Neither names nor values may hold the two separators, and no reader keeps an empty name or value,
so we refuse to write what would come back different.
"""

from __future__ import annotations

from collections.abc import Mapping

from dledger.codes import PROPERTIES_BYTES_MAX
from dledger.errors import MessageRejectedError

# Where a unique key lies that comes first; keys are of 32 digits.
KEY_MARK = b"UNIQ_KEY\x01"
KEY_BYTES = 32
_KEY_AT = len(KEY_MARK)
_KEY_STOP = _KEY_AT + KEY_BYTES
_REST_AT = _KEY_STOP + 1
_SIMILAR_MAX = 64


class Property:
    """Names that RocketMQ itself gives a meaning to."""

    KEYS = "KEYS"
    TAGS = "TAGS"
    WAIT = "WAIT"
    DELAY = "DELAY"
    UNIQUE_KEY = "UNIQ_KEY"
    PRODUCER_GROUP = "PGROUP"
    TRANSACTION_PREPARED = "TRAN_MSG"
    TRANSACTION_ID = "__transactionId__"
    CHECK_IMMUNITY_SECONDS = "CHECK_IMMUNITY_TIME_IN_SECONDS"
    TRANSACTION_CHECK_TIMES = "TRANSACTION_CHECK_TIMES"
    PREPARED_QUEUE_OFFSET = "TRAN_PREPARED_QUEUE_OFFSET"
    REAL_TOPIC = "REAL_TOPIC"
    REAL_QUEUE_ID = "REAL_QID"
    RETRY_TOPIC = "RETRY_TOPIC"
    ORIGIN_MESSAGE_ID = "ORIGIN_MESSAGE_ID"
    RECONSUME_TIME = "RECONSUME_TIME"
    RECONSUME_TIMES_MAX = "MAX_RECONSUME_TIMES"
    DEAD_LETTER_ORIGIN_TOPIC = "DLQ_ORIGIN_TOPIC"
    DEAD_LETTER_ORIGIN_MESSAGE_ID = "DLQ_ORIGIN_MESSAGE_ID"
    OFFSET_MIN = "MIN_OFFSET"
    OFFSET_MAX = "MAX_OFFSET"
    CONSUME_START_TIME = "CONSUME_START_TIME"
    REGION = "MSG_REGION"
    TRACE_ON = "TRACE_ON"
    CLUSTER = "CLUSTER"
    INSTANCE_ID = "INSTANCE_ID"
    SHARDING_KEY = "__SHARDINGKEY"
    POP_CHECKPOINT = "POP_CK"
    TIMER_DELAY_SECONDS = "TIMER_DELAY_SEC"
    TIMER_DELAY_MS = "TIMER_DELAY_MS"
    TIMER_DELIVER_MS = "TIMER_DELIVER_MS"
    TIMER_OUT_MS = "TIMER_OUT_MS"
    CORRELATION_ID = "CORRELATION_ID"
    REPLY_TO_CLIENT = "REPLY_TO_CLIENT"
    TTL = "TTL"
    CRC32 = "__CRC32#"


# Names that a user's own properties may not take, because brokers and clients act on them.
RESERVED_PROPERTIES = frozenset(
    value for name, value in vars(Property).items() if not name.startswith("_")
) | {
    "EXTEND_UNIQ_INFO",
    "BUYER_ID",
    "TRANSFER_FLAG",
    "CORRECTION_FLAG",
    "MQ2_FLAG",
    "REDIRECT",
    "INNER_NUM",
    "INNER_BASE",
    "INNER_MULTI_DISPATCH",
    "INNER_MULTI_QUEUE_OFFSET",
    "DUP_INFO",
    "ARRIVE_TIME",
    "PUSH_REPLY_TIME",
    "MSG_TYPE",
    "POP_CK_OFFSET",
    "1ST_POP_TIME",
    "TIMER_ENQUEUE_MS",
    "TIMER_DEQUEUE_MS",
    "TIMER_ROLL_TIMES",
    "TIMER_DEL_UNIQKEY",
    "TIMER_DELAY_LEVEL",
    "__BORNHOST",
    "BORN_TIMESTAMP",
    "TRACE_CONTEXT",
    "PROPERTY_FORWARD_QUEUE_ID",
}


def encode_properties(properties: Mapping[str, str]) -> bytes:
    """Returns the properties string, ending in 0x02; empty for no properties.

    Raises:
        MessageRejectedError: A name or value is empty, not encodable or holds a separator, or the
            whole is longer than 32,767 bytes.
    """
    if not properties:
        return b""
    try:
        text = "".join([f"{name}\x01{value}\x02" for name, value in properties.items()])
        raw = text.encode()
    except UnicodeEncodeError as exc:
        raise MessageRejectedError("message properties hold a lone surrogate") from exc
    count = len(properties)
    if raw.count(b"\x01") != count or raw.count(b"\x02") != count:
        raise MessageRejectedError(
            "message property names and values may not contain the bytes 0x01 and 0x02"
        )
    if raw.startswith(b"\x01") or b"\x02\x01" in raw or b"\x01\x02" in raw:
        raise MessageRejectedError("message property names and values may not be empty")
    if len(raw) > PROPERTIES_BYTES_MAX:
        raise MessageRejectedError(
            f"message properties of {len(raw)} bytes exceed the limit of {PROPERTIES_BYTES_MAX}"
        )
    return raw


def decode_properties(raw: bytes) -> dict[str, str]:
    """Returns the properties by name; the last of a repeated name wins.

    Pieces without a separator or with an empty name or value are dropped, as every other reader
    does; bytes that are not UTF-8 become U+FFFD.
    """
    properties: dict[str, str] = {}
    for piece in raw.decode("utf-8", "replace").split("\x02"):
        name, _, value = piece.partition("\x01")
        if name and value:
            properties[name] = value
    return properties


class SimilarProperties:
    """Decodes properties strings of which most differ in nothing but the unique key in front.

    Such are those of our producers. What follows the key is decoded once, and copied for the next
    that ends the same; others are decoded as ever.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        # What follows a key -> properties with an empty key, or none: it holds a key as well.
        self._known: dict[bytes, dict[str, str]] = {}

    def decode(self, raw: bytes) -> dict[str, str]:
        """Returns the same as `decode_properties`."""
        key = raw[_KEY_AT:_KEY_STOP]
        # Of letters and digits only, so it holds neither separator.
        if raw.startswith(KEY_MARK) and raw[_KEY_STOP:_REST_AT] == b"\x02" and key.isalnum():
            known = self.beside_key(raw[_REST_AT:])
            if known:
                properties = known.copy()
                properties[Property.UNIQUE_KEY] = key.decode()
                return properties
        return decode_properties(raw)

    def beside_key(self, rest: bytes) -> dict[str, str]:
        """Returns the properties with an empty unique key in front; not to be changed.

        Args:
            rest: What follows the key and its separator.

        Returns:
            Nothing if there is another unique key among the rest.
        """
        known = self._known.get(rest)
        return self._learn(rest) if known is None else known

    def _learn(self, rest: bytes) -> dict[str, str]:
        others = decode_properties(rest)
        known = {Property.UNIQUE_KEY: "", **others} if Property.UNIQUE_KEY not in others else {}
        if len(self._known) < _SIMILAR_MAX:
            self._known[rest] = known
        return known


def get_property(raw: bytes, name: bytes) -> bytes | None:
    """Returns one value out of a properties string without decoding the others.

    Returns:
        The value, or `None` if the name is absent or its value empty.
    """
    key = name + b"\x01"
    if raw.startswith(key):
        start = len(key)
    else:
        at = raw.find(b"\x02" + key)
        if at < 0:
            return None
        start = at + 1 + len(key)
    end = raw.find(b"\x02", start)
    return (raw[start:] if end < 0 else raw[start:end]) or None
