"""Receipt handles of popped messages, and the fields of a pop's answer from which they are made.

A handle says which message was given out, when and for how long. Eight words joined by spaces:

    start offset, pop time, invisible time, revive queue, retry mark, broker name, queue id, offset

The first two name what was given out together (see `broker.pop_state`). The revive queue is 999 if
the message was popped in order, else 0. The retry mark says of which topic the queue is: 0 the
topic that was asked for, 1 or 2 one of its group's retry topics. The broker does not send handles:
it sends the start and the offsets of each queue, and the client puts them together.

Source: RocketMQ `ExtraInfoUtil`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dledger.codes import RETRY_PREFIX
from dledger.errors import InvalidParameterError

ORDER_REVIVE_QUEUE = 999
NORMAL_MARK, RETRY_MARK, RETRY_MARK_V2 = "0", "1", "2"
_NUMBER = re.compile(r"[0-9]{1,18}")


class ReceiptHandle(NamedTuple):
    """Names one delivery of one message. Times in ms; `offset` is the message's queue offset."""

    start: int
    pop_ms: int
    invisible_ms: int
    revive_queue: int
    retry_mark: str
    broker_name: str
    queue_id: int
    offset: int

    def encode(self) -> str:
        """Returns the handle as clients keep it, in the property POP_CK."""
        return " ".join(str(word) for word in self)


def decode_receipt(text: str, offset: int | None = None) -> ReceiptHandle:
    """Returns a handle as a client sends it.

    Args:
        text: Eight words, or seven without the offset.
        offset: Counts if the text holds none.

    Raises:
        InvalidParameterError: It is none.
    """
    words = text.split(" ")
    if len(words) == 7 and offset is not None:
        words.append(str(offset))
    numbers = [words[n] for n in (0, 1, 2, 3, 6, 7)] if len(words) >= 8 else []
    if not numbers or not all(_NUMBER.fullmatch(word) for word in numbers):
        raise InvalidParameterError(f"receipt handle {text[:128]!r} is invalid")
    start, pop_ms, invisible_ms, revive, queue_id, place = map(int, numbers)
    return ReceiptHandle(start, pop_ms, invisible_ms, revive, words[4], words[5], queue_id, place)


def retry_mark(topic: str) -> str:
    """Returns the mark of a topic's queues in handles and answers."""
    if not topic.startswith(RETRY_PREFIX):
        return NORMAL_MARK
    return RETRY_MARK_V2 if "+" in topic else RETRY_MARK


def encode_start_offsets(queues: Iterable[tuple[str, int, int]]) -> str:
    """Returns `startOffsetInfo` of (topic, queue id, start)."""
    return ";".join(f"{retry_mark(topic)} {queue} {start}" for topic, queue, start in queues)


def encode_message_offsets(queues: Iterable[tuple[str, int, Sequence[int]]]) -> str:
    """Returns `msgOffsetInfo` of (topic, queue id, queue offsets, ascending)."""
    return ";".join(
        f"{retry_mark(topic)} {queue} {','.join(map(str, offsets))}"
        for topic, queue, offsets in queues
    )


def encode_order_counts(messages: Iterable[tuple[str, int, int, int]]) -> str:
    """Returns `orderCountInfo` of (topic, queue id, queue offset, failures so far)."""
    return ";".join(
        f"{retry_mark(topic)} qo{queue}%{offset} {count}"
        for topic, queue, offset, count in messages
    )


def decode_start_offsets(text: str) -> dict[tuple[str, int], int]:
    """Returns the starts of `startOffsetInfo` by (retry mark, queue id).

    Raises:
        InvalidParameterError: It is malformed.
    """
    starts: dict[tuple[str, int], int] = {}
    for part in text.split(";") if text else ():
        words = part.split(" ")
        if len(words) != 3 or not all(_NUMBER.fullmatch(word) for word in words[1:]):
            raise InvalidParameterError(f"startOffsetInfo {part[:64]!r} is malformed")
        starts[words[0], int(words[1])] = int(words[2])
    return starts
