"""Tag expressions become sets of hashes."""

import pytest

from broker.filters import (
    EXPRESSION_LENGTH_MAX,
    TAGS_MAX,
    FilterNotSupportedError,
    SubscriptionParseError,
    check_subscription_size,
    is_sql,
    parse_tag_expression,
    subscription_codes,
    tag_codes,
)
from dledger.errors import InvalidParameterError
from dledger.message import java_hash


@pytest.mark.parametrize("expression", ["", "*", " * ", "  ", "a || *"])
def test_everything_passes(expression):
    assert parse_tag_expression(expression) is None


@pytest.mark.parametrize(
    ("expression", "tags"),
    [
        ("TagA", {"TagA"}),
        ("TagA || TagB", {"TagA", "TagB"}),
        ("a||b||", {"a", "b"}),
        (" a | b ", {"a | b"}),
        ("中文", {"中文"}),
    ],
)
def test_tags_pass_by_their_hash(expression, tags):
    assert parse_tag_expression(expression) == {java_hash(tag) for tag in tags}


@pytest.mark.parametrize(
    "expression",
    ["||", " || || ", "x" * (EXPRESSION_LENGTH_MAX + 1), "||".join(map(str, range(TAGS_MAX + 1)))],
)
def test_nonsense_is_refused(expression):
    with pytest.raises(SubscriptionParseError):
        parse_tag_expression(expression)


def test_hashes_are_signed_whatever_the_client_sends():
    assert tag_codes([2**32 - 1, -1, 5]) == {-1, 5}


def test_the_expression_decides_and_codes_are_the_fallback():
    assert subscription_codes("a", ["b"], [7]) == {java_hash("a")}
    assert subscription_codes("*", ["b"], [7]) is None
    assert subscription_codes("", ["b"], [7]) == {java_hash("b"), 7}
    assert subscription_codes("", [], []) is None


def test_there_are_two_filter_languages():
    assert not is_sql("TAG")
    assert not is_sql("")
    assert is_sql("SQL92")
    with pytest.raises(FilterNotSupportedError, match="XPATH"):
        is_sql("XPATH")


def test_large_subscriptions_are_refused():
    check_subscription_size("t", TAGS_MAX)
    with pytest.raises(InvalidParameterError, match="t"):
        check_subscription_size("t", TAGS_MAX + 1)
