"""Replacing a whole log by one that begins with a given record."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dledger.errors import invariant
from store.config import StoreConfig
from store.files import FileSystem
from store.index_file import SUFFIX
from store.mark_file import DurableMark
from store.record import decode_records, stamped_offsets
from store.segment import parse_segment_name, segment_name


def reset_files(
    fs: FileSystem, directory: Path, config: StoreConfig, mark: DurableMark, record: bytes
) -> None:
    """Removes all segments and makes one that holds just this record, where it says it belongs.

    Nobody may have the segments open. Interrupted at any point, it must be run again before the
    log is opened; the caller remembers that. Term and vote stay.

    Raises:
        OSError: The disk failed or is full.

    Durability: synced on return.
    """
    entries = decode_records(memoryview(record), config.record_bytes_max)
    invariant(len(entries) == 1, "a log is reset to one record", count=len(entries))
    base = stamped_offsets(entries)[0]
    for name in fs.list_directory(directory):
        if parse_segment_name(name.removesuffix(SUFFIX)) is not None:
            with contextlib.suppress(FileNotFoundError):
                fs.remove(directory / name)
    fs.sync_directory(directory)
    file = fs.create(directory / segment_name(base), max(config.segment_bytes, len(record)))
    try:
        fs.write(file, 0, [record])
        fs.sync(file)
    finally:
        fs.close(file)
    fs.sync_directory(directory)
    mark.lower_to(base + len(record))


def reset_directory(fs: FileSystem, directory: Path, config: StoreConfig, record: bytes) -> None:
    """Does the same to a log that is not open. The caller holds the data directory."""
    fs.make_directory(directory)
    mark = DurableMark.open(fs, directory)
    try:
        reset_files(fs, directory, config, mark, record)
    finally:
        mark.close()
