"""Term and vote: the few bytes that keep a replica from voting twice in one term."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from dledger.errors import Corruption, CorruptRecordError, invariant
from store.files import FileSystem
from store.replaced_file import read_file, replace_file

logger = logging.getLogger(__name__)

FILE_NAME = "vote"
_FILE_BYTES = 2048
_NAME_BYTES_MAX = 1024

# The file, 2048 bytes, big endian. The checksum is the CRC-32 of term, length and name. A length
# of 0xFFFF means that no vote was given in this term. What lies behind the name means nothing.
#
#    0       4          8      16       18
#    +-------+----------+------+--------+-------------+----
#    | magic | checksum | term | name   | name, UTF-8 | ...
#    |       |          |      | length |             |
#    +-------+----------+------+--------+-------------+----
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
    end = _HEADER.size + name_bytes
    if name_bytes > _NAME_BYTES_MAX or len(data) < end:
        return Corruption.BAD_LENGTH
    if zlib.crc32(data[8:end]) != checksum:
        return Corruption.BAD_CHECKSUM
    try:
        name = data[_HEADER.size : end].decode("utf-8")
    except UnicodeDecodeError:
        return Corruption.BAD_CHECKSUM
    return Vote(term, None if length == _NO_VOTE else name)


def load_vote(fs: FileSystem, directory: Path) -> Vote | None:
    """Returns the stored vote, or None if there never was one.

    Raises:
        CorruptRecordError: The file is damaged. It is replaced in one step, so no crash explains
            that, and a replica that has forgotten its vote must not vote.
    """
    data = read_file(fs, directory / FILE_NAME, _FILE_BYTES)
    if data is None:
        return None
    found = decode_vote(data)
    if isinstance(found, Corruption):
        raise CorruptRecordError(str(directory / FILE_NAME), 0, found)
    return found


def settle_vote(fs: FileSystem, directory: Path, stored: Vote | None, last_term: int) -> Vote:
    """Returns the vote to begin with, durable.

    A record's term is a lower bound: the replica was in that term when it took the record. If the
    file is missing or older, somebody has tampered with it.
    """
    if stored is not None and stored.term >= last_term:
        return stored
    vote = Vote(last_term, None)
    if last_term:
        logger.warning("vote file missing or too old, term taken from the log term=%d", last_term)
        save_vote(fs, directory, vote)
    return vote


def save_vote(fs: FileSystem, directory: Path, vote: Vote) -> None:
    """Replaces the stored vote.

    Raises:
        OSError: The old vote still stands.
        DiskFailureError: It is not known which of the two would survive a loss of power.

    Durability: synced on return.
    """
    replace_file(fs, directory / FILE_NAME, encode_vote(vote), _FILE_BYTES)
