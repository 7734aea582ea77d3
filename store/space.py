"""How much disk space a segment may take."""

from __future__ import annotations

from pathlib import Path

from dledger.errors import DiskFullError
from store.config import KIB, MIB, StoreConfig
from store.files import FileSystem

# Every segment keeps a margin that only tiny records may use, and only when no new segment can be
# made: so a leader of a full replica can still write its no-op, and serve reads.
TINY_RECORD_BYTES = KIB
_MARGIN_BYTES = 64 * KIB
_SHRUNK_SEGMENT_BYTES_MIN = MIB
PAGE_BYTES = 4096


def margin_bytes(config: StoreConfig) -> int:
    """Returns the room that is kept for tiny records at the end of each segment."""
    return min(_MARGIN_BYTES, config.segment_bytes // 8)


def choose_capacity(fs: FileSystem, directory: Path, config: StoreConfig, needed: int) -> int:
    """Returns how many bytes a new segment is to allocate, at least `needed`.

    Raises:
        DiskFullError: There is no room.
    """
    wanted = max(config.segment_bytes, needed)
    free = fs.free_bytes(directory) - config.disk_free_bytes_min
    if free >= wanted:
        return wanted
    # The last one before the disk is full is shorter, but not so short that a disk on which a
    # little space comes and goes would be littered with segments.
    shrunk = free // PAGE_BYTES * PAGE_BYTES
    if shrunk < max(needed, min(config.segment_bytes, _SHRUNK_SEGMENT_BYTES_MIN)):
        raise DiskFullError(
            f"{max(free, 0)} usable bytes left for {directory}, {needed} needed; "
            "writes resume when there is space"
        )
    return shrunk
