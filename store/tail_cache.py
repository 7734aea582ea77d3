"""The newest records in memory, within a limit of bytes. Pure."""

from __future__ import annotations

from bisect import bisect_right

from store.record import LogEntry

_ENTRY_OVERHEAD_BYTES = 400  # objects that accompany one entry
_COMPACT_AT = 1024


class TailCache:
    """A queue of consecutive entries, found by index or by physical offset.

    Holding entries, not bytes, makes the leader's own apply and replication free of parsing.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._entries: list[LogEntry | None] = []
        self._starts: list[int] = []  # physical offsets, parallel to the entries
        self._head = 0  # evicted entries still in the lists; they are cut off in batches
        self.first_index = 0  # of the oldest entry held; meaningless while empty
        self.offset_min = 0  # likewise its physical offset

    def __len__(self) -> int:
        return len(self._entries) - self._head

    @property
    def size_bytes(self) -> int:
        """Returns the memory that counts against the limit."""
        return self._bytes

    def add(self, entry: LogEntry, physical_offset: int) -> None:
        """Adds the entry that follows the newest and evicts the oldest beyond the limit."""
        if self._head == len(self._entries):
            self.clear()
            self.first_index = entry.index
            self.offset_min = physical_offset
        self._entries.append(entry)
        self._starts.append(physical_offset)
        self._bytes += len(entry.record) + _ENTRY_OVERHEAD_BYTES
        while self._bytes > self._bytes_max:
            self._evict()

    def get(self, index: int) -> LogEntry | None:
        """Returns the entry, or None if it is not held."""
        place = index - self.first_index
        if place < 0 or place >= len(self._entries) - self._head:
            return None
        return self._entries[self._head + place]

    def find(self, physical_offset: int) -> tuple[LogEntry, int] | None:
        """Returns the entry whose record holds this byte and where that record begins."""
        if self._head == len(self._entries) or physical_offset < self.offset_min:
            return None
        place = bisect_right(self._starts, physical_offset, self._head) - 1
        entry = self._entries[place]
        if entry is None:
            return None
        return entry, self._starts[place]

    def truncate_from(self, index: int) -> None:
        """Drops this entry and all newer ones."""
        keep = max(self._head, self._head + index - self.first_index)
        for entry in self._entries[keep:]:
            if entry is not None:
                self._bytes -= len(entry.record) + _ENTRY_OVERHEAD_BYTES
        del self._entries[keep:]
        del self._starts[keep:]

    def drop_before(self, index: int) -> None:
        """Drops all entries before this one."""
        while len(self) and self.first_index < index:
            self._evict()

    def clear(self) -> None:
        """Drops everything."""
        self._entries.clear()
        self._starts.clear()
        self._head = 0
        self._bytes = 0

    def _evict(self) -> None:
        entry = self._entries[self._head]
        if entry is not None:
            self._bytes -= len(entry.record) + _ENTRY_OVERHEAD_BYTES
        self._entries[self._head] = None
        self._head += 1
        if self._head == len(self._entries):
            self.clear()
            return
        self.first_index += 1
        self.offset_min = self._starts[self._head]
        if self._head >= _COMPACT_AT and self._head * 2 >= len(self._entries):
            del self._entries[: self._head]
            del self._starts[: self._head]
            self._head = 0
