"""What becomes of a message that a consumer could not process. Pure.

It comes again to its group only, through the group's retry topic, after a delay that grows with
every failure; after the last one it goes to the group's dead-letter topic. Beside what RocketMQ
notes in the message (RETRY_TOPIC, ORIGIN_MESSAGE_ID, DLQ_ORIGIN_…) we keep why it failed last and
when it failed:

    DL_RETRY_REASON   what the consumer said, at most 512 characters
    DL_RETRY_HISTORY  times of the failures in ms, joined by commas; the newest 32

Source: RocketMQ `AbstractSendMessageProcessor`, `SendMessageProcessor`. We differ: a group whose
maximum is negative retries without end.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from broker import names
from dledger.message import (
    Property,
    ReceivedMessage,
    decode_properties,
    encode_properties,
)
from dledger.model import GroupConfig

RETRY_REASON: Final = "DL_RETRY_REASON"
RETRY_HISTORY: Final = "DL_RETRY_HISTORY"
REASON_LENGTH_MAX: Final = 512
HISTORY_COUNT_MAX: Final = 32
FIRST_RETRY_LEVEL: Final = 3
DELAY_PROPERTIES: Final = (
    Property.DELAY,
    Property.TIMER_DELAY_SECONDS,
    Property.TIMER_DELAY_MS,
    Property.TIMER_DELIVER_MS,
    Property.TIMER_OUT_MS,
)


class SendBack(NamedTuple):
    """Where a failed message goes.

    Attributes:
        topic: The group's retry or dead-letter topic.
        delay_level: How long it waits; 0 for a dead letter.
        properties: To be stored with it.
        reconsume_times: Failures so far, this one included.
    """

    topic: str
    delay_level: int
    properties: dict[str, str]
    reconsume_times: int

    @property
    def is_dead(self) -> bool:
        """Whether the group will not get it again."""
        return names.is_dead_letter_topic(self.topic)


def send_back(
    message: ReceivedMessage,
    group: GroupConfig,
    *,
    delay_level: int,
    reconsume_max: int | None,
    reason: str,
    now_ms: int,
) -> SendBack:
    """Returns what becomes of a message that failed.

    Args:
        message: As the consumer got it; its properties as stored.
        group: The consumer's group.
        delay_level: Negative: dead at once. 0: the broker chooses. Otherwise: this one.
        reconsume_max: The consumer's own maximum, None for the group's.
        reason: Why it failed; may be empty.
        now_ms: The present.
    """
    limit = group.retry_max if reconsume_max is None or reconsume_max < 0 else reconsume_max
    is_dead = delay_level < 0 or 0 <= limit <= message.reconsume_times
    properties = dict(message.properties)
    properties.setdefault(Property.RETRY_TOPIC, message.topic)
    properties.setdefault(Property.ORIGIN_MESSAGE_ID, message.offset_message_id)
    for name in DELAY_PROPERTIES:
        properties.pop(name, None)
    history = [word for word in properties.get(RETRY_HISTORY, "").split(",") if word]
    properties[RETRY_HISTORY] = ",".join([*history, str(now_ms)][-HISTORY_COUNT_MAX:])
    if cleaned := clean_reason(reason):
        properties[RETRY_REASON] = cleaned
    if is_dead:
        properties[Property.DEAD_LETTER_ORIGIN_TOPIC] = properties[Property.RETRY_TOPIC]
        properties[Property.DEAD_LETTER_ORIGIN_MESSAGE_ID] = properties[Property.ORIGIN_MESSAGE_ID]
        return SendBack(
            names.dead_letter_topic(group.name), 0, properties, message.reconsume_times + 1
        )
    level = delay_level or FIRST_RETRY_LEVEL + message.reconsume_times
    properties[Property.DELAY] = str(level)
    return SendBack(names.retry_topic(group.name), level, properties, message.reconsume_times + 1)


def is_beyond_retries(
    group: GroupConfig, *, reconsume_times: int, reconsume_max: int | None
) -> bool:
    """Says whether a message sent to the group's retry topic goes to the dead letters instead."""
    limit = group.retry_max if reconsume_max is None or reconsume_max < 0 else reconsume_max
    return 0 <= limit < reconsume_times


def without_delay(properties: str) -> str:
    """Returns a properties string without what would delay a dead letter."""
    named = decode_properties(properties.encode(errors="replace"))
    for name in DELAY_PROPERTIES:
        named.pop(name, None)
    return encode_properties(named).decode()


def clean_reason(reason: str) -> str:
    """Returns a reason that may stand in a property: printable, of bounded length."""
    text = reason.encode(errors="replace").decode()
    text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())[:REASON_LENGTH_MAX]
