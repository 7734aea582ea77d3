"""Loads frozen configuration records: defaults < TOML file < environment < overrides.

A component describes its configuration as a frozen, keyword-only dataclass whose fields may be
`int`, `float`, `bool`, `str`, `pathlib.Path`, enums, `Literal`s, `X | None`, `list[X]`,
`tuple[X, ...]`, `dict[str, X]` and further dataclasses. `load_config` fills it and refuses what it
does not know, with the nearest known name: a misspelt key that is silently ignored is a default
that nobody asked for.

Each class checks its own fields in `__post_init__` and raises `ConfigError`; the loader prefixes
the path, so that the text names `store.segment_bytes` and not merely `segment_bytes`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from dledger.errors import ConfigError

T = TypeVar("T")

FILE_BYTES_MAX = 1024 * 1024
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


def load_config(
    cls: type[T],
    path: str | Path | None = None,
    *,
    env_prefix: str | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> T:
    """Builds a configuration record from all its sources; the later one wins.

    Args:
        cls: A dataclass, normally frozen and keyword-only.
        path: TOML file of at most `FILE_BYTES_MAX`; `None` means no file.
        env_prefix: `"DLEDGER_BROKER"` makes `DLEDGER_BROKER__STORE__SEGMENT_BYTES` set
            `store.segment_bytes`; `None` ignores the environment.
        overrides: Values of the highest rank, nested or with dotted names. A value `None` means
            "not given". Strings are parsed like those of the environment.
        environ: The environment; by default the process's own.

    Returns:
        The record, with every field checked.

    Raises:
        ConfigError: Something is unknown, missing, of the wrong type or breaks a rule.
    """
    merged: dict[str, Any] = {}
    if path is not None:
        _merge(merged, read_toml(path))
    if env_prefix is not None:
        _merge(merged, _from_environment(env_prefix, os.environ if environ is None else environ))
    if overrides:
        _merge(merged, _from_overrides(overrides))
    return build_config(cls, merged)


def build_config(cls: type[T], values: Mapping[str, object]) -> T:
    """Builds a configuration record from nested plain values, as TOML gives them.

    Raises:
        ConfigError: As `load_config`.
    """
    return typing.cast("T", _build(cls, values, ""))


def change_config(config: T, changes: Mapping[str, str]) -> T:
    """Returns a configuration record with other values.

    Args:
        config: A record of dataclasses.
        changes: Texts by dotted names: `{"store.retention_hours": "12"}`.

    Raises:
        ConfigError: There is no such field, or the value breaks a rule.
    """
    for name, text in changes.items():
        head, _, rest = name.partition(".")
        record: Any = config
        if head not in {field.name for field in dataclasses.fields(record)}:
            raise ConfigError(name, text, "is not known")
        if rest:
            value = change_config(getattr(config, head), {rest: text})
        else:
            value = _parse(typing.get_type_hints(type(config))[head], text, name)
        config = dataclasses.replace(record, **{head: value})
    return config


def flatten_config(config: object, at: str = "") -> Iterator[tuple[str, str]]:
    """Yields the fields of a configuration record by dotted name, as texts.

    Records within are flattened too; lists become their items joined by `;`.
    """
    record: Any = config
    for field in dataclasses.fields(record):
        name = f"{at}{field.name}"
        item = getattr(record, field.name)
        if dataclasses.is_dataclass(item):
            yield from flatten_config(item, f"{name}.")
        elif isinstance(item, list):
            yield name, ";".join(str(getattr(part, "address", part)) for part in item)
        else:
            yield name, str(item).lower() if isinstance(item, bool) else str(item)


def read_toml(path: str | Path) -> dict[str, object]:
    """Returns the content of a TOML file.

    Raises:
        ConfigError: The file cannot be read, is too large or is not TOML.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError("config file", str(path), f"cannot be read: {reason}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError("config file", str(path), f"must be at most {FILE_BYTES_MAX} bytes")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("config file", str(path), f"is not valid TOML: {error}") from error


def render_toml(values: Mapping[str, object]) -> str:
    """Returns plain nested values as TOML text that `read_toml` gives back.

    Args:
        values: Strings, numbers, booleans, lists of these, mappings, and lists of mappings. `None`
            is left out, since TOML has no such value.
    """
    lines: list[str] = []
    _render_table(lines, "", values)
    return "\n".join(lines) + "\n"


# --- sources ------------------------------------------------------------------------------------


class _Text(str):
    """A value that came as text (environment, command line) and is parsed by the field's type."""

    __slots__ = ()


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for name, value in new.items():
        existing = into.get(name)
        if isinstance(existing, dict) and isinstance(value, Mapping):
            _merge(existing, value)
        elif isinstance(value, Mapping):
            copy: dict[str, Any] = {}
            _merge(copy, value)
            into[name] = copy
        else:
            into[name] = value


def _put(into: dict[str, Any], names: list[str], value: object, source: str) -> None:
    for name in names[:-1]:
        into = into.setdefault(name, {})
        if not isinstance(into, dict):
            raise ConfigError(source, value, "names a value and a table at once")
    into[names[-1]] = value


def _from_environment(prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    start = prefix + "__"
    found: dict[str, Any] = {}
    for name in sorted(environ):
        if name.startswith(start):
            parts = name[len(start) :].lower().split("__")
            if not all(parts):
                raise ConfigError(name, environ[name], "has an empty part in its name")
            _put(found, parts, _Text(environ[name]), name)
    return found


def _from_overrides(overrides: Mapping[str, object]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in overrides.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            value = _from_overrides(value)
        elif isinstance(value, str):
            value = _Text(value)
        nested: dict[str, Any] = {}
        _put(nested, name.split("."), value, name)
        _merge(found, nested)
    return found


# --- building -----------------------------------------------------------------------------------


def _build(cls: type[Any], values: object, at: str) -> object:
    if not isinstance(values, Mapping):
        raise ConfigError(at or "configuration", values, "must be a table")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in values:
        if name not in fields:
            raise ConfigError(_join(at, str(name)), values[name], _unknown(str(name), list(fields)))
    arguments: dict[str, object] = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], _join(at, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(_join(at, name), None, "is required")
    try:
        return cls(**arguments)
    except ConfigError as error:
        if not at:
            raise
        raise ConfigError(_join(at, error.field), error.value, error.rule) from error


def _convert(kind: Any, value: object, at: str) -> object:
    if isinstance(value, _Text):
        return _parse(kind, value, at)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(kind, value, at)
    if origin in (list, tuple):
        return _convert_list(kind, value, at)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(at, value, "must be a table")
        of = typing.get_args(kind)[1]
        return {str(k): _convert(of, v, _join(at, str(k))) for k, v in value.items()}
    if origin is typing.Literal:
        return _choose(typing.get_args(kind), value, at)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build(kind, value, at)
    if isinstance(kind, type) and issubclass(kind, Enum):
        chosen = _choose(tuple(member.value for member in kind), value, at)
        return kind(chosen)
    return _convert_plain(kind, value, at)


def _convert_plain(kind: Any, value: object, at: str) -> object:
    if kind is Any or kind is object:
        return value
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(at, value, "must be true or false")
    if kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ConfigError(at, value, "must be a whole number")
    if kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise ConfigError(at, value, "must be a number")
    if kind is str:
        if isinstance(value, str):
            return str(value)
        raise ConfigError(at, value, "must be a string")
    if kind is Path:
        if isinstance(value, (str, Path)):
            return Path(value)
        raise ConfigError(at, value, "must be a path")
    raise TypeError(f"{at}: a configuration field cannot be of type {kind!r}")


def _convert_union(kind: Any, value: object, at: str) -> object:
    options = [option for option in typing.get_args(kind) if option is not types.NoneType]
    if value is None and len(options) < len(typing.get_args(kind)):
        return None
    last: ConfigError | None = None
    for option in options:
        try:
            return _convert(option, value, at)
        except ConfigError as error:
            last = error
    if last is None:
        raise TypeError(f"{at}: a configuration field cannot be of type {kind!r}")
    raise last


def _convert_list(kind: Any, value: object, at: str) -> object:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise ConfigError(at, value, "must be a list")
    of = typing.get_args(kind)[0]
    items = [_convert(of, item, f"{at}[{number}]") for number, item in enumerate(value)]
    return tuple(items) if typing.get_origin(kind) is tuple else items


def _parse(kind: Any, text: str, at: str) -> object:
    """Parses a value that came as text. `str(text)` drops the marker class."""
    plain = str(text).strip()
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        arguments = typing.get_args(kind)
        if types.NoneType in arguments and plain.lower() in ("", "none"):
            return None
        return _convert_union(kind, text, at)
    if origin in (list, tuple):
        if plain.startswith("["):
            return _convert(kind, _parse_toml_value(plain, at), at)
        return _convert_list(kind, [_Text(p) for p in plain.split(",") if p.strip()], at)
    if origin is dict or dataclasses.is_dataclass(kind):
        return _convert(kind, _parse_toml_value(plain, at), at)
    if kind is bool:
        lowered = plain.lower()
        if lowered not in _TRUE | _FALSE:
            raise ConfigError(at, plain, "must be true or false")
        return lowered in _TRUE
    try:
        if kind is int:
            return int(plain)
        if kind is float:
            return float(plain)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise ConfigError(at, plain, f"must be {noun}") from None
    return _convert(kind, plain, at)


def _parse_toml_value(text: str, at: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(at, text, f"is not a valid TOML value: {error}") from error


def _choose(known: tuple[Any, ...], value: object, at: str) -> object:
    for option in known:
        if value == option and type(value) is type(option):
            return option
        if isinstance(value, str) and not isinstance(option, str) and value == str(option):
            return option
    names = ", ".join(str(option) for option in known)
    raise ConfigError(at, value, f"must be one of {names}")


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    if near:
        return f"is unknown; did you mean {near[0]}?"
    return f"is unknown; known here: {', '.join(sorted(known))}"


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


# --- rendering ----------------------------------------------------------------------------------


def _render_table(lines: list[str], at: str, values: Mapping[str, object]) -> None:
    tables: list[tuple[str, Mapping[str, object]]] = []
    arrays: list[tuple[str, list[Mapping[str, object]]]] = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            tables.append((name, value))
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            arrays.append((name, list(value)))
        else:
            lines.append(f"{_render_key(name)} = {_render_value(value)}")
    for name, table in tables:
        path = _join(at, _render_key(name))
        lines.extend(["", f"[{path}]"])
        _render_table(lines, path, table)
    for name, array in arrays:
        path = _join(at, _render_key(name))
        for table in array:
            lines.extend(["", f"[[{path}]]"])
            _render_table(lines, path, table)


def _render_key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _render_string(name)


def _render_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, Path)):
        return _render_string(str(value))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_render_value(item) for item in value) + "]"
    raise TypeError(f"TOML has no form for {type(value).__name__}")


def _render_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(_escape(character) for character in escaped) + '"'


def _escape(character: str) -> str:
    if ord(character) < 0x20 or ord(character) == 0x7F:
        return f"\\u{ord(character):04x}"
    return character
