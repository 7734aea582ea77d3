"""Tag filters, first of two stages, and which filter languages there are. Pure.

The broker compares the tag hash in each ConsumeQueue unit with the hashes the consumer asked for;
the consumer compares the tags themselves, since hashes collide. Filtered messages still move the
consumer on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from dledger.codes import ResponseCode
from dledger.errors import InvalidParameterError, RequestError
from dledger.message import java_hash

ALL = "*"
TAG, SQL = "TAG", "SQL92"
TAGS_MAX = 1024
EXPRESSION_LENGTH_MAX = 64 * 1024

# Which tag hashes pass; None: everything does.
TagCodes = frozenset[int] | None


class SubscriptionParseError(RequestError):
    """A filter expression makes no sense."""

    response_code = ResponseCode.SUBSCRIPTION_PARSE_FAILED


class FilterNotSupportedError(RequestError):
    """A filter language that this broker does not have."""

    response_code = ResponseCode.SYSTEM_ERROR


@functools.lru_cache(maxsize=1024)
def parse_tag_expression(expression: str) -> TagCodes:
    """Returns the hashes of the tags in `a || b`; None for `*` and for nothing.

    Raises:
        SubscriptionParseError: Only separators, or too many or too long.
    """
    if len(expression) > EXPRESSION_LENGTH_MAX:
        raise SubscriptionParseError(
            f"filter expression of {len(expression)} characters exceeds {EXPRESSION_LENGTH_MAX}"
        )
    if not expression or expression.strip() in ("", ALL):
        return None
    tags = [tag for part in expression.split("||") if (tag := part.strip())]
    if not tags:
        raise SubscriptionParseError(f"filter expression {expression!r} names no tag")
    if len(tags) > TAGS_MAX:
        raise SubscriptionParseError(f"filter expression names more than {TAGS_MAX} tags")
    if ALL in tags:
        return None
    return tag_codes(java_hash(tag) for tag in tags)


def tag_codes(codes: Iterable[int]) -> TagCodes:
    """Returns hashes as signed 32-bit numbers, as ConsumeQueue units hold them."""
    return frozenset(((code & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000 for code in codes)


def subscription_codes(expression: str, tags: Iterable[str], codes: Iterable[int]) -> TagCodes:
    """Returns what a subscription from a heartbeat lets pass.

    The expression decides when it can be read; the code set of the client is the fallback for
    clients that send none. Both are bounded by `check_subscription_size`.
    """
    if expression and expression.strip() != ALL:
        return parse_tag_expression(expression)
    if expression:
        return None
    named = [java_hash(tag) for tag in tags]
    return tag_codes([*named, *codes]) or None


def is_sql(expression_type: str) -> bool:
    """Tells whether an expression is a condition in SQL92 rather than tags; missing means tags.

    Raises:
        FilterNotSupportedError: It is neither.
    """
    if expression_type == SQL:
        return True
    if expression_type not in ("", TAG):
        raise FilterNotSupportedError(
            f"The broker does not support consumer to filter message by {expression_type}"
        )
    return False


def check_subscription_size(topic: str, tag_count: int) -> None:
    """Raises `InvalidParameterError` for a subscription with too many tags."""
    if tag_count > TAGS_MAX:
        raise InvalidParameterError(f"subscription of {topic} names more than {TAGS_MAX} tags")
