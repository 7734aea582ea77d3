"""The `.index` file of a sealed segment: where each of its records begins.

It only saves time. If it is missing, damaged or belongs to another state of the segment, it is
made anew from the segment.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import zlib
from array import array
from pathlib import Path
from typing import TypeAlias

from store.files import FileSystem, Mapping

SUFFIX = ".index"
TEMPORARY_SUFFIX = ".index.tmp"

# Header, big endian; the checksum is the CRC-32 of [8, end of file). Behind it `count` positions,
# u32 little endian, relative to the segment, so that they are used where they are mapped.
#
#    0       4          8      16      24        32      36     40
#    +-------+----------+------+-------+---------+-------+------+-----------
#    | magic | checksum | base | first | segment | count | 0    | positions
#    |       |          |      | index | bytes   |       |      |
#    +-------+----------+------+-------+---------+-------+------+-----------
#      u32     u32        u64    u64     u64       u32     u32
_HEADER = struct.Struct(">IIQQQII")
_CHECKED = struct.Struct(">QQQII")
HEADER_BYTES = _HEADER.size
_MAGIC = 0x444C5801  # "DLX" and version 1

Positions: TypeAlias = "array[int] | memoryview"


def encode_index(base: int, first_index: int, segment_bytes: int, positions: array[int]) -> bytes:
    """Returns the content of the file."""
    packed = _little_endian(positions).tobytes()
    checked = _CHECKED.pack(base, first_index, segment_bytes, len(positions), 0)
    checksum = zlib.crc32(packed, zlib.crc32(checked))
    head = _HEADER.pack(_MAGIC, checksum, base, first_index, segment_bytes, len(positions), 0)
    return head + packed


def decode_index(
    data: memoryview, base: int, first_index: int, segment_bytes: int
) -> Positions | None:
    """Returns the positions, a view of `data` where possible; None if the file cannot be used."""
    if len(data) < HEADER_BYTES:
        return None
    magic, checksum, base_here, first_here, bytes_here, count, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC or (base_here, first_here, bytes_here) != (base, first_index, segment_bytes):
        return None
    if len(data) != HEADER_BYTES + 4 * count or zlib.crc32(data[8:]) != checksum:
        return None
    packed = data[HEADER_BYTES:]
    if sys.byteorder == "little":
        return packed.cast("I")
    return _little_endian(array("I", packed.tobytes()))


def save_index(fs: FileSystem, segment_path: Path, data: bytes) -> bool:
    """Writes the index beside its segment. Says whether it worked; failing is no harm."""
    temporary = segment_path.with_name(segment_path.name + TEMPORARY_SUFFIX)
    with contextlib.suppress(OSError):
        fs.remove(temporary)
    try:
        file = fs.create(temporary, len(data))
        try:
            fs.write(file, 0, [data])
            fs.sync(file)
        finally:
            fs.close(file)
        fs.rename(temporary, segment_path.with_name(segment_path.name + SUFFIX))
    except OSError:
        with contextlib.suppress(OSError):
            fs.remove(temporary)
        return False
    return True


def map_index(fs: FileSystem, segment_path: Path) -> Mapping | None:
    """Maps the index file, or returns None if there is none."""
    try:
        file = fs.open(segment_path.with_name(segment_path.name + SUFFIX))
    except FileNotFoundError:
        return None
    try:
        size_bytes = fs.size(file)
        return fs.map(file, size_bytes) if size_bytes else None
    finally:
        fs.close(file)


def _little_endian(positions: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return positions
    swapped = array("I", positions)
    swapped.byteswap()
    return swapped
