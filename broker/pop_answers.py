"""The answer to a pop: from which a client makes its handles. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.pop_choice import Choice
from dledger.message import (
    ORDER_REVIVE_QUEUE,
    encode_message_offsets,
    encode_order_counts,
    encode_start_offsets,
    stored_reconsume_times,
    with_reconsume_times,
)

Found = Sequence[tuple[int, Choice]]


def answer_ext(topic: str, found: Found, *, order: bool) -> dict[str, str]:
    """Returns the fields of an answer; times and the rest are the caller's.

    Args:
        topic: The topic.
        found: Queue ids and what was given out of each.
        order: Whether it was popped in order.
    """
    ext = {
        "popTime": "0",
        "invisibleTime": "0",
        "restNum": "0",
        "reviveQid": str(ORDER_REVIVE_QUEUE if order else 0),
    }
    if not found:
        return ext
    ext["startOffsetInfo"] = encode_start_offsets(
        (topic, queue_id, choice.messages[0].offset) for queue_id, choice in found
    )
    ext["msgOffsetInfo"] = encode_message_offsets(
        (topic, queue_id, [message.offset for message in choice.messages])
        for queue_id, choice in found
    )
    counts = [
        (topic, queue_id, message.offset, choice.earlier)
        for queue_id, choice in found
        for message in choice.messages
        if choice.earlier
    ]
    if order and counts:
        ext["orderCountInfo"] = encode_order_counts(counts)
    return ext


def body_of(found: Found, read: Callable[[int, int], memoryview]) -> list[memoryview | bytes]:
    """Returns the messages as stored; those that come again say how often they have failed."""
    body: list[memoryview | bytes] = []
    for _, choice in found:
        for message in choice.messages:
            stored = read(message.physical_offset, message.size_bytes)
            if choice.earlier:
                times = stored_reconsume_times(stored) + choice.earlier
                body.append(with_reconsume_times(stored, times))
            else:
                body.append(stored)
    return body
