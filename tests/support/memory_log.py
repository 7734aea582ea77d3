"""A log in memory for tests of the Raft layer: durability and room are the test's to decide."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dledger.errors import DiskFullError, RemoteProtocolError, StoreError

HEADER = struct.Struct(">IQQI")


class MemoryEntry(NamedTuple):
    index: int  # type: ignore[assignment]
    term: int
    body: bytes
    record: bytes


def entry(index: int, term: int, body: bytes) -> MemoryEntry:
    header = HEADER.pack(len(body), index, term, zlib.crc32(body))
    return MemoryEntry(index, term, bytes(body), header + bytes(body))


class MemoryLog:
    """`LogStorage` over a list. `sync_delay_s=None` makes entries durable only by `sync()`."""

    record_header_bytes = HEADER.size

    def __init__(self, sync_delay_s: float | None = 0.0) -> None:
        self.entries: list[MemoryEntry] = []
        self.first_index = 1
        self.offset_min = 0
        self.durable_index = 0
        self.term = 0
        self.voted_for: str | None = None
        self.members: bytes | None = None
        self.votes: list[tuple[int, str | None]] = []
        self.sync_delay_s = sync_delay_s
        self.full = False
        self.truncations: list[tuple[int, int]] = []
        self._durable: list[Callable[[int], None]] = []
        self._failure: list[Callable[[StoreError], None]] = []
        self._syncing = False

    @property
    def last_index(self) -> int:
        return self.first_index - 1 + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else 0

    @property
    def offset_end(self) -> int:
        return self.offset_min + sum(len(entry.record) for entry in self.entries)

    def term_at(self, index: int) -> int | None:
        held = self.first_index <= index <= self.last_index
        return self.entries[index - self.first_index].term if held else None

    def reserve(self, size_bytes: int) -> None:
        if self.full:
            raise DiskFullError("no space (test)")

    def append(self, index: int, term: int, body: Any) -> None:
        assert index == self.last_index + 1
        self.entries.append(entry(index, term, bytes(body)))

    def append_records(self, entries: Sequence[Any]) -> None:
        for item in entries:
            assert item.index == self.last_index + 1
            self.entries.append(MemoryEntry(*item))

    def decode_records(self, data: memoryview) -> list[MemoryEntry]:
        out, position = [], 0
        while position < len(data):
            size, index, term, crc = HEADER.unpack_from(data, position)
            end = position + HEADER.size + size
            body = bytes(data[position + HEADER.size : end])
            if zlib.crc32(body) != crc:
                raise RemoteProtocolError("bad checksum")
            out.append(MemoryEntry(index, term, body, bytes(data[position:end])))
            position = end
        return out

    def read_entries(self, first: int, count_max: int, bytes_max: int) -> list[MemoryEntry]:
        at = first - self.first_index
        return self.entries[at : at + count_max] if at >= 0 else []

    def read_records(self, first: int, bytes_max: int) -> tuple[list[bytes], int]:
        out, size, index = [], 0, first - 1
        for item in self.entries[first - self.first_index :] if first >= self.first_index else []:
            if out and size + len(item.record) > bytes_max:
                break
            out.append(item.record)
            size += len(item.record)
            index = item.index
        return out, index

    def truncate_from(self, index: int) -> None:
        self.truncations.append((index, self.last_index))
        del self.entries[index - self.first_index :]
        self.durable_index = min(self.durable_index, index - 1)

    def drop_before(self, index: int) -> None:
        """What retention does; at least one entry stays."""
        index = min(index, self.last_index)
        dropped = self.entries[: max(0, index - self.first_index)]
        self.offset_min += sum(len(item.record) for item in dropped)
        del self.entries[: len(dropped)]
        self.first_index += len(dropped)

    def reset_to(self, record: bytes, offset: int) -> None:
        """What the installation of a snapshot does."""
        self.entries = self.decode_records(memoryview(record))
        self.first_index = self.durable_index = self.entries[0].index
        self.offset_min = offset

    def save_vote(self, term: int, voted_for: str | None) -> None:
        self.term, self.voted_for = term, voted_for
        self.votes.append((term, voted_for))

    def save_members(self, content: bytes) -> None:
        self.members = content

    def subscribe_durable(self, callback: Callable[[int], None]) -> None:
        self._durable.append(callback)

    def subscribe_failure(self, callback: Callable[[StoreError], None]) -> None:
        self._failure.append(callback)

    def unsubscribe(self) -> None:
        """Before a restart of the node over the same log."""
        self._durable.clear()
        self._failure.clear()

    def request_sync(self) -> None:
        if self.sync_delay_s is None or self._syncing or self.durable_index == self.last_index:
            return
        self._syncing = True
        asyncio.get_running_loop().call_later(self.sync_delay_s, self._synced, self.last_index)

    def _synced(self, index: int) -> None:
        self._syncing = False
        self.sync(index)
        self.request_sync()

    def sync(self, index: int | None = None) -> None:
        """Makes entries durable up to `index`, or all."""
        durable = min(self.last_index, self.last_index if index is None else index)
        if durable > self.durable_index:
            self.durable_index = durable
            for callback in self._durable:
                callback(durable)

    def lose_unsynced(self) -> None:
        """What a power cut does."""
        del self.entries[self.durable_index - self.first_index + 1 :]

    def fail(self, error: StoreError) -> None:
        for callback in self._failure:
            callback(error)


class ListMachine:
    """A state machine that remembers what was applied."""

    def __init__(self) -> None:
        self.applied_index = 0
        self.applied: list[tuple[int, int, bytes]] = []
        self.full = False

    def apply(self, entries: Sequence[Any]) -> list[object]:
        if self.full:
            raise DiskFullError("no space (test)")
        results: list[object] = []
        for item in entries:
            assert item.index == max(self.applied_index, 1) + 1
            self.applied_index = item.index
            if item.body[0] >= 16:
                self.applied.append((item.index, item.term, bytes(item.body)))
            results.append(item.index)
        return results
