"""SQL92 filters: a condition on a message's properties, compiled once per expression. Pure.

Logic has three values: a comparison with a property that is missing, or that cannot be read as the
number it is compared with, is *unknown*; `NOT` of unknown is unknown, and a message passes only if
the whole is true. Properties are texts; compared with a number, or by order, they are read as one.

Source: RocketMQ `SelectorParser.jj`, `ComparisonExpression`. We differ where the original departs
from SQL: `NOT` binds weaker than comparisons, `a = b` is unknown and not true when both are
missing, and a property that is no number makes one comparison unknown instead of ending the whole
evaluation.

Cost: parsing is about 20 microseconds a word, so expressions are short; evaluating is a few calls.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import lark

from broker.filters import SubscriptionParseError
from dledger.message import decode_properties

EXPRESSION_LENGTH_MAX: Final = 4096
DEPTH_MAX: Final = 32
NUMBER_LENGTH_MAX: Final = 40

Properties = Mapping[str, str]
Value = str | int | float | bool | None
_Evaluate = Callable[[Properties], Value]

_GRAMMAR: Final = r"""
start: or_
or_: and_ (_OR and_)*
and_: not_ (_AND not_)*
?not_: _NOT not_ -> negation
     | predicate
?predicate: operand -> condition
     | operand COMPARISON operand -> comparison
     | operand between operand _AND operand -> between_
     | operand is_in "(" STRING ("," STRING)* ")" -> in_
     | operand _text_test STRING -> text_test
     | operand _NOT _text_test STRING -> not_text_test
     | operand _IS _NULL -> is_null
     | operand _IS _NOT _NULL -> is_not_null
?operand: STRING -> text
     | FLOAT -> float_
     | DECIMAL -> integer
     | TRUE -> true
     | FALSE -> false
     | _NULL -> null
     | ID -> property
     | "(" or_ ")" -> group
     | "+" operand -> plus
     | "-" operand -> minus
between: _BETWEEN -> plain | _NOT _BETWEEN -> inverted
_text_test: CONTAINS | STARTSWITH | ENDSWITH
is_in: _IN -> plain | _NOT _IN -> inverted

_OR: "OR"i
_AND: "AND"i
_NOT: "NOT"i
_IS: "IS"i
_NULL: "NULL"i
_IN: "IN"i
_BETWEEN: "BETWEEN"i
TRUE: "TRUE"i
FALSE: "FALSE"i
CONTAINS: "CONTAINS"i
STARTSWITH: "STARTSWITH"i
ENDSWITH: "ENDSWITH"i
COMPARISON: "=" | "<>" | ">=" | "<=" | ">" | "<"
STRING: /'(?:''|[^'])*'/
FLOAT.2: /[0-9]+\.[0-9]*(?:E[+-]?[0-9]+)?|\.[0-9]+(?:E[+-]?[0-9]+)?|[0-9]+E[+-]?[0-9]+/i
DECIMAL: /(?:0|[1-9][0-9]*)L?/i
ID: /[a-z_$][a-z0-9_$]*/i
LINE_COMMENT.3: /--[^\r\n]*/
BLOCK_COMMENT.3: /\/\*(?:[^*]|\*(?!\/))*\*\//
%ignore /[ \t\r\n\f]+/
%ignore LINE_COMMENT
%ignore BLOCK_COMMENT
"""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_ORDER: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
}
_TEXT_TESTS: Final[dict[str, Callable[[str, str], bool]]] = {
    "CONTAINS": lambda text, part: part in text,
    "STARTSWITH": str.startswith,
    "ENDSWITH": str.endswith,
}


class _Node(NamedTuple):
    """A part of a condition.

    Attributes:
        evaluate: Its value for some properties; None is unknown.
        kind: What it is, for the rules on what may be compared with what: `property`, `number`,
            `text`, `truth` (a literal), `null` or `condition`.
        depth: Of nested calls.
    """

    evaluate: _Evaluate
    kind: str
    depth: int = 1
    value: Value = None


class SqlFilter:
    """A compiled condition."""

    __slots__ = ("_evaluate", "expression")

    def __init__(self, expression: str, evaluate: _Evaluate) -> None:
        self.expression = expression
        self._evaluate = evaluate

    def matches(self, properties: Properties) -> bool:
        """Whether a message with these properties passes; unknown does not."""
        return self._evaluate(properties) is True

    def matches_raw(self, raw: bytes) -> bool:
        """Whether a message with this stored properties string passes."""
        return self._evaluate(decode_properties(raw)) is True

    def __repr__(self) -> str:
        return f"<SqlFilter {self.expression!r}>"


class _Refusal(Exception):
    """The text parses, but what it says makes no sense."""


def _number(value: Value) -> int | float | None:
    """Returns what a value is as a number; None for what is none."""
    if isinstance(value, str):
        if len(value) > NUMBER_LENGTH_MAX or not _NUMBER.fullmatch(value):
            return None
        return int(value) if _INTEGER.fullmatch(value) else float(value)
    return None if isinstance(value, bool) else value


def _equal(left: Value, right: Value) -> bool | None:
    if left is None or right is None:
        return None
    if isinstance(left, str) and isinstance(right, str):
        return left == right
    if isinstance(left, bool) or isinstance(right, bool):
        a, b = _truth(left), _truth(right)
        return a is not None and a == b
    first, second = _number(left), _number(right)
    return None if first is None or second is None else first == second


def _truth(value: Value) -> bool | None:
    if isinstance(value, str):
        return value.lower() == "true"
    return value if isinstance(value, bool) else None


def _inverse(value: Value) -> bool | None:
    return None if value is None else value is not True


class _Compiler(lark.Transformer[lark.Token, _Node]):
    """Makes nodes while the parser reduces, so nothing here recurses over the text."""

    def start(self, items: list[_Node]) -> _Node:
        return items[0]

    def or_(self, items: list[_Node]) -> _Node:
        if len(items) == 1:
            return items[0]
        parts = [_condition(item).evaluate for item in items]

        def evaluate(properties: Properties) -> bool | None:
            result: bool | None = False
            for part in parts:
                value = part(properties)
                if value is True:
                    return True
                if value is None:
                    result = None
            return result

        return _deeper(evaluate, *items)

    def and_(self, items: list[_Node]) -> _Node:
        if len(items) == 1:
            return items[0]
        parts = [_condition(item).evaluate for item in items]

        def evaluate(properties: Properties) -> bool | None:
            result: bool | None = True
            for part in parts:
                value = part(properties)
                if value is False:
                    return False
                if value is None:
                    result = None
            return result

        return _deeper(evaluate, *items)

    def negation(self, items: list[_Node]) -> _Node:
        inner = _condition(items[0]).evaluate
        return _deeper(lambda properties: _inverse(inner(properties)), items[0])

    def condition(self, items: list[_Node]) -> _Node:
        return items[0]

    def group(self, items: list[_Node]) -> _Node:
        return items[0]

    def comparison(self, items: list[_Node | lark.Token]) -> _Node:
        left, sign, right = items
        if not isinstance(left, _Node) or not isinstance(right, _Node):
            raise _Refusal("malformed comparison")
        return _compared(left, str(sign), right)

    def plain(self, _items: list[object]) -> bool:
        return False

    def inverted(self, _items: list[object]) -> bool:
        return True

    def between_(self, items: list[_Node]) -> _Node:
        value, is_inverted, low, high = items
        if low.kind == high.kind == "number":
            first, last = _number(low.value), _number(high.value)
            if first is not None and last is not None and first > last:
                raise _Refusal(f"BETWEEN {first} AND {last}: the first must not be the larger")
        if is_inverted:
            return self.or_([_compared(value, "<", low), _compared(value, ">", high)])
        return self.and_([_compared(value, ">=", low), _compared(value, "<=", high)])

    def in_(self, items: list[_Node]) -> _Node:
        left, is_inverted, *words = items
        evaluate = _property_of(left, "IN")
        wanted = frozenset(_unquoted(str(word)) for word in words)
        flip = bool(is_inverted)

        def contained(properties: Properties) -> bool | None:
            value = evaluate(properties)
            return None if value is None else (value in wanted) != flip

        return _deeper(contained, left)

    def text_test(self, items: list[_Node]) -> _Node:
        left, name, word = items
        evaluate = _property_of(left, str(name))
        test, part = _TEXT_TESTS[str(name).upper()], _unquoted(str(word))

        def tested(properties: Properties) -> bool | None:
            value = evaluate(properties)
            return test(value, part) if isinstance(value, str) else None

        return _deeper(tested, left)

    def not_text_test(self, items: list[_Node]) -> _Node:
        return self.negation([self.text_test(items)])

    def is_null(self, items: list[_Node]) -> _Node:
        evaluate = items[0].evaluate
        return _deeper(lambda properties: evaluate(properties) is None, items[0])

    def is_not_null(self, items: list[_Node]) -> _Node:
        evaluate = items[0].evaluate
        return _deeper(lambda properties: evaluate(properties) is not None, items[0])

    def plus(self, items: list[_Node]) -> _Node:
        return _number_of(items[0])

    def minus(self, items: list[_Node]) -> _Node:
        inner = _number_of(items[0])
        if inner.kind == "number":
            value = _number(inner.value)
            return _literal("number", None if value is None else -value)

        def negative(properties: Properties) -> Value:
            value = _number(inner.evaluate(properties))
            return None if value is None else -value

        return _Node(negative, "property", inner.depth + 1)

    def text(self, items: list[lark.Token]) -> _Node:
        return _literal("text", _unquoted(str(items[0])))

    def float_(self, items: list[lark.Token]) -> _Node:
        return _literal("number", float(_short(items[0])))

    def integer(self, items: list[lark.Token]) -> _Node:
        return _literal("number", int(_short(items[0]).rstrip("lL")))

    def true(self, _items: list[lark.Token]) -> _Node:
        return _literal("truth", True)

    def false(self, _items: list[lark.Token]) -> _Node:
        return _literal("truth", False)

    def null(self, _items: list[lark.Token]) -> _Node:
        return _literal("null", None)

    def property(self, items: list[lark.Token]) -> _Node:
        name = str(items[0])
        return _Node(lambda properties: properties.get(name), "property")


def _literal(kind: str, value: Value) -> _Node:
    return _Node(lambda _properties: value, kind, 1, value)


def _deeper(evaluate: _Evaluate, *inner: _Node) -> _Node:
    depth = 1 + max(node.depth for node in inner)
    if depth > DEPTH_MAX:
        raise _Refusal(f"more than {DEPTH_MAX} levels deep")
    return _Node(evaluate, "condition", depth)


def _condition(node: _Node) -> _Node:
    """Returns a node as a condition: of literals only TRUE, FALSE and NULL are one."""
    if node.kind in ("condition", "truth", "null"):
        return node
    if node.kind != "property":
        raise _Refusal(f"{node.value!r} is no condition")
    evaluate = node.evaluate
    return _Node(lambda properties: _truth(evaluate(properties)), "condition", node.depth + 1)


def _compared(left: _Node, sign: str, right: _Node) -> _Node:
    first, second = left.evaluate, right.evaluate
    if sign in ("=", "<>"):
        for node in (left, right):
            if node.kind == "null":
                raise _Refusal("NULL cannot be compared; use IS NULL")
        if sign == "=":
            return _deeper(lambda p: _equal(first(p), second(p)), left, right)
        return _deeper(lambda p: _inverse(_equal(first(p), second(p))), left, right)
    for node in (left, right):
        if node.kind not in ("property", "number"):
            raise _Refusal(f"only numbers and properties can be compared by {sign}")
    order = _ORDER[sign]

    def evaluate(properties: Properties) -> bool | None:
        a, b = _number(first(properties)), _number(second(properties))
        return None if a is None or b is None else order(a, b)

    return _deeper(evaluate, left, right)


def _property_of(node: _Node, operator: str) -> _Evaluate:
    if node.kind != "property":
        raise _Refusal(f"{operator} needs a property on its left")
    return node.evaluate


def _number_of(node: _Node) -> _Node:
    if node.kind not in ("property", "number"):
        raise _Refusal("a sign needs a number or a property")
    if node.depth >= DEPTH_MAX:
        raise _Refusal(f"more than {DEPTH_MAX} levels deep")
    return node


def _short(token: lark.Token) -> str:
    if len(token) > NUMBER_LENGTH_MAX:
        raise _Refusal(f"a number of {len(token)} characters")
    return str(token)


def _unquoted(token: str) -> str:
    return token[1:-1].replace("''", "'")


@functools.cache
def _parser() -> lark.Lark:
    # The basic lexer: keywords are reserved everywhere, as they are in the original.
    return lark.Lark(_GRAMMAR, parser="lalr", lexer="basic", transformer=_Compiler())


@functools.lru_cache(maxsize=1024)
def compile_sql(expression: str) -> SqlFilter:
    """Returns the compiled condition; the same object for the same text.

    Raises:
        SubscriptionParseError: Not a condition of the grammar, too long or too deep; the text
            says where.
    """
    if len(expression) > EXPRESSION_LENGTH_MAX:
        raise SubscriptionParseError(
            f"SQL filter of {len(expression)} characters exceeds {EXPRESSION_LENGTH_MAX}"
        )
    try:
        # The transformer makes the tree while it is parsed, which the types of lark do not say.
        node: object = _parser().parse(expression)
        if not isinstance(node, _Node):
            raise _Refusal("no condition")
        return SqlFilter(expression, _condition(node).evaluate)
    except _Refusal as error:
        raise SubscriptionParseError(f"SQL filter {expression!r}: {error}") from None
    except lark.exceptions.VisitError as error:
        raise SubscriptionParseError(f"SQL filter {expression!r}: {error.orig_exc}") from None
    except lark.exceptions.UnexpectedInput as error:
        place = f"line {error.line}, column {error.column}" if error.column > 0 else "its end"
        raise SubscriptionParseError(f"SQL filter {expression!r}: unexpected at {place}") from None
