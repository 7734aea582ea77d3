"""Reading the log: from the tail cache if possible, else from the mapped segments."""

from __future__ import annotations

from bisect import bisect_right

from dledger.errors import OffsetOutOfRangeError
from store.record import LogEntry
from store.segment import Segment
from store.tail_cache import TailCache


class LogReader:
    """Finds entries and bytes; keeps the number of mapped sealed segments within a limit.

    Shares the list of segments with the log, which alone changes it.
    """

    def __init__(self, segments: list[Segment], cache: TailCache, mapped_max: int) -> None:
        self._segments = segments
        self._cache = cache
        self._mapped_max = mapped_max
        self._mapped: list[Segment] = []  # sealed ones, least recently read first
        self._last_read: tuple[int, int, memoryview] | None = None

    @property
    def first_index(self) -> int:
        """Returns the index of the oldest entry; 1 if there is none."""
        segments = self._segments
        return segments[0].first_index if segments and segments[0].count else 1

    @property
    def offset_min(self) -> int:
        """Returns the physical offset of the oldest byte."""
        return self._segments[0].base if self._segments else 0

    def term_at(self, index: int) -> int | None:
        """Returns the term of an entry, or None if it is not held."""
        entry = self._cache.get(index)
        if entry is not None:
            return entry.term
        if not self._holds(index):
            return None
        segment = self.segment_of_index(index)
        term = segment.term_at(index)
        self.note_read(segment)
        return term

    def read_entries(self, first: int, count_max: int, bytes_max: int) -> list[LogEntry]:
        """See `CommitLog.read_entries`."""
        cached = self._cached(first, count_max, bytes_max)
        if cached or not self._holds(first):
            return cached
        segment = self.segment_of_index(first)
        last = min(segment.last_within(first, bytes_max), first + max(count_max, 1) - 1)
        entries = segment.entries(first, last)
        self.note_read(segment)
        return entries

    def read_records(self, first: int, bytes_max: int) -> tuple[list[bytes | memoryview], int]:
        """See `CommitLog.read_records`."""
        cached = self._cached(first, bytes_max, bytes_max)
        if cached:
            return [entry.record for entry in cached], cached[-1].index
        if not self._holds(first):
            return [], first - 1
        segment = self.segment_of_index(first)
        last = segment.last_within(first, bytes_max)
        view = segment.read(first, last)
        self.note_read(segment)
        return [view], last

    def read(self, physical_offset: int, size_bytes: int) -> memoryview:
        """See `CommitLog.read`."""
        stop = physical_offset + size_bytes
        found = self._cache.find(physical_offset)
        if found is not None and size_bytes > 0:
            entry, start = found
            if stop <= start + len(entry.record):
                return memoryview(entry.record)[physical_offset - start : stop - start]
        if self._last_read is not None and size_bytes > 0:
            # A pull takes many messages of one record, each with a call of its own.
            start, end, view = self._last_read
            if start <= physical_offset and stop <= end:
                return view[physical_offset - start : stop - start]
        return self._read_mapped(physical_offset, stop)

    def locate(self, physical_offset: int) -> tuple[int, int] | None:
        """See `CommitLog.locate`."""
        if not self._segments or not self.offset_min <= physical_offset < self._segments[-1].end:
            return None
        place = bisect_right(self._segments, physical_offset, key=_base_of) - 1
        segment = self._segments[place]
        index = segment.index_at(physical_offset)
        return index, segment.term_at(index)

    def segment_of_index(self, index: int) -> Segment:
        """Returns the segment that holds an entry known to be held."""
        # Only the newest segment can be empty, and is then sorted behind every index.
        place = bisect_right(self._segments, index, key=_first_index_of) - 1
        return self._segments[place]

    def note_read(self, segment: Segment) -> None:
        """Makes a segment the most recently read one, and unmaps what is beyond the limit."""
        mapped = self._mapped
        if segment is self._segments[-1] or (mapped and mapped[-1] is segment):
            return
        if segment in mapped:
            mapped.remove(segment)
        mapped.append(segment)
        while len(mapped) > self._mapped_max:
            mapped.pop(0).unmap()

    def forget_from(self, index: int, segment: Segment) -> None:
        """Takes note that the log was truncated within this segment, now the newest."""
        self._last_read = None
        self._cache.truncate_from(index)
        self._mapped = [older for older in self._mapped if older.base < segment.base]

    def forget_before(self, segment: Segment) -> None:
        """Takes note that all segments before this one were dropped."""
        self._cache.drop_before(segment.first_index)
        self._last_read = None
        self._mapped = [kept for kept in self._mapped if kept.base >= segment.base]

    def close(self) -> None:
        """Lets go of all views and cached entries."""
        self._last_read = None
        self._cache.clear()
        self._mapped.clear()

    def _holds(self, index: int) -> bool:
        segments = self._segments
        if not segments or not segments[0].count:
            return False
        newest = segments[-1] if segments[-1].count else segments[-2]
        return segments[0].first_index <= index <= newest.last_index

    def _cached(self, first: int, count_max: int, bytes_max: int) -> list[LogEntry]:
        get = self._cache.get
        entries: list[LogEntry] = []
        room = bytes_max
        entry = get(first)
        while entry is not None:
            room -= len(entry.record)
            if room < 0 and entries:
                break
            entries.append(entry)
            if len(entries) >= count_max:
                break
            entry = get(entry.index + 1)
        return entries

    def _read_mapped(self, physical_offset: int, stop: int) -> memoryview:
        end = self._segments[-1].end if self._segments else 0
        if stop <= physical_offset or physical_offset < self.offset_min or stop > end:
            raise OffsetOutOfRangeError(physical_offset, self.offset_min, end)
        place = bisect_right(self._segments, physical_offset, key=_base_of) - 1
        segment = self._segments[place]
        if stop > segment.end:
            raise OffsetOutOfRangeError(stop, segment.base, segment.end)
        first, last = segment.index_at(physical_offset), segment.index_at(stop - 1)
        start = segment.base + segment.bounds(first)[0]
        view = segment.read(first, last)
        self._last_read = (start, start + len(view), view)
        self.note_read(segment)
        return view[physical_offset - start : stop - start]


def _first_index_of(segment: Segment) -> int:
    return segment.first_index if segment.count else 1 << 63


def _base_of(segment: Segment) -> int:
    return segment.base
