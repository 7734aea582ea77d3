"""Records of RocketMQ's message trace, as the bodies of messages in the trace topic. Pure.

A body is a row of records, each ended by 0x02, whose fields are joined by 0x01.

Source: RocketMQ `TraceDataEncoder`. Newer senders append fields; readers take what they know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

TRACE_TOPIC: Final = "RMQ_SYS_TRACE_TOPIC"
REGION: Final = "DefaultRegion"
# Kinds of messages, by their number on the wire.
NORMAL, HALF, COMMIT, DELAY, ORDER = range(5)
# What a consumer made of a message, by its number on the wire.
CONSUMED, TIMED_OUT, RAISED, RETURNED_NOTHING, FAILED = range(5)

_FIELD, _RECORD = "\x01", "\x02"
# What Java writes for tags and keys that a message has not. An empty last field would be fatal:
# its reader splits in a way that drops it and then looks for it.
_NOTHING = "null"
_NUMBER_LENGTH_MAX = 19


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A message was sent, or not.

    Attributes:
        time_ms: When the send began.
        took_ms: How long it took.
        store_host: Address of the broker.
    """

    time_ms: int
    group: str
    topic: str
    message_id: str
    tags: str = ""
    keys: str = ""
    store_host: str = ""
    size_bytes: int = 0
    took_ms: int = 0
    kind: int = NORMAL
    offset_message_id: str = ""
    success: bool = True
    region: str = REGION


class Delivering(msgspec.Struct, frozen=True, kw_only=True):
    """A message was handed to a consumer. `request_id` joins it to its `Delivered`."""

    time_ms: int
    group: str
    request_id: str
    message_id: str
    retries: int = 0
    keys: str = ""
    region: str = REGION


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer is done with a message. `time_ms` and `group` are 0 and empty from old senders."""

    request_id: str
    message_id: str
    took_ms: int = 0
    success: bool = True
    keys: str = ""
    outcome: int = CONSUMED
    time_ms: int = 0
    group: str = ""


Record = Published | Delivering | Delivered


def encode_trace(records: Iterable[Record]) -> bytes:
    """Returns the body of a trace message."""
    return "".join(_FIELD.join(_fields(record)) + _RECORD for record in records).encode()


def decode_trace(body: bytes) -> list[Record]:
    """Returns the records of a trace message; of other kinds or torn, they are left out."""
    records: list[Record] = []
    for text in body.decode("utf-8", "replace").split(_RECORD):
        record = _record(text.split(_FIELD))
        if record is not None:
            records.append(record)
    return records


def _fields(record: Record) -> Sequence[str]:
    if isinstance(record, Published):
        return [
            "Pub",
            str(record.time_ms),
            record.region,
            record.group,
            record.topic,
            record.message_id,
            _clean(record.tags),
            _clean(record.keys),
            record.store_host,
            str(record.size_bytes),
            str(record.took_ms),
            str(record.kind),
            record.offset_message_id,
            str(record.success).lower(),
        ]
    if isinstance(record, Delivering):
        return [
            "SubBefore",
            str(record.time_ms),
            record.region,
            record.group,
            record.request_id,
            record.message_id,
            str(record.retries),
            _clean(record.keys),
        ]
    return [
        "SubAfter",
        record.request_id,
        record.message_id,
        str(record.took_ms),
        str(record.success).lower(),
        _clean(record.keys),
        str(record.outcome),
        str(record.time_ms),
        record.group,
    ]


def _record(fields: list[str]) -> Record | None:
    kind, values = fields[0], fields[1:]
    if kind == "Pub" and len(values) >= 12:
        # Senders before 4.3 leave out the offset id.
        has_id = len(values) >= 13
        return Published(
            time_ms=_number(values[0]),
            region=values[1],
            group=values[2],
            topic=values[3],
            message_id=values[4],
            tags=_text(values[5]),
            keys=_text(values[6]),
            store_host=values[7],
            size_bytes=_number(values[8]),
            took_ms=_number(values[9]),
            kind=_number(values[10]),
            offset_message_id=values[11] if has_id else "",
            success=values[12 if has_id else 11] == "true",
        )
    if kind == "SubBefore" and len(values) >= 7:
        return Delivering(
            time_ms=_number(values[0]),
            region=values[1],
            group=values[2],
            request_id=values[3],
            message_id=values[4],
            retries=_number(values[5]),
            keys=_text(values[6]),
        )
    if kind == "SubAfter" and len(values) >= 5:
        rest = [*values[5:8], "", "", ""]
        return Delivered(
            request_id=values[0],
            message_id=values[1],
            took_ms=_number(values[2]),
            success=values[3] == "true",
            keys=_text(values[4]),
            outcome=_number(rest[0]),
            time_ms=_number(rest[1]),
            group=rest[2],
        )
    return None


def _clean(text: str) -> str:
    return text.replace(_FIELD, " ").replace(_RECORD, " ") or _NOTHING


def _text(field: str) -> str:
    return "" if field == _NOTHING else field


def _number(text: str) -> int:
    plain = text.isascii() and text.isdigit() and len(text) < _NUMBER_LENGTH_MAX
    return int(text) if plain else 0
