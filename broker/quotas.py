"""Quotas: how many messages and bytes a second a topic takes in, or a consumer group takes out.

They stand in the attributes of the topic or group, and so are replicated; none by default. What is
counted is not: the leader counts sends, each replica what it hands out, and a new leader begins
with a full second's worth.

Each quota is a bucket of tokens that holds a second's worth and refills steadily. A request passes
while there is a token left and may take more than there are, so that one larger than the quota is
not refused for ever: it is paid for by those behind it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dledger.codes import ResponseCode
from dledger.errors import FlowControlError, InvalidParameterError
from dledger.model import GroupConfig, TopicConfig

MESSAGES: Final = "quota.messages_per_second"
BYTES: Final = "quota.bytes_per_second"
NAMES: Final = (MESSAGES, BYTES)
RATE_MAX: Final = 10**12
_TRACKED_MAX: Final = 40_000
_ROUNDING: Final = 1e-6


class QuotaExceededError(FlowControlError):
    """A topic takes in more than it may. Nothing was stored; send again after a pause."""

    response_code = ResponseCode.SYSTEM_BUSY


class PullQuotaExceededError(FlowControlError):
    """A group takes out more than it may; pull again after a short pause."""

    response_code = ResponseCode.FLOW_CONTROL


class Bucket:
    """Tokens that refill steadily, up to a second's worth."""

    __slots__ = ("_at_s", "_tokens", "rate")

    def __init__(self, rate: float, now_s: float) -> None:
        self.rate = rate
        self._tokens = rate
        self._at_s = now_s

    def has_any(self, now_s: float) -> bool:
        """Whether a whole token is there, or all that fit in."""
        self._tokens = min(self.rate, self._tokens + (now_s - self._at_s) * self.rate)
        self._at_s = now_s
        return self._tokens >= min(1.0, self.rate) - _ROUNDING

    def take(self, amount: float) -> None:
        """Takes tokens, even those that are yet to come."""
        self._tokens -= amount


class _Pair:
    """The two buckets of one topic or group, as its configuration of the moment says."""

    __slots__ = ("bytes", "config", "messages")

    def __init__(self, config: TopicConfig | GroupConfig, now_s: float) -> None:
        limits = parse_quotas(config.attributes)
        self.config = config
        self.messages = Bucket(limits[MESSAGES], now_s) if MESSAGES in limits else None
        self.bytes = Bucket(limits[BYTES], now_s) if BYTES in limits else None

    def exceeded(self, now_s: float) -> str | None:
        """Returns the name and value of the quota that is used up."""
        for name, bucket in ((MESSAGES, self.messages), (BYTES, self.bytes)):
            if bucket is not None and not bucket.has_any(now_s):
                return f"{name} = {bucket.rate:g}"
        return None

    def take(self, count: int, size_bytes: int) -> None:
        if self.messages is not None:
            self.messages.take(count)
        if self.bytes is not None:
            self.bytes.take(size_bytes)


class Quotas:
    """Who has used how much of what."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self.refused = 0

    def send(self, topic: TopicConfig, count: int, size_bytes: int, now_s: float) -> None:
        """Counts a send.

        Raises:
            QuotaExceededError: The quota is used up; nothing is counted. The text names it.
        """
        if not topic.attributes:
            return
        pair = self._pair("topic", topic, now_s)
        exceeded = pair.exceeded(now_s)
        if exceeded is not None:
            self.refused += 1
            raise QuotaExceededError(f"[QUOTA] topic {topic.name}: {exceeded} is used up")
        pair.take(count, size_bytes)

    def check_pull(self, group: GroupConfig | None, now_s: float) -> None:
        """Checks that a group may take something.

        Raises:
            PullQuotaExceededError: The quota is used up. The text names it.
        """
        if group is None or not group.attributes:
            return
        exceeded = self._pair("group", group, now_s).exceeded(now_s)
        if exceeded is not None:
            self.refused += 1
            raise PullQuotaExceededError(f"[QUOTA] group {group.name}: {exceeded} is used up")

    def pulled(self, group: GroupConfig | None, count: int, size_bytes: int, now_s: float) -> None:
        """Counts what a group was given."""
        if group is not None and group.attributes:
            self._pair("group", group, now_s).take(count, size_bytes)

    def _pair(self, kind: str, config: TopicConfig | GroupConfig, now_s: float) -> _Pair:
        pair = self._pairs.get((kind, config.name))
        if pair is None or pair.config is not config:
            if len(self._pairs) >= _TRACKED_MAX:
                # Of topics and groups long gone, most likely; the others get a second's worth.
                self._pairs.clear()
            pair = self._pairs[kind, config.name] = _Pair(config, now_s)
        return pair


def parse_quotas(attributes: Mapping[str, str]) -> dict[str, float]:
    """Returns the quotas among attributes.

    Raises:
        InvalidParameterError: One is not a number in (0, 10^12].
    """
    found: dict[str, float] = {}
    for name in NAMES:
        text = attributes.get(name)
        if text is None:
            continue
        try:
            value = float(text)
        except ValueError:
            value = 0
        if not 0 < value <= RATE_MAX:
            raise InvalidParameterError(f"{name}={text[:40]} must be a number in (0, {RATE_MAX}]")
        found[name] = value
    return found
