"""The compiled filter against a small evaluator that walks its own tree, by another method.

The evaluator computes with sets: the values that an expression may still take when every missing
or unreadable property may be anything. {True} is true, both is unknown.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.filters import SubscriptionParseError
from broker.sql_filter import compile_sql

NAMES = ["a", "b", "c"]
WORDS = ["", "x", "5", "7", "-1.5", "true", "it's", "5x"]
ANY = frozenset((True, False))

names = st.sampled_from(NAMES)
words = st.sampled_from(WORDS)
numbers = st.sampled_from([0, 5, 7, 2.5])
leaves = st.one_of(
    st.tuples(st.just("order"), names, st.sampled_from(["<", "<=", ">", ">="]), numbers),
    st.tuples(st.just("equals"), names, st.sampled_from(["=", "<>"]), st.one_of(numbers, words)),
    st.tuples(st.just("between"), names, st.booleans(), st.just(1), numbers.filter(bool)),
    st.tuples(st.just("in"), names, st.booleans(), st.lists(words, min_size=1, max_size=3)),
    st.tuples(st.just("null"), names, st.booleans()),
    st.tuples(
        st.just("text"),
        names,
        st.booleans(),
        st.sampled_from(["CONTAINS", "STARTSWITH", "ENDSWITH"]),
        words,
    ),
    st.tuples(st.just("literal"), st.booleans()),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)


def quoted(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"


def text(tree: tuple[Any, ...]) -> str:
    match tree:
        case ("order", name, sign, number):
            return f"{name} {sign} {number}"
        case ("equals", name, sign, str(word)):
            return f"{name} {sign} {quoted(word)}"
        case ("equals", name, sign, number):
            return f"{name}{sign}{number}"
        case ("between", name, inverted, low, high):
            return f"{name} {'NOT ' if inverted else ''}BETWEEN {low} AND {high}"
        case ("in", name, inverted, items):
            return f"{name} {'not ' if inverted else ''}IN ({', '.join(map(quoted, items))})"
        case ("null", name, inverted):
            return f"{name} IS {'NOT ' if inverted else ''}NULL"
        case ("text", name, inverted, operator, word):
            return f"{name} {'NOT ' if inverted else ''}{operator} {quoted(word)}"
        case ("literal", value):
            return "TRUE" if value else "false"
        case ("not", inner):
            return f"NOT ({text(inner)})"
        case (word, parts):
            return f" {word} ".join(f"({text(part)})" for part in parts)
    raise AssertionError(tree)


def outcomes(tree: tuple[Any, ...], properties: dict[str, str]) -> frozenset[bool]:
    def number(name: str) -> float | None:
        try:
            return float(properties[name])
        except (KeyError, ValueError):
            return None

    def known(value: bool) -> frozenset[bool]:
        return frozenset((value,))

    match tree:
        case ("order", name, sign, wanted):
            value = number(name)
            if value is None:
                return ANY
            low, same = value < wanted, value == wanted
            return known(
                (low and "<" in sign)
                or (same and "=" in sign)
                or (not low and not same and ">" in sign)
            )
        case ("equals", name, sign, str(word)):
            return known((properties[name] == word) == (sign == "=")) if name in properties else ANY
        case ("equals", name, sign, wanted):
            value = number(name)
            return ANY if value is None else known((value == wanted) == (sign == "="))
        case ("between", name, inverted, low, high):
            value = number(name)
            return ANY if value is None else known((low <= value <= high) != inverted)
        case ("in", name, inverted, items):
            return known((properties[name] in items) != inverted) if name in properties else ANY
        case ("null", name, inverted):
            return known((name in properties) == inverted)
        case ("text", name, inverted, operator, word):
            if name not in properties:
                return ANY
            value_text = properties[name]
            found = {
                "CONTAINS": value_text.find(word) >= 0,
                "STARTSWITH": value_text[: len(word)] == word,
                "ENDSWITH": value_text[len(value_text) - len(word) :] == word
                and len(word) <= len(value_text),
            }[operator]
            return known(found != inverted)
        case ("literal", value):
            return known(value)
        case ("not", inner):
            return frozenset(not value for value in outcomes(inner, properties))
        case (word, parts):
            combine = all if word == "and" else any
            sets = [outcomes(part, properties) for part in parts]
            extremes = [combine(min(s) for s in sets), combine(max(s) for s in sets)]
            return frozenset(extremes)
    raise AssertionError(tree)


@settings(max_examples=400, deadline=None)
@given(trees, st.dictionaries(names, words, max_size=3))
def test_same_as_the_small_evaluator(tree: tuple[Any, ...], properties: dict[str, str]) -> None:
    expected = outcomes(tree, properties) == {True}
    assert compile_sql(text(tree)).matches(properties) is expected, text(tree)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                [
                    "a",
                    "NOT",
                    "AND",
                    "or",
                    "(",
                    ")",
                    "=",
                    "<>",
                    "'x'",
                    "5",
                    "IN",
                    ",",
                    "is",
                    "null",
                    "-",
                    "--",
                    "/*",
                    "BETWEEN",
                    "CONTAINS",
                    "true",
                    ">",
                ]
            ),
            max_size=14,
        ).map(" ".join),
    )
)
def test_any_text_is_compiled_or_refused(expression: str) -> None:
    try:
        compile_sql(expression).matches({"a": "x"})
    except SubscriptionParseError:
        return
