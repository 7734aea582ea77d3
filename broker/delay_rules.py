"""Which messages wait, how long, and what they look like while they do and afterwards. Pure.

A message is delayed by one of these properties; a level wins over the others:

    DELAY             a level from the table of the group's configuration; above the last: the last
    TIMER_DELAY_SEC   seconds from now
    TIMER_DELAY_MS    milliseconds from now
    TIMER_DELIVER_MS  a time in ms since the epoch; in the past: at once

While it waits, REAL_TOPIC and REAL_QID say where it is going and TIMER_OUT_MS says when.

Source: RocketMQ `HookUtils`, `ScheduleMessageService`, `TimerMessageStore`. We differ: times are
exact to the millisecond instead of being rounded to a tick.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from broker.copies import copy_of
from broker.messages_command import EncodedMessage
from broker.names import SCHEDULE_TOPIC, TIMER_TOPIC
from dledger.errors import ConfigError, InvalidParameterError, MessageRejectedError
from dledger.message import (
    Property,
    decode_properties,
    decode_stored,
    encode_properties,
    pack_host,
    stored_properties,
)

DEFAULT_LEVELS = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"
LEVEL_MS_MAX = 400 * 86_400_000
_LEVEL = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LEVELS_MAX = 64
_TIMERS = (
    (Property.TIMER_DELAY_SECONDS, 1000),
    (Property.TIMER_DELAY_MS, 1),
)
_TIMER_NAMES = (
    Property.TIMER_DELAY_SECONDS,
    Property.TIMER_DELAY_MS,
    Property.TIMER_DELIVER_MS,
)
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def parse_levels(text: str) -> tuple[int, ...]:
    """Returns the delays of levels 1, 2, … in ms.

    Args:
        text: As RocketMQ's `messageDelayLevel`: numbers with a unit of s, m, h or d.

    Raises:
        ConfigError: The text breaks the rules.
    """
    levels: list[int] = []
    for word in text.split():
        match = _LEVEL.fullmatch(word)
        delay_ms = int(match[1]) * _UNIT_MS[match[2]] if match else 0
        if not 0 < delay_ms <= LEVEL_MS_MAX:
            rule = "must be like '1s 5m 2h 1d', each of at most 400 days"
            raise ConfigError("delay_levels", text, rule)
        levels.append(delay_ms)
    if not 0 < len(levels) <= _LEVELS_MAX:
        raise ConfigError("delay_levels", text, f"must have 1 to {_LEVELS_MAX} levels")
    return tuple(levels)


class Parking(NamedTuple):
    """Where a message waits.

    Attributes:
        topic, queue_id: The parking topic and its queue.
        deliver_ms: When it is due.
        properties: The properties to store while it waits.
    """

    topic: str
    queue_id: int
    deliver_ms: int
    properties: str


class DelayRules:
    """The rules of one broker group."""

    def __init__(self, levels: Sequence[int], *, delay_max_ms: int) -> None:
        """Prepares the rules.

        Args:
            levels: Delays of levels 1, 2, … in ms.
            delay_max_ms: Longest delay that is not a level.
        """
        self._levels = tuple(levels)
        self._delay_max_ms = delay_max_ms

    def plan(self, properties: str, *, topic: str, queue_id: int, now_ms: int) -> Parking | None:
        """Returns where a message has to wait, None if it is to be stored at once.

        Args:
            properties: The properties string as sent.
            topic, queue_id: Where the message is going.
            now_ms: The present.

        Raises:
            MessageRejectedError: A delay is not a number, or too long.
        """
        if "DELAY" not in properties and "TIMER_DELIVER" not in properties:
            return None
        try:
            named = decode_properties(properties.encode())
        except UnicodeEncodeError as error:
            raise MessageRejectedError("message properties hold a lone surrogate") from error
        level = _number(named, Property.DELAY)
        if level is not None and level > 0:
            level = min(level, len(self._levels))
            return _park(
                named,
                (topic, queue_id),
                (SCHEDULE_TOPIC, level - 1),
                now_ms + self._levels[level - 1],
            )
        deliver_ms = self._deliver_ms(named, now_ms)
        if deliver_ms is None or deliver_ms <= now_ms:
            return None
        if deliver_ms - now_ms > self._delay_max_ms:
            raise MessageRejectedError(
                f"a delay of {deliver_ms - now_ms} ms exceeds timers.delay_max_s = "
                f"{self._delay_max_ms // 1000}"
            )
        return _park(named, (topic, queue_id), (TIMER_TOPIC, 0), deliver_ms)

    def plan_exactly(
        self, properties: dict[str, str], *, topic: str, queue_id: int, delay_ms: int, now_ms: int
    ) -> Parking:
        """Returns where a message waits for a time that the broker or an extension chose.

        Raises:
            MessageRejectedError: The delay is too long.
        """
        if not 0 < delay_ms <= self._delay_max_ms:
            raise MessageRejectedError(
                f"a delay of {delay_ms} ms must lie in 1..{self._delay_max_ms}"
            )
        return _park(properties, (topic, queue_id), (TIMER_TOPIC, 0), now_ms + delay_ms)

    @staticmethod
    def _deliver_ms(named: dict[str, str], now_ms: int) -> int | None:
        for name, unit_ms in _TIMERS:
            delay = _number(named, name)
            if delay is not None:
                return now_ms + delay * unit_ms
        return _number(named, Property.TIMER_DELIVER_MS)


def is_delayed(raw: bytes) -> bool:
    """Says whether a properties string asks for any delay at all."""
    if b"DELAY" not in raw and b"TIMER_DELIVER" not in raw:
        return False
    named = decode_properties(raw)
    return any(
        named.get(name, "0").strip() not in ("0", "-1") for name in (Property.DELAY, *_TIMER_NAMES)
    )


def _park(
    named: dict[str, str], target: tuple[str, int], place: tuple[str, int], deliver_ms: int
) -> Parking:
    properties = dict(named)
    if place[0] == SCHEDULE_TOPIC:
        for name in _TIMER_NAMES:
            properties.pop(name, None)
    else:
        properties.pop(Property.DELAY, None)
    properties[Property.REAL_TOPIC] = target[0]
    properties[Property.REAL_QUEUE_ID] = str(target[1])
    properties[Property.TIMER_OUT_MS] = str(deliver_ms)
    return Parking(*place, deliver_ms, encode_properties(properties).decode())


def _number(named: dict[str, str], name: str) -> int | None:
    value = named.get(name)
    if value is None:
        return None
    if not _NUMBER.fullmatch(value.strip()):
        raise MessageRejectedError(f"{name} = {value[:32]!r} is not a number")
    return int(value)


# --- delivery -----------------------------------------------------------------------------------


class Delivery(NamedTuple):
    """A message whose time has come."""

    topic: str
    queue_id: int
    message: EncodedMessage


def delivered(stored: bytes) -> Delivery:
    """Returns the message as it is stored in the queue it was meant for.

    Birth, flags, body and reconsume times stay, the delay goes; REAL_TOPIC and REAL_QID stay, as
    in RocketMQ.

    Raises:
        InvalidParameterError: It does not say where to, or not properly.
        RemoteProtocolError: It is no stored message.
    """
    message = decode_stored(stored, decompress=False)
    named = decode_properties(stored_properties(stored))
    topic = named.get(Property.REAL_TOPIC, "")
    queue_id = named.get(Property.REAL_QUEUE_ID, "")
    if not topic or not queue_id.isascii() or not queue_id.isdigit():
        raise InvalidParameterError(f"parked message without a target: {topic!r} {queue_id!r}")
    for name in (Property.DELAY, *_TIMER_NAMES, Property.TIMER_OUT_MS):
        named.pop(name, None)
    store_ip, _, store_port = message.store_host.rpartition(":")
    encoded = copy_of(
        message,
        topic=topic,
        queue_id=int(queue_id),
        reconsume_times=message.reconsume_times,
        properties=named,
        raw=encode_properties(named),
        store_host=pack_host(store_ip.strip("[]"), int(store_port)),
    )
    return Delivery(topic, int(queue_id), encoded)
