"""One file of the CommitLog: where its records are, and reading them through a mapping."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

from dledger.errors import Corruption, CorruptRecordError, invariant
from store.files import FileSystem, Mapping
from store.index_file import Positions, decode_index, encode_index, map_index, save_index
from store.record import (
    HEADER,
    HEADER_BYTES,
    LogEntry,
    RecordScanner,
    ScanStop,
    check_record,
)

NAME_DIGITS = 20
SCAN_STEP_BYTES = 8 << 20
# A mapping's pages count as this process's memory, so they are given back after every so many
# bytes read. A read away from the last one also maps its neighbourhood (the kernel's fault-around).
_RELEASE_AFTER_BYTES = 4 << 20
_FAULT_AROUND_BYTES = 64 << 10


def segment_name(base: int) -> str:
    """Returns the file name of the segment that begins at this physical offset."""
    return f"{base:0{NAME_DIGITS}d}"


def parse_segment_name(name: str) -> int | None:
    """Returns the base offset, or None if this is not the name of a segment."""
    return int(name) if len(name) == NAME_DIGITS and name.isascii() and name.isdigit() else None


class SegmentFacts(NamedTuple):
    """Where a segment lies: physical offsets [base, end), log indexes first to last."""

    base: int
    end: int
    first_index: int
    last_index: int


class Segment:
    """A segment that is open for appending, is being sealed, or is sealed.

    Attributes:
        base: Physical offset of its first byte.
        length: Bytes of records written. Invariant: sum of its records' sizes.
        capacity: Bytes allocated; `length` once sealed.
        first_index: Of its first record; meaningless while `count` is 0.
        count: Records held.
        file: For writing; None once sealed.
    """

    def __init__(self, fs: FileSystem, path: Path, base: int, *, record_bytes_max: int) -> None:
        self.path = path
        self.base = base
        self.length = 0
        self.capacity = 0
        self.first_index = 0
        self.count = 0
        self.first_term = 0
        self.file: int | None = None
        self.term_runs: list[tuple[int, int]] | None = None  # None: read them from the headers
        self._fs = fs
        self._record_bytes_max = record_bytes_max
        self._positions: Positions | None = None  # array: in memory; view: of the index mapping
        self._mapping: Mapping | None = None
        self._index_mapping: Mapping | None = None
        self._checked = bytearray()  # one bit a record: its checksum was found right
        self._touched_bytes = 0
        self._touched_until = 0

    def __repr__(self) -> str:
        state = "sealed" if self.file is None else "open"
        return f"<Segment base={self.base} length={self.length} count={self.count} {state}>"

    @property
    def end(self) -> int:
        """Returns the physical offset one past its last record."""
        return self.base + self.length

    @property
    def last_index(self) -> int:
        """Returns the index of its last record; `first_index` - 1 if it is empty."""
        return self.first_index + self.count - 1

    def facts(self) -> SegmentFacts:
        """Returns where it lies."""
        return SegmentFacts(self.base, self.end, self.first_index, self.last_index)

    @property
    def is_mapped(self) -> bool:
        """Says whether the file is mapped."""
        return self._mapping is not None

    # --- writing: only the place is kept here, the bytes are the caller's affair ----------------

    def begin(self, file: int, capacity: int) -> None:
        """Makes this an empty segment that is open for appending."""
        self.file = file
        self.capacity = capacity
        self._positions = array("I")
        self.term_runs = []

    def adopt_scan(self, scanner: RecordScanner) -> None:
        """Takes over what a scan of the file has found."""
        self.length = scanner.position
        self.count = len(scanner.positions)
        self.term_runs = scanner.term_runs
        self._positions = scanner.positions
        self._checked = bytearray()
        if self.count:
            self.first_index = scanner.index - self.count + 1
            self.first_term = scanner.term_runs[0][1]

    def add(self, index: int, term: int, size_bytes: int) -> None:
        """Notes a record that was written at `length`."""
        positions, runs = self._positions, self.term_runs
        if not isinstance(positions, array) or runs is None:
            invariant(False, "appending to a sealed segment", segment=self)
            return
        if not self.count:
            self.first_index = index
            self.first_term = term
        if not runs or runs[-1][1] != term:
            runs.append((index, term))
        positions.append(self.length)
        self.count += 1
        self.length += size_bytes

    def cut(self, index: int) -> None:
        """Forgets this record and all behind it; the file is the caller's affair."""
        positions = self.positions()
        keep = index - self.first_index
        self.length = positions[keep] if keep < self.count else self.length
        runs = self.term_runs_known()
        self._positions = array("I", positions[:keep])
        self.count = keep
        self.term_runs = [run for run in runs if run[0] < index]
        self._checked = bytearray()
        if keep:
            return
        self.first_index = self.first_term = 0

    def save_index(self) -> bool:
        """Writes the index file of this sealed segment; False if that failed, which is no harm.

        Concurrency: the sync thread, while the loop only reads.
        """
        positions = self._positions
        if not isinstance(positions, array):
            return True
        data = encode_index(self.base, self.first_index, self.length, positions)
        return save_index(self._fs, self.path, data)

    def drop_positions(self) -> None:
        """Frees the memory of a sealed segment's positions; they are in the index file now."""
        if isinstance(self._positions, array):
            self._positions = None
        if self.term_runs is not None and len(self.term_runs) > 1:
            self.term_runs = None

    # --- finding --------------------------------------------------------------------------------

    def positions(self) -> Positions:
        """Returns where its records begin; maps or remakes the index file if need be.

        Raises:
            CorruptRecordError: The index had to be made anew and the segment is damaged.
        """
        if self._positions is None:
            self._positions = self._load_positions()
        return self._positions

    def bounds(self, index: int) -> tuple[int, int]:
        """Returns [start, stop) of a record, relative to the segment."""
        positions = self.positions()
        place = index - self.first_index
        stop = positions[place + 1] if place + 1 < self.count else self.length
        return positions[place], stop

    def index_at(self, physical_offset: int) -> int:
        """Returns the index of the record that holds this byte."""
        return self.first_index + bisect_right(self.positions(), physical_offset - self.base) - 1

    def last_within(self, index: int, bytes_max: int) -> int:
        """Returns the last index such that [index, it] has at most `bytes_max` bytes, or index."""
        positions = self.positions()
        place = index - self.first_index
        limit = positions[place] + bytes_max
        if limit >= self.length:
            return self.last_index
        return max(index, self.first_index + bisect_right(positions, limit) - 2)

    def term_at(self, index: int) -> int:
        """Returns the term of a record that it holds."""
        runs = self.term_runs
        if runs is None:
            start, _ = self.bounds(index)
            term: int = HEADER.unpack_from(self._view(start, start + HEADER_BYTES))[6]
            return term
        return runs[bisect_right(runs, index, key=_run_index) - 1][1]

    def term_runs_known(self) -> list[tuple[int, int]]:
        """Returns (first index, term) of each run of equal terms, reading headers if need be."""
        if self.term_runs is not None:
            return self.term_runs
        runs: list[tuple[int, int]] = []
        for index in range(self.first_index, self.last_index + 1):
            term = self.term_at(index)
            if not runs or runs[-1][1] != term:
                runs.append((index, term))
        return runs

    # --- reading --------------------------------------------------------------------------------

    def read(self, first: int, last: int) -> memoryview:
        """Returns the bytes of the records [first, last], each checked once per mapping.

        Returns:
            A read-only view of the mapped file. It stays valid until these records are truncated.

        Raises:
            CorruptRecordError: A record is not what was written.
        """
        start, stop = self.bounds(first)[0], self.bounds(last)[1]
        view = self._view(start, stop)
        for index in range(first, last + 1):
            if not self._is_checked(index):
                self._check(index, view, start)
        return view

    def entries(self, first: int, last: int) -> list[LogEntry]:
        """Returns the entries [first, last] as views of the mapped file. Raises as `read`."""
        view = self.read(first, last)
        origin = self.bounds(first)[0]
        found = []
        for index in range(first, last + 1):
            start, stop = self.bounds(index)
            record = view[start - origin : stop - origin]
            term = HEADER.unpack_from(record)[6]
            found.append(LogEntry(index, term, record[HEADER_BYTES:], record))
        return found

    def scan(self, *, index: int, term: int) -> tuple[RecordScanner, ScanStop]:
        """Checks every record from the start of the file. `index` and `term` are the last before.

        Cost: reads the whole file once, without keeping it in memory.
        """
        mapping = self._map() if self.capacity else None
        scanner = RecordScanner(
            mapping.view if mapping is not None else memoryview(b""),
            self.base,
            index=index,
            term=term,
            record_bytes_max=self._record_bytes_max,
        )
        while True:
            stop = scanner.advance(SCAN_STEP_BYTES)
            self.release_pages()
            if stop is not None:
                return scanner, stop

    def whole_view(self) -> memoryview:
        """Returns the whole file, allocated space included."""
        return self._map().view if self.capacity else memoryview(b"")

    def release_pages(self) -> None:
        """Gives mapped memory back; views that were handed out stay valid."""
        if self._mapping is not None:
            self._mapping.release_pages()
        self._touched_bytes = 0

    def unmap(self) -> None:
        """Lets go of the mappings; of a sealed segment also of what was learned about it."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None
        if self._index_mapping is not None:
            if isinstance(self._positions, memoryview):
                self._positions.release()
                self._positions = None
            self._index_mapping.close()
            self._index_mapping = None
        self._checked = bytearray()
        self._touched_bytes = 0

    def close(self) -> None:
        """Unmaps and closes the file, without syncing it."""
        self.unmap()
        if self.file is not None:
            file, self.file = self.file, None
            self._fs.close(file)

    # --- private --------------------------------------------------------------------------------

    def _view(self, start: int, stop: int) -> memoryview:
        mapping = self._mapping or self._map()
        near = abs(start - self._touched_until) <= _FAULT_AROUND_BYTES
        self._touched_bytes += stop - start if near else stop - start + _FAULT_AROUND_BYTES
        self._touched_until = stop
        if self._touched_bytes > _RELEASE_AFTER_BYTES:
            self.release_pages()
        return mapping.view[start:stop]

    def _map(self) -> Mapping:
        if self._mapping is not None:
            return self._mapping
        if self.file is not None:
            self._mapping = self._fs.map(self.file, self.capacity)
            return self._mapping
        file = self._fs.open(self.path)
        try:
            self._mapping = self._fs.map(file, self.capacity)
        finally:
            self._fs.close(file)
        return self._mapping

    def _is_checked(self, index: int) -> bool:
        place = index - self.first_index
        byte = place >> 3
        return byte < len(self._checked) and bool(self._checked[byte] & (1 << (place & 7)))

    def _check(self, index: int, view: memoryview, origin: int) -> None:
        start, stop = self.bounds(index)
        wrong = check_record(view[start - origin : stop - origin], self.base + start, index)
        if wrong is not None:
            raise CorruptRecordError(str(self.path), self.base + start, wrong.corruption)
        place = index - self.first_index
        missing = (place >> 3) + 1 - len(self._checked)
        if missing > 0:
            self._checked += bytes(max(missing, min(64, (self.count >> 3) + 1)))
        self._checked[place >> 3] |= 1 << (place & 7)

    def _load_positions(self) -> Positions:
        mapping = map_index(self._fs, self.path)
        if mapping is not None:
            found = decode_index(mapping.view, self.base, self.first_index, self.length)
            if found is not None and len(found) == self.count:
                self._index_mapping = mapping
                return found
            mapping.close()
        return self._rebuild_positions()

    def _rebuild_positions(self) -> Positions:
        scanner, stop = self.scan(index=self.first_index - 1, term=0)
        if stop is not ScanStop.END or scanner.index != self.last_index:
            reason = stop.corruption if stop is not ScanStop.END else Corruption.BAD_SEQUENCE
            raise CorruptRecordError(str(self.path), self.base + scanner.position, reason)
        data = encode_index(self.base, self.first_index, self.length, scanner.positions)
        if save_index(self._fs, self.path, data):
            mapping = map_index(self._fs, self.path)
            if mapping is not None:
                found = decode_index(mapping.view, self.base, self.first_index, self.length)
                if found is not None:
                    self._index_mapping = mapping
                    return found
        return scanner.positions


def _run_index(run: tuple[int, int]) -> int:
    return run[0]
