"""Who this replica is and who belongs to its group, as bytes that only Raft understands.

Beside the vote, and replaced like it: a configuration counts from the moment it is in the log, and
must be known at a start without reading the log.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from dledger.errors import Corruption, CorruptRecordError, invariant
from store.files import FileSystem
from store.replaced_file import read_file, replace_file

FILE_NAME = "members"
_FILE_BYTES = 32 * 1024

# The file, 32 KiB, big endian. The checksum is the CRC-32 of length and content. What lies behind
# the content means nothing.
#
#    0       4          8        12
#    +-------+----------+--------+---------+----
#    | magic | checksum | length | content | ...
#    +-------+----------+--------+---------+----
#      u32     u32        u32
_HEADER = struct.Struct(">III")
_LENGTH = struct.Struct(">I")
_MAGIC = 0x444C4701  # "DLG" and version 1
CONTENT_BYTES_MAX = _FILE_BYTES - _HEADER.size


def encode_members(content: bytes) -> bytes:
    """Returns the used part of the file."""
    invariant(len(content) <= CONTENT_BYTES_MAX, "members cannot be stored", size=len(content))
    checked = _LENGTH.pack(len(content)) + content
    return _HEADER.pack(_MAGIC, zlib.crc32(checked), len(content)) + content


def decode_members(data: bytes) -> bytes | Corruption:
    """Returns the content, or what is wrong with the bytes."""
    if len(data) < _HEADER.size:
        return Corruption.TRUNCATED_HEADER
    magic, checksum, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return Corruption.BAD_MAGIC
    end = _HEADER.size + length
    if length > CONTENT_BYTES_MAX or len(data) < end:
        return Corruption.BAD_LENGTH
    if zlib.crc32(data[8:end]) != checksum:
        return Corruption.BAD_CHECKSUM
    return data[_HEADER.size : end]


def load_members(fs: FileSystem, directory: Path) -> bytes | None:
    """Returns the stored content, None if there never was any.

    Raises:
        CorruptRecordError: The file is damaged. It is replaced in one step, so no crash explains
            that, and a replica that does not know who it is must not vote.
    """
    data = read_file(fs, directory / FILE_NAME, _FILE_BYTES)
    if data is None:
        return None
    found = decode_members(data)
    if isinstance(found, Corruption):
        raise CorruptRecordError(str(directory / FILE_NAME), 0, found)
    return found


def save_members(fs: FileSystem, directory: Path, content: bytes) -> None:
    """Replaces the stored content; errors and durability as `replaced_file.replace_file`."""
    replace_file(fs, directory / FILE_NAME, encode_members(content), _FILE_BYTES)
