"""Tag subscriptions: the expression, its hashes for the broker, the exact test for us.

Brokers compare 32-bit hashes only, so what arrives may carry another tag of the same hash; the
client therefore tests the real string.
"""

from __future__ import annotations

from dataclasses import dataclass

from dledger.errors import ConfigError
from dledger.message import java_hash, validate_topic

MATCH_ALL = "*"
TAGS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a consumer wants of a topic.

    Attributes:
        expression: As sent to the broker: `*` or tags joined by ` || `.
        tags: The tags wanted; empty means all.
        version: Grows when a subscription is changed; brokers keep the newest.
    """

    topic: str
    expression: str
    tags: tuple[str, ...]
    version: int

    @property
    def codes(self) -> tuple[int, ...]:
        """Hashes of the tags as brokers compare them."""
        return tuple(java_hash(tag) for tag in self.tags)

    def matches(self, tag: str) -> bool:
        """Whether a message with this tag is wanted."""
        return not self.tags or tag in self.tags


def subscribe(topic: str, expression: str, version: int) -> Subscription:
    """Parses a tag expression such as `*` or `created || paid`.

    Raises:
        ConfigError: An empty alternative, or more than 1024 tags.
        InvalidParameterError: The topic's name is not allowed.
    """
    validate_topic(topic)
    text = expression.strip()
    if text in ("", MATCH_ALL):
        return Subscription(topic, MATCH_ALL, (), version)
    tags = tuple(dict.fromkeys(part.strip() for part in text.split("||")))
    if "" in tags:
        raise ConfigError(f"subscriptions[{topic}]", expression, "has an empty tag")
    if MATCH_ALL in tags:
        return Subscription(topic, MATCH_ALL, (), version)
    if len(tags) > TAGS_MAX:
        raise ConfigError(f"subscriptions[{topic}]", expression, f"at most {TAGS_MAX} tags")
    return Subscription(topic, " || ".join(tags), tags, version)
