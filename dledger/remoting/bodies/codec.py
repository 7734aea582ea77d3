"""Decoding shared by all bodies."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from dledger.errors import MalformedBodyError
from dledger.remoting.lenient_json import parse_lenient_json

_T = TypeVar("_T")


def decode_json(data: bytes, type_: type[_T]) -> _T:
    """Decodes strictly first, then once more with all that other implementations do."""
    try:
        return msgspec.json.decode(data, type=type_, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    value = _without_nulls(parse_lenient_json(data))
    try:
        return msgspec.convert(value, type_, strict=False, str_keys=True)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise MalformedBodyError(f"body does not fit: {exc}") from exc


def encode_without_nulls(body: msgspec.Struct) -> bytes:
    """Encodes a body, leaving out the fields that are `None`, as Java writers do."""
    fields = msgspec.to_builtins(body)
    return msgspec.json.encode({name: item for name, item in fields.items() if item is not None})


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value if item is not None]
    return value
