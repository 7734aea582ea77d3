"""The record: what one Raft entry looks like on disk and on its way between replicas. Pure.

A record carries the physical offset it lies at. A record is therefore valid in one place only:
bytes of another log, an older generation of this one or a log file sent as a message body are never
mistaken for a record of this log, and a follower notices at once if its offsets would differ from
the leader's.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from dledger.checksum import crc32
from dledger.errors import Corruption, RemoteProtocolError

# One record, big endian. `checksum` is the CRC-32 of everything behind it: [8, 40 + body length).
#
#    0       4          8        12      16         24      32     40
#    +-------+----------+--------+-------+----------+-------+------+------
#    | magic | checksum | body   | flags | physical | log   | term | body
#    |       |          | length | (0)   | offset   | index |      |
#    +-------+----------+--------+-------+----------+-------+------+------
#      u32     u32        u32      u32     u64        u64     u64
HEADER = struct.Struct(">IIIIQQQ")
HEADER_BYTES = HEADER.size
MAGIC = 0x444C5201  # "DLR" and version 1
MAGIC_BYTES = MAGIC.to_bytes(4, "big")
CHECKSUM_FROM = 8
_HEAD = struct.Struct(">II")
_TAIL = struct.Struct(">IIQQQ")
_SEARCH_CHUNK_BYTES = 1 << 20

Buffer = bytes | bytearray | memoryview


class LogEntry(NamedTuple):
    """One Raft entry. `record` is header and body exactly as stored; `body` its last part."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    term: int
    body: bytes | memoryview
    record: bytes | memoryview


class EntryLike(Protocol):
    """What `append_records` needs of an entry."""

    @property
    def index(self) -> int:
        """Returns the log index."""
        ...

    @property
    def term(self) -> int:
        """Returns the term."""
        ...

    @property
    def record(self) -> bytes | memoryview:
        """Returns header and body."""
        ...


class ScanStop(Enum):
    """Why a scan ended. All but the first two say what is wrong with the bytes at its position."""

    END = "end"
    BLANK = "blank"
    TRUNCATED_HEADER = "truncated header"
    TRUNCATED_BODY = "truncated body"
    BAD_MAGIC = "bad magic"
    BAD_LENGTH = "bad length"
    BAD_CHECKSUM = "bad checksum"
    BAD_SEQUENCE = "bad sequence"

    @property
    def corruption(self) -> Corruption:
        """Returns the reason to report where a valid record should have been."""
        return _CORRUPTIONS[self]


_CORRUPTIONS = {
    ScanStop.END: Corruption.TRUNCATED_HEADER,
    ScanStop.BLANK: Corruption.BAD_MAGIC,
    ScanStop.TRUNCATED_HEADER: Corruption.TRUNCATED_HEADER,
    ScanStop.TRUNCATED_BODY: Corruption.TRUNCATED_BODY,
    ScanStop.BAD_MAGIC: Corruption.BAD_MAGIC,
    ScanStop.BAD_LENGTH: Corruption.BAD_LENGTH,
    ScanStop.BAD_CHECKSUM: Corruption.BAD_CHECKSUM,
    ScanStop.BAD_SEQUENCE: Corruption.BAD_SEQUENCE,
}


def encode_record(physical_offset: int, index: int, term: int, body: Buffer) -> bytes:
    """Returns the record of an entry that is to lie at `physical_offset`. Copies the body once."""
    tail = _TAIL.pack(len(body), 0, physical_offset, index, term)
    head = _HEAD.pack(MAGIC, crc32(body, crc32(tail)))
    return b"".join((head, tail, body))


def decode_records(data: memoryview, record_bytes_max: int) -> list[LogEntry]:
    """Returns the consecutive records that a peer sent, as views of `data`.

    Raises:
        RemoteProtocolError: A record is cut short, longer than `record_bytes_max`, fails its
            checksum, or does not follow its predecessor. Nothing is returned.
    """
    entries: list[LogEntry] = []
    position, end = 0, len(data)
    offset_next = index_next = term_last = -1
    while position < end:
        if position + HEADER_BYTES > end:
            raise RemoteProtocolError(f"record header cut short at byte {position} of {end}")
        magic, checksum, body_bytes, flags, offset, index, term = HEADER.unpack_from(data, position)
        stop = position + HEADER_BYTES + body_bytes
        if magic != MAGIC or flags:
            raise RemoteProtocolError(f"not a record at byte {position}: magic {magic:#x}")
        if stop - position > record_bytes_max or stop > end:
            raise RemoteProtocolError(f"record of {body_bytes} body bytes at {position} of {end}")
        if crc32(data[position + CHECKSUM_FROM : stop]) != checksum:
            raise RemoteProtocolError(f"record {index} fails its checksum")
        if offset_next >= 0 and (offset != offset_next or index != index_next or term < term_last):
            raise RemoteProtocolError(f"record {index} of term {term} does not follow {index_next}")
        entries.append(
            LogEntry(index, term, data[position + HEADER_BYTES : stop], data[position:stop])
        )
        offset_next, index_next, term_last = offset + stop - position, index + 1, term
        position = stop
    return entries


class RecordScanner:
    """Walks over the records of one segment and checks each; stops at the first that is bad.

    `positions` receives where each record begins, relative to the segment, and `term_runs` a pair
    (first index, term) for every change of term. After the scan `position` is one past the last
    valid record and `index` and `term` are its own (0 if there was none and none came before).
    """

    def __init__(
        self, view: memoryview, base: int, *, index: int, term: int, record_bytes_max: int
    ) -> None:
        """Begins at the first byte of `view`; `index` 0 accepts any index for the first record."""
        self.position = 0
        self.index = index
        self.term = term
        self.positions = array("I")
        self.term_runs: list[tuple[int, int]] = []
        self._view = view
        self._base = base
        self._record_bytes_max = record_bytes_max

    def advance(self, bytes_max: int) -> ScanStop | None:
        """Scans on for about `bytes_max` bytes. Returns why it ended, or None if it may go on."""
        view, base, unpack = self._view, self._base, HEADER.unpack_from
        position, index, term_last = self.position, self.index, self.term
        append = self.positions.append
        end, limit = len(view), min(len(view), position + bytes_max)
        reason: ScanStop | None = None
        while position < limit:
            if position + HEADER_BYTES > end:
                blank = not any(view[position:])
                reason = ScanStop.BLANK if blank else ScanStop.TRUNCATED_HEADER
                break
            magic, checksum, body_bytes, flags, offset, index_here, term = unpack(view, position)
            if magic != MAGIC:
                reason = ScanStop.BAD_MAGIC if magic else ScanStop.BLANK
                break
            stop = position + HEADER_BYTES + body_bytes
            if stop > end or stop - position > self._record_bytes_max:
                too_long = stop - position > self._record_bytes_max
                reason = ScanStop.BAD_LENGTH if too_long else ScanStop.TRUNCATED_BODY
                break
            if crc32(view[position + CHECKSUM_FROM : stop]) != checksum:
                reason = ScanStop.BAD_CHECKSUM
                break
            if (
                offset != base + position
                or (index_here != index + 1 and (index or not index_here))
                or term < term_last
                or flags
            ):
                reason = ScanStop.BAD_SEQUENCE
                break
            if term != term_last or not self.term_runs:
                self.term_runs.append((index_here, term))
                term_last = term
            append(position)
            index = index_here
            position = stop
        self.position, self.index, self.term = position, index, term_last
        if reason is None and position == end:
            return ScanStop.END
        return reason


def find_record(view: memoryview, base: int, start: int, record_bytes_max: int) -> int | None:
    """Returns the position of the first valid record at or after `start`, or None.

    Looks at every byte position, as nothing is known about lengths behind a bad record.
    """
    end = len(view)
    for chunk_start in range(start, end, _SEARCH_CHUNK_BYTES):
        chunk = bytes(view[chunk_start : chunk_start + _SEARCH_CHUNK_BYTES + HEADER_BYTES])
        at = chunk.find(MAGIC_BYTES)
        while at >= 0:
            if is_record_at(view, base, chunk_start + at, record_bytes_max):
                return chunk_start + at
            at = chunk.find(MAGIC_BYTES, at + 1)
    return None


def is_record_at(view: memoryview, base: int, position: int, record_bytes_max: int) -> bool:
    """Says whether a complete record that belongs at this place lies there."""
    if position + HEADER_BYTES > len(view):
        return False
    magic, checksum, body_bytes, flags, offset, index, _ = HEADER.unpack_from(view, position)
    stop = position + HEADER_BYTES + body_bytes
    if magic != MAGIC or flags or offset != base + position or not index:
        return False
    if stop > len(view) or stop - position > record_bytes_max:
        return False
    return bool(crc32(view[position + CHECKSUM_FROM : stop]) == checksum)


def check_record(record: memoryview, physical_offset: int, index: int) -> ScanStop | None:
    """Checks one stored record whose place is known. Returns what is wrong with it, or None."""
    magic, checksum, body_bytes, flags, offset, index_here, _ = HEADER.unpack_from(record)
    if magic != MAGIC:
        return ScanStop.BAD_MAGIC
    if HEADER_BYTES + body_bytes != len(record):
        return ScanStop.BAD_LENGTH
    if crc32(record[CHECKSUM_FROM:]) != checksum:
        return ScanStop.BAD_CHECKSUM
    if offset != physical_offset or index_here != index or flags:
        return ScanStop.BAD_SEQUENCE
    return None


def stamped_offsets(entries: Sequence[EntryLike]) -> list[int]:
    """Returns the physical offset that each entry's record says it belongs at."""
    return [HEADER.unpack_from(entry.record)[4] for entry in entries]
