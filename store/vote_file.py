"""Term and vote: the few bytes that keep a replica from voting twice in one term."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from dledger.errors import Corruption, CorruptRecordError, DiskFailureError, invariant
from store.files import FileSystem

FILE_NAME = "vote"
_TEMPORARY_NAME = "vote.tmp"
_NAME_BYTES_MAX = 1024

# The file, big endian. The checksum is the CRC-32 of everything behind it. A length of 0xFFFF
# means that no vote was given in this term.
#
#    0       4          8      16       18
#    +-------+----------+------+--------+-----------
#    | magic | checksum | term | name   | name, UTF-8
#    |       |          |      | length |
#    +-------+----------+------+--------+-----------
#      u32     u32        u64    u16
_HEADER = struct.Struct(">IIQH")
_CHECKED = struct.Struct(">QH")
_MAGIC = 0x444C5601  # "DLV" and version 1
_NO_VOTE = 0xFFFF


class Vote(NamedTuple):
    """The term a replica is in and whom it voted for in that term."""

    term: int
    voted_for: str | None


def encode_vote(vote: Vote) -> bytes:
    """Returns the content of the vote file."""
    name = b"" if vote.voted_for is None else vote.voted_for.encode("utf-8")
    invariant(len(name) <= _NAME_BYTES_MAX and vote.term >= 0, "vote cannot be stored", vote=vote)
    length = _NO_VOTE if vote.voted_for is None else len(name)
    checked = _CHECKED.pack(vote.term, length) + name
    return _HEADER.pack(_MAGIC, zlib.crc32(checked), vote.term, length) + name


def decode_vote(data: bytes) -> Vote | Corruption:
    """Returns the vote, or what is wrong with the bytes."""
    if len(data) < _HEADER.size:
        return Corruption.TRUNCATED_HEADER
    magic, checksum, term, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return Corruption.BAD_MAGIC
    name_bytes = 0 if length == _NO_VOTE else length
    if name_bytes > _NAME_BYTES_MAX or len(data) != _HEADER.size + name_bytes:
        return Corruption.BAD_LENGTH
    if zlib.crc32(data[8:]) != checksum:
        return Corruption.BAD_CHECKSUM
    try:
        name = data[_HEADER.size :].decode("utf-8")
    except UnicodeDecodeError:
        return Corruption.BAD_CHECKSUM
    return Vote(term, None if length == _NO_VOTE else name)


def load_vote(fs: FileSystem, directory: Path) -> Vote | None:
    """Returns the stored vote, or None if there never was one.

    Raises:
        CorruptRecordError: The file is damaged. It is replaced in one step, so no crash explains
            that, and a replica that has forgotten its vote must not vote.
    """
    names = fs.list_directory(directory)
    if _TEMPORARY_NAME in names:
        fs.remove(directory / _TEMPORARY_NAME)
    if FILE_NAME not in names:
        return None
    path = directory / FILE_NAME
    file = fs.open(path)
    try:
        data = fs.read(file, 0, _HEADER.size + _NAME_BYTES_MAX + 1)
    finally:
        fs.close(file)
    found = decode_vote(data)
    if isinstance(found, Corruption):
        raise CorruptRecordError(str(path), 0, found)
    return found


def save_vote(fs: FileSystem, directory: Path, vote: Vote) -> None:
    """Replaces the stored vote.

    Raises:
        OSError: The old vote still stands.
        DiskFailureError: It is not known which of the two would survive a loss of power.

    Durability: synced on return.
    """
    data = encode_vote(vote)
    temporary = directory / _TEMPORARY_NAME
    with contextlib.suppress(FileNotFoundError):
        fs.remove(temporary)
    file = fs.create(temporary, len(data))
    try:
        fs.write(file, 0, [data])
        fs.sync(file)
    finally:
        fs.close(file)
    fs.rename(temporary, directory / FILE_NAME)
    try:
        fs.sync_directory(directory)
    except OSError as error:
        raise DiskFailureError(f"the new vote could not be made durable: {error}") from error
