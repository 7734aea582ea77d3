"""Messages of one request that are alike, on their way into the log by column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from struct import Struct
from typing import Final

from dledger.message import StoredRun
from store import state_keys as keys

UNIQUE_KEY_BYTES_MAX: Final = keys.KEY_BYTES_MAX


class MessageRun:
    """What is appended of a batch of messages that differ in body and unique key only.

    It says the same as an `EncodedMessage` for each of them would.

    Attributes:
        tag_hash: Of the tag of all of them, 0 without one.
        unique_keys: One for each message.
        stored_bytes: Of all messages.
        stem_bytes: Length of the index key of each, without the physical offset.
    """

    __slots__ = ("_stored", "stem_bytes", "stored_bytes", "tag_hash", "unique_keys")

    def __init__(self, stored: StoredRun, tag_hash: int, unique_keys: Sequence[bytes]) -> None:
        """Makes a run.

        Args:
            stored: The messages.
            tag_hash: Of the tag of all of them, 0 without one.
            unique_keys: One for each message, all of one length and not longer than
                `UNIQUE_KEY_BYTES_MAX`.
        """
        self._stored = stored
        self.tag_hash = tag_hash
        self.unique_keys = unique_keys
        self.stored_bytes = stored.size_bytes
        self.stem_bytes = keys.STEM_HEAD.size + len(unique_keys[0])

    def __len__(self) -> int:
        return len(self.unique_keys)

    @property
    def first_bytes(self) -> int:
        """Size of the first message."""
        return self._stored.sizes[0]

    def positions(self, first: int) -> list[int]:
        """Returns the physical offset of each message, if the first one is at this."""
        return self._stored.positions(first)

    def pieces(
        self, first_queue_offset: int, positions: Sequence[int], store_timestamp_ms: int
    ) -> Iterator[bytes]:
        """Yields the messages as stored, in pieces."""
        return self._stored.pieces(first_queue_offset, positions, store_timestamp_ms)

    def units(self, positions: Iterable[int]) -> Iterator[bytes]:
        """Yields the ConsumeQueue unit of each message."""
        return map(keys.UNIT.pack, positions, self._stored.sizes, repeat(self.tag_hash))

    def index_records(
        self, topic_id: int, positions: Iterable[int], store_timestamp_ms: int
    ) -> Iterator[bytes]:
        """Yields the key index record of each message."""
        key_bytes = len(self.unique_keys[0])
        stem = keys.key_stem(topic_id, self.unique_keys[0], unique=True)
        record = Struct(f">{keys.STEM_HEAD.size}s{key_bytes}sQQ")
        return map(
            record.pack,
            repeat(stem[: keys.STEM_HEAD.size]),
            self.unique_keys,
            positions,
            repeat(store_timestamp_ms),
        )
