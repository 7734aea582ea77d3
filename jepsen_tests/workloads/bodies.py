"""Message bodies that carry a value and show if a single bit of them changed."""

from __future__ import annotations

from jepsen_tests.history import Value

VALUE_BYTES = 8


def body_of(value: int, size_bytes: int) -> bytes:
    """Returns a body: the value, repeated."""
    head = value.to_bytes(VALUE_BYTES, "big")
    return (head * (size_bytes // VALUE_BYTES + 1))[: max(size_bytes, VALUE_BYTES)]


def value_of(body: bytes) -> Value:
    """Returns the value in a body; for a damaged one a text that nobody can have written."""
    value = int.from_bytes(body[:VALUE_BYTES], "big")
    if len(body) >= VALUE_BYTES and value < 1 << 63 and body == body_of(value, len(body)):
        return value
    return f"damaged:{body[:32].hex()}"
