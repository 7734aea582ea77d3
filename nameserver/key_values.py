"""The key-value configuration that admin tools keep in a nameserver: pure, without I/O."""

from __future__ import annotations

from collections.abc import Mapping

from dledger.errors import FlowControlError, InvalidParameterError, NotFoundError

WRITE_WIPED_NAMESPACE = "DLEDGER_WRITE_WIPED"
ENTRIES_MAX = 100_000
NAME_LENGTH_MAX = 1024
VALUE_LENGTH_MAX = 64 * 1024


class KeyValueTable:
    """Values by namespace and key."""

    def __init__(self, tables: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._tables = {name: dict(table) for name, table in (tables or {}).items() if table}
        self._count = sum(len(table) for table in self._tables.values())

    def __repr__(self) -> str:
        return f"<KeyValueTable namespaces={len(self._tables)} entries={self._count}>"

    def put(self, namespace: str, key: str, value: str) -> None:
        """Sets a value.

        Raises:
            InvalidParameterError: A name is empty or something is too long.
            FlowControlError: The table holds `ENTRIES_MAX` entries.
        """
        for name, text in (("namespace", namespace), ("key", key)):
            if not text or len(text) > NAME_LENGTH_MAX:
                raise InvalidParameterError(f"{name} must have 1 to {NAME_LENGTH_MAX} characters")
        if len(value) > VALUE_LENGTH_MAX:
            raise InvalidParameterError(f"value must have at most {VALUE_LENGTH_MAX} characters")
        is_new = key not in self._tables.get(namespace, {})
        if is_new and self._count >= ENTRIES_MAX:
            raise FlowControlError(f"{ENTRIES_MAX} key-value entries reached")
        self._tables.setdefault(namespace, {})[key] = value
        self._count += is_new

    def get(self, namespace: str, key: str) -> str:
        """Returns a value.

        Raises:
            NotFoundError: There is none.
        """
        value = self._tables.get(namespace, {}).get(key)
        if value is None:
            raise NotFoundError(f"No config item, Namespace: {namespace} Key: {key}")
        return value

    def find(self, namespace: str, key: str) -> str | None:
        """Returns a value, or `None`."""
        return self._tables.get(namespace, {}).get(key)

    def delete(self, namespace: str, key: str) -> bool:
        """Removes a value; returns whether there was one."""
        table = self._tables.get(namespace, {})
        if table.pop(key, None) is None:
            return False
        self._count -= 1
        if not table:
            del self._tables[namespace]
        return True

    def namespace(self, namespace: str) -> dict[str, str]:
        """Returns all values of a namespace.

        Raises:
            NotFoundError: There are none.
        """
        table = self._tables.get(namespace)
        if not table:
            raise NotFoundError(f"No config item, Namespace: {namespace}")
        return dict(table)

    def tables(self) -> dict[str, dict[str, str]]:
        """Returns a copy of everything."""
        return {name: dict(table) for name, table in self._tables.items()}
