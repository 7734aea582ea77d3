"""The durable mark: up to where this replica knows its log to be synced.

After a loss of power the last unsynced records may be missing or torn in any order: a page written
later may have reached the disk earlier. Such a tail must be cut, while damage to bytes that had
been synced must never be. The mark tells the two apart (see `store.recovery`).

It is written after every sync of the log, into the page cache only, and is itself synced a little
later (`SYNC_INTERVAL_S`, and at every roll and close). So it never claims too much; after the death
of the process it is exact, after a loss of power it may lag by that interval. Before the log is
truncated the mark is lowered durably.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from store.files import FileSystem

FILE_NAME = "durable.mark"
SYNC_INTERVAL_S = 0.2

# Two slots, 4096 bytes apart and written in turn, so that a torn write leaves the other. The valid
# one with the higher sequence number counts. One slot, big endian; the checksum is the CRC-32 of
# [8, 24):
#
#    0       4          8          16       24
#    +-------+----------+----------+----------+
#    | magic | checksum | sequence | physical |
#    |       |          |          | offset   |
#    +-------+----------+----------+----------+
#      u32     u32        u64        u64
_SLOT = struct.Struct(">IIQQ")
_CHECKED = struct.Struct(">QQ")
_MAGIC = 0x444C4D01  # "DLM" and version 1
_SLOT_DISTANCE = 4096


def encode_slot(sequence: int, offset: int) -> bytes:
    """Returns the bytes of one slot."""
    checked = _CHECKED.pack(sequence, offset)
    return _SLOT.pack(_MAGIC, zlib.crc32(checked), sequence, offset)


def decode_slot(data: bytes) -> tuple[int, int] | None:
    """Returns (sequence, offset), or None if the slot is blank, torn or damaged."""
    if len(data) < _SLOT.size:
        return None
    magic, checksum, sequence, offset = _SLOT.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(data[8 : _SLOT.size]) != checksum:
        return None
    return sequence, offset


class DurableMark:
    """The open mark file.

    Concurrency: `raise_to` and `sync` belong to the sync thread while one runs; `lower_to` to the
    loop while the sync thread is known to be idle.
    """

    def __init__(self, fs: FileSystem, file: int) -> None:
        self._fs = fs
        self._file = file
        self._sequence = 0
        self.offset: int | None = None
        self.is_dirty = False
        found = _newest_slot(fs, file)
        if found is not None:
            self._sequence, self.offset = found

    @classmethod
    def open(cls, fs: FileSystem, directory: Path) -> DurableMark:
        """Opens the mark; `offset` is None where no valid mark was found.

        Durability: a file created here is durable on return.
        """
        path = directory / FILE_NAME
        if FILE_NAME in fs.list_directory(directory):
            file = fs.open(path)
            fs.allocate(file, 2 * _SLOT_DISTANCE)  # its creation may have been cut short
        else:
            file = fs.create(path, 2 * _SLOT_DISTANCE)
            fs.sync_directory(directory)
        return cls(fs, file)

    @classmethod
    def peek(cls, fs: FileSystem, directory: Path) -> int | None:
        """Returns the mark without opening it for good, or None where there is no valid one."""
        if FILE_NAME not in fs.list_directory(directory):
            return None
        file = fs.open(directory / FILE_NAME)
        try:
            found = _newest_slot(fs, file)
        finally:
            fs.close(file)
        return None if found is None else found[1]

    def raise_to(self, offset: int) -> None:
        """Writes a higher mark. Durable after `sync`; harmless if it is lost."""
        if self.offset is not None and offset <= self.offset:
            return
        self._write(offset)
        self.offset = offset
        self.is_dirty = True

    def lower_to(self, offset: int) -> None:
        """Writes a lower mark. Durable on return, in both slots."""
        self._write(offset)
        self._write(offset)
        self.offset = offset
        self.sync()

    def sync(self) -> None:
        """Makes the mark durable."""
        self._fs.sync(self._file)
        self.is_dirty = False

    def close(self) -> None:
        """Closes the file."""
        self._fs.close(self._file)

    def _write(self, offset: int) -> None:
        self._sequence += 1
        at = (self._sequence % 2) * _SLOT_DISTANCE
        self._fs.write(self._file, at, [encode_slot(self._sequence, offset)])


def _newest_slot(fs: FileSystem, file: int) -> tuple[int, int] | None:
    slots = [decode_slot(fs.read(file, slot * _SLOT_DISTANCE, _SLOT.size)) for slot in range(2)]
    return max((slot for slot in slots if slot is not None), default=None)
