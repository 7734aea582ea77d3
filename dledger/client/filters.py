"""Subscriptions: tags or a condition in SQL; what the broker is told and what we test ourselves.

Brokers compare 32-bit hashes only, so what arrives may carry another tag of the same hash; the
client therefore tests the real string. SQL conditions are evaluated on the broker alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from dledger.errors import ConfigError
from dledger.message import java_hash, validate_topic

MATCH_ALL = "*"
TAG, SQL = "TAG", "SQL92"
SQL_LENGTH_MAX = 4096
TAGS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Sql:
    """A condition on the properties of messages, such as `Sql("a > 5 AND b IS NOT NULL")`.

    Evaluated on the broker; the tag is the property `TAGS`. A message passes if the condition is
    true: not if it is false or, because a property is missing or no number, unknown.
    """

    expression: str


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a consumer wants of a topic.

    Attributes:
        expression: As sent to the broker: `*` or tags joined by ` || `.
        tags: The tags wanted; empty means all.
        version: Grows when a subscription is changed; brokers keep the newest.
        expression_type: `TAG` or `SQL92`.
    """

    topic: str
    expression: str
    tags: tuple[str, ...]
    version: int
    expression_type: str = TAG

    @property
    def codes(self) -> tuple[int, ...]:
        """Hashes of the tags as brokers compare them."""
        return tuple(java_hash(tag) for tag in self.tags)

    def matches(self, tag: str) -> bool:
        """Whether a message with this tag is wanted."""
        return not self.tags or tag in self.tags


def subscribe(topic: str, expression: str | Sql, version: int) -> Subscription:
    """Parses a tag expression such as `*` or `created || paid`, or takes a condition in SQL.

    Raises:
        ConfigError: An empty alternative, more than 1024 tags, or an empty or long condition.
        InvalidParameterError: The topic's name is not allowed.
    """
    validate_topic(topic)
    if isinstance(expression, Sql):
        condition = expression.expression.strip()
        if not 0 < len(condition) <= SQL_LENGTH_MAX:
            rule = f"a condition has 1 to {SQL_LENGTH_MAX} characters"
            raise ConfigError(f"subscriptions[{topic}]", condition[:100], rule)
        return Subscription(topic, condition, (), version, SQL)
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
