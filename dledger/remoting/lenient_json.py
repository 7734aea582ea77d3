"""A JSON reader that also takes what Java servers write: bare numbers and objects as keys.

The fast reader is always tried first. The tolerant one is linear in its input and refuses nesting
deeper than any real body has.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import msgspec

from dledger.errors import MalformedBodyError

_DEPTH_MAX = 64
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.-]*")
_LITERALS = {"true": True, "false": False, "null": None}


def parse_lenient_json(data: bytes) -> Any:
    """Returns the value of a JSON text whose map keys may be bare numbers, words or objects.

    Returns:
        Keys are always strings: a bare number by its digits, an object by its compact JSON.

    Raises:
        MalformedBodyError: Not JSON even so, not UTF-8, or nested more than 64 deep.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        text = data.decode()
        value, at = _value(text, _skip(text, 0), 0)
    except (ValueError, IndexError) as exc:
        raise MalformedBodyError(f"body is not JSON: {exc}") from exc
    if _skip(text, at) != len(text):
        raise MalformedBodyError(f"body is not JSON: more text at character {at}")
    return value


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if depth > _DEPTH_MAX:
        raise ValueError(f"nested more than {_DEPTH_MAX} deep")
    first = text[at]
    if first == "{":
        return _object(text, at + 1, depth)
    if first == "[":
        return _array(text, at + 1, depth)
    if first == '"':
        string, stop = scanstring(text, at + 1, False)
        return string, stop
    if match := _NUMBER.match(text, at):
        digits = match.group()
        if match.group(1) or match.group(2):
            return float(digits), match.end()
        return int(digits), match.end()
    if (match := _WORD.match(text, at)) and match.group() in _LITERALS:
        return _LITERALS[match.group()], match.end()
    raise ValueError(f"unexpected {first!r} at character {at}")


def _key(text: str, at: int, depth: int) -> tuple[str, int]:
    if text[at] in '"{[':
        value, stop = _value(text, at, depth + 1)
        if isinstance(value, str):
            return value, stop
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False), stop
    if match := (_NUMBER.match(text, at) or _WORD.match(text, at)):
        return match.group(), match.end()
    raise ValueError(f"unexpected {text[at]!r} as a key at character {at}")


def _object(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    result: dict[str, Any] = {}
    at = _skip(text, at)
    if text[at] == "}":
        return result, at + 1
    while True:
        key, at = _key(text, at, depth)
        at = _skip(text, at)
        if text[at] != ":":
            raise ValueError(f"unexpected {text[at]!r} at character {at}, expected a colon")
        result[key], at = _value(text, _skip(text, at + 1), depth + 1)
        at = _skip(text, at)
        if text[at] == "}":
            return result, at + 1
        if text[at] != ",":
            raise ValueError(f"unexpected {text[at]!r} at character {at}, expected a comma")
        at = _skip(text, at + 1)


def _array(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    result: list[Any] = []
    at = _skip(text, at)
    if text[at] == "]":
        return result, at + 1
    while True:
        value, at = _value(text, at, depth + 1)
        result.append(value)
        at = _skip(text, at)
        if text[at] == "]":
            return result, at + 1
        if text[at] != ",":
            raise ValueError(f"unexpected {text[at]!r} at character {at}, expected a comma")
        at = _skip(text, at + 1)
