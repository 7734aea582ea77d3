from __future__ import annotations

import pytest

from dledger.errors import FlowControlError, InvalidParameterError, NotFoundError
from nameserver import key_values
from nameserver.key_values import KeyValueTable


def test_put_get_delete() -> None:
    table = KeyValueTable({"ns": {"a": "1"}, "empty": {}})
    table.put("ns", "b", "2")
    table.put("ns", "b", "3")
    table.put("other", "b", "")
    assert table.get("ns", "b") == "3"
    assert table.get("other", "b") == ""
    assert table.namespace("ns") == {"a": "1", "b": "3"}
    assert table.tables() == {"ns": {"a": "1", "b": "3"}, "other": {"b": ""}}
    assert table.delete("other", "b")
    assert not table.delete("other", "b")
    with pytest.raises(NotFoundError):
        table.namespace("other")
    with pytest.raises(NotFoundError):
        table.get("ns", "c")
    assert repr(table) == "<KeyValueTable namespaces=1 entries=2>"


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_values, "ENTRIES_MAX", 1)
    table = KeyValueTable()
    table.put("ns", "a", "1")
    table.put("ns", "a", "2")
    with pytest.raises(FlowControlError):
        table.put("ns", "b", "1")
    for namespace, key, value in (("", "k", "v"), ("n", "", "v"), ("n", "k" * 2000, "v")):
        with pytest.raises(InvalidParameterError):
            table.put(namespace, key, value)
    with pytest.raises(InvalidParameterError, match="value"):
        table.put("n", "k", "v" * (key_values.VALUE_LENGTH_MAX + 1))
