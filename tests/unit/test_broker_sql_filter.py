"""Conditions in SQL92: what they mean, and what is refused."""

import pytest

from broker.filters import SubscriptionParseError
from broker.sql_filter import DEPTH_MAX, EXPRESSION_LENGTH_MAX, compile_sql
from dledger.message import encode_properties

P = {"a": "6", "b": "x", "t": "true", "TAGS": "TagA", "f": "2.50", "n": "-3", "s": "it's"}


@pytest.mark.parametrize(
    "expression",
    [
        "a > 5 AND b IS NOT NULL",
        "a>=6 and a<=6 and a=6 and a<>7",
        "f = 2.5 AND f > 2 AND f < .3E1",
        "n = -3 AND -n = 3 AND +n < 0",
        "a > n",
        "missing IS NULL",
        "NOT b IS NULL",
        "b = 'x' AND b <> 'y'",
        "s = 'it''s'",
        "a BETWEEN 6 AND 7 AND a NOT BETWEEN 7 AND 8",
        "NOT a BETWEEN 7 AND 8",
        "b IN ('y', 'x') AND b NOT IN ('z')",
        "TAGS = 'TagA'",
        "b CONTAINS 'x' AND TAGS STARTSWITH 'Tag' AND TAGS ENDSWITH 'gA'",
        "b NOT CONTAINS 'q' AND TAGS NOT STARTSWITH 'x' AND TAGS NOT ENDSWITH 'x'",
        "t = TRUE AND t AND b = FALSE",
        "TRUE OR missing > 5",
        "missing > 5 OR b = 'x'",
        "b > 5 OR b = 'x'",
        "(a = 5 OR a = 6) AND NOT (b = 'y')",
        "a = 6L -- the rest\n AND /* not * this */ b = 'x'",
        "a\t=\n6",
        "orders IS NULL AND Not_null IS NULL AND $x_1 IS NULL",
        "((((a = 6))))",
    ],
)
def test_true(expression):
    assert compile_sql(expression).matches(P)
    assert compile_sql(expression).matches_raw(encode_properties(P))


@pytest.mark.parametrize(
    "expression",
    [
        "a > 6",
        "missing = 1",
        "missing <> 1",
        "NOT missing = 1",
        "NOT (missing > 1 AND a = 6)",
        "missing IN ('x')",
        "missing NOT IN ('x')",
        "missing CONTAINS 'x'",
        "missing NOT CONTAINS 'x'",
        "missing BETWEEN 1 AND 2",
        "missing NOT BETWEEN 1 AND 2",
        "b > 5",
        "NOT b > 5",
        "b <> 5",
        "missing = also_missing",
        "missing",
        "NOT missing",
        "NULL",
        "FALSE",
        "A = 6",
        "missing > 5 AND TRUE",
    ],
)
def test_false_or_unknown(expression):
    assert not compile_sql(expression).matches(P)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "   ",
        "a >",
        "> 5",
        "a != 5",
        "a == 5",
        "a LIKE 'x%'",
        "a + 1 > 5",
        "a = 'x",
        'a = "x"',
        "a = NULL",
        "NULL <> a",
        "5",
        "'x'",
        "a AND 5",
        "NOT 'x'",
        "a > 'x'",
        "a > TRUE",
        "(a = 5) > 3",
        "a BETWEEN 'x' AND 'y'",
        "a BETWEEN 5 AND 1",
        "a IN (5)",
        "a IN ()",
        "'a' IN ('a')",
        "5 CONTAINS '5'",
        "a CONTAINS b",
        "a = 007",
        "5a = 1",
        "and = 1",
        "a IS NOT 5",
        "a = 5 b = 6",
        "(a = 5",
        "a = 5)",
        "a = -'x'",
        "a = " + "9" * 41,
        "/* a = 5",
        "a = 5; b",
        "a\x00 = 5",
        "NOT " * DEPTH_MAX + "TRUE",
        "a = " + "-" * 2 + "5",
        "x" * (EXPRESSION_LENGTH_MAX + 1),
    ],
)
def test_nonsense_is_refused_and_says_where(expression):
    with pytest.raises(SubscriptionParseError, match="SQL filter"):
        compile_sql(expression)


def test_depth_counts_calls_not_parentheses():
    compile_sql("(" * 200 + "a = 5" + ")" * 200)
    compile_sql(" AND ".join(["a = 5"] * 300))
    nested = "a = 5"
    for number in range(DEPTH_MAX // 2):
        nested = f"(b = {number} AND (a = 1 OR {nested}))"
    with pytest.raises(SubscriptionParseError, match="levels"):
        compile_sql(nested)
    with pytest.raises(SubscriptionParseError):
        compile_sql("a = " + "- " * 40 + "5 AND " + "- " * 40 + "b = 5")


def test_a_condition_is_compiled_once():
    assert compile_sql("a = 12345") is compile_sql("a = 12345")
