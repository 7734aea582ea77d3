"""Settings that can be changed while the broker runs (UPDATE_BROKER_CONFIG).

There are two kinds. What concerns one replica is changed in its memory and lasts until it stops.
What must be the same in the whole group is a log entry and a row of the state: it holds on every
replica, through fail-over and restarts, before `broker.toml`, until it is set to `default`.

Row in `settings`: name -> value, as texts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Final

import msgspec

from broker.config import BrokerConfig
from dledger.config import change_config
from dledger.errors import ConfigError, InvalidParameterError
from store.state_rows import SETTINGS, RowChanges, RowReader

logger = logging.getLogger(__name__)

DEFAULT: Final = "default"
_TEXT_MAX: Final = 255
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=_TEXT_MAX)]


class Scope(Enum):
    """Whom a setting concerns."""

    REPLICA = "this replica, until it stops"
    GROUP = "the group, replicated"


# Only what is looked at anew each time it is used can be changed.
CHANGEABLE: Final[Mapping[str, Scope]] = MappingProxyType(
    {
        "log_level": Scope.REPLICA,
        "store.retention_free_bytes": Scope.REPLICA,
        "limits.pull_bytes_max": Scope.REPLICA,
        "limits.pull_count_max": Scope.REPLICA,
        "auto_create_topics": Scope.GROUP,
        "auto_create_groups": Scope.GROUP,
        "default_queue_count": Scope.GROUP,
        "young_queue_bytes": Scope.GROUP,
        "limits.topics_max": Scope.GROUP,
        "limits.groups_max": Scope.GROUP,
        "limits.queue_count_max": Scope.GROUP,
        "store.retention_hours": Scope.GROUP,
        "store.retention_bytes": Scope.GROUP,
        "timers.recall_enable": Scope.GROUP,
    }
)


class PutSettings(msgspec.Struct, frozen=True, array_like=True):
    """Sets settings of the group; `default` removes one. Result: how many changed."""

    values: list[tuple[_Text, _Text]]


def apply_settings(rows: RowChanges, command: PutSettings) -> int:
    """Applies a `PutSettings`; deterministic."""
    changed = 0
    for name, value in command.values:
        key = name.encode()
        held = rows.get(SETTINGS, key)
        new = None if value == DEFAULT else value.encode()
        if held == new:
            continue
        changed += 1
        if new is None:
            rows.delete(SETTINGS, key)
        else:
            rows.put(SETTINGS, key, new)
    return changed


class LiveSettings:
    """What holds on this replica: its file, what the group has set, what was set here."""

    def __init__(self, base: BrokerConfig, rows: RowReader) -> None:
        self._base = base
        self._rows = rows
        self._local: dict[str, str] = {}

    def current(self) -> BrokerConfig:
        """Returns the settings as they hold now."""
        config = self._base
        stored = {key.decode(): value.decode() for key, value in self._rows.scan(SETTINGS, b"")}
        for name, value in {**stored, **self._local}.items():
            try:
                config = change_config(config, {name: value})
            except ConfigError as error:
                # Stored by a program of another version: better the file's value than none.
                logger.warning("a changed setting is ignored: %s", error)
        return config

    def check(self, changes: Mapping[str, str]) -> Scope:
        """Checks that settings can be changed like that, together.

        Returns:
            Whom they concern.

        Raises:
            InvalidParameterError: One cannot be changed, has a bad value, or they are not of one
                kind; nothing was changed.
        """
        scopes: set[Scope] = set()
        for name, value in changes.items():
            scope = CHANGEABLE.get(name)
            if scope is None:
                raise InvalidParameterError(
                    f"{name[:80]} cannot be changed while the broker runs; these can: "
                    f"{', '.join(CHANGEABLE)}"
                )
            if not 0 < len(value) <= _TEXT_MAX:
                raise InvalidParameterError(f"{name} must have 1 to {_TEXT_MAX} characters")
            scopes.add(scope)
        if len(scopes) != 1:
            text = "give at least one setting, and those of a replica apart from those of the group"
            raise InvalidParameterError(text)
        values = {name: value for name, value in changes.items() if value != DEFAULT}
        try:
            change_config(self.current(), values)
        except ConfigError as error:
            raise InvalidParameterError(str(error)) from error
        return scopes.pop()

    def set_here(self, changes: Mapping[str, str]) -> None:
        """Changes checked settings of this replica."""
        for name, value in changes.items():
            if value == DEFAULT:
                self._local.pop(name, None)
            else:
                self._local[name] = value


def parse_properties(text: str) -> dict[str, str]:
    """Returns the `name=value` lines of a text in Java's properties form.

    Raises:
        InvalidParameterError: A line has another form.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line[0] in "#!":
            continue
        name, separator, value = line.partition("=")
        if not separator or not name.strip():
            raise InvalidParameterError(f"{line[:80]!r} is not name=value")
        found[name.strip()] = value.strip().replace("\\:", ":").replace("\\=", "=")
    return found
