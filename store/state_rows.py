"""Small tables of the state that features keep beside messages: plain rows of bytes in LMDB.

A feature owns one database and what its keys and values mean; this module only gives it a view of
its rows inside a write batch, in which it sees what the batch has changed already, so that applying
a log entry may read, decide and write.
"""

from __future__ import annotations

from typing import Final

from store.lmdb_env import LmdbEnvironment, WriteTransaction

LOCKS: Final = "locks"
TRANSACTIONS: Final = "transactions"
OFFSET_RESETS: Final = "offset_resets"
POP: Final = "pop"
SETTINGS: Final = "settings"
ROW_DATABASES: Final = (LOCKS, TRANSACTIONS, OFFSET_RESETS, POP, SETTINGS)

_ROW_ROOM_BYTES: Final = 4096  # one touched page for each changed row, as an estimate


class RowReader:
    """Reads rows as committed. One LMDB read transaction for each call."""

    def __init__(self, environment: LmdbEnvironment) -> None:
        self._environment = environment

    def get(self, database: str, key: bytes) -> bytes | None:
        """Returns the value of a key, or None."""
        with self._environment.read() as transaction:
            return transaction.get(key, db=self._environment.databases[database])

    def scan(
        self, database: str, prefix: bytes, *, start: bytes = b"", limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Returns the rows whose keys begin with a prefix, in order of their keys.

        Args:
            database: One of `ROW_DATABASES`.
            prefix: May be empty: all rows.
            start: Begin with this key, prefix included, or the next one after it.
            limit: At most so many.
        """
        rows: list[tuple[bytes, bytes]] = []
        with self._environment.read() as transaction:
            cursor = transaction.cursor(self._environment.databases[database])
            begin = max(prefix, start)
            found = cursor.set_range(begin) if begin else cursor.first()
            while found and (limit is None or len(rows) < limit):
                key, value = cursor.item()
                if not key.startswith(prefix):
                    break
                rows.append((bytes(key), bytes(value)))
                found = cursor.next()
        return rows


class RowChanges:
    """Rows as one write batch sees and changes them."""

    def __init__(self, environment: LmdbEnvironment) -> None:
        self._environment = environment
        self._reader = RowReader(environment)
        # By database and key. None: deleted.
        self._changes: dict[str, dict[bytes, bytes | None]] = {
            database: {} for database in ROW_DATABASES
        }

    def get(self, database: str, key: bytes) -> bytes | None:
        """Returns the value of a key as this batch has made it, or None."""
        changes = self._changes[database]
        return changes[key] if key in changes else self._reader.get(database, key)

    def put(self, database: str, key: bytes, value: bytes) -> None:
        """Sets a row."""
        self._changes[database][key] = value

    def delete(self, database: str, key: bytes) -> None:
        """Removes a row, if there is one."""
        self._changes[database][key] = None

    def scan(
        self, database: str, prefix: bytes, *, start: bytes = b"", limit: int
    ) -> list[tuple[bytes, bytes]]:
        """Returns rows by prefix in order of their keys, as this batch has made them.

        Args: as `RowReader.scan`.
        """
        changed = {
            key: value
            for key, value in self._changes[database].items()
            if key.startswith(prefix) and key >= start
        }
        # Changed rows may be gone: read so many more.
        stored = self._reader.scan(database, prefix, start=start, limit=limit + len(changed))
        rows = dict(stored)
        for key, value in changed.items():
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        return sorted(rows.items())[:limit]

    @property
    def bytes_estimate(self) -> int:
        """About how many bytes of pages the changes touch."""
        return sum(
            _ROW_ROOM_BYTES + 2 * len(value or b"")
            for changes in self._changes.values()
            for value in changes.values()
        )

    def execute(self, transaction: WriteTransaction) -> None:
        """Writes the changes."""
        for name, changes in self._changes.items():
            database = self._environment.databases[name]
            for key, value in sorted(changes.items(), key=lambda item: item[0]):
                if value is None:
                    transaction.delete(key, db=database)
                else:
                    transaction.put(key, value, db=database)
