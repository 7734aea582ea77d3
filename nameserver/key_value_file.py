"""Keeps the key-value table in a JSON file."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from dledger.errors import ConfigError, DiskFailureError
from nameserver.key_values import KeyValueTable

logger = logging.getLogger(__name__)

FILE_BYTES_MAX = 64 * 1024 * 1024


class KeyValueFile:
    """One file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> KeyValueTable:
        """Returns the table; empty if there is no file.

        Raises:
            ConfigError: The file cannot be read or is not such a table.
        """
        try:
            with self._path.open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return KeyValueTable()
        except OSError as error:
            rule = f"cannot be read: {error.strerror or error}"
            raise ConfigError("key-value file", str(self._path), rule) from error
        try:
            content = json.loads(raw) if len(raw) <= FILE_BYTES_MAX else None
        except ValueError:
            content = None
        if not _is_table(content):
            raise ConfigError("key-value file", str(self._path), "must be a table of texts")
        return KeyValueTable(content)

    def save(self, table: KeyValueTable) -> None:
        """Replaces the file.

        Durability: synced on return.

        Raises:
            DiskFailureError: It could not be written; the old file stays.
        """
        temporary = self._path.with_suffix(".new")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(table.tables(), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise DiskFailureError(f"cannot write {self._path}: {error}") from error


def _is_table(content: object) -> bool:
    return isinstance(content, dict) and all(
        isinstance(table, dict)
        and all(isinstance(key, str) and isinstance(value, str) for key, value in table.items())
        for table in content.values()
    )
