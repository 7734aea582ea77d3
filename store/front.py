"""Dropping the oldest segments of a log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from store.files import FileSystem
from store.recovery import remove_segment
from store.segment import Segment, SegmentFacts


def droppable(
    segments: Sequence[Segment], *, physical_offset: int, index_max: int, synced_offset: int
) -> int:
    """Returns how many segments, from the oldest, may be dropped.

    Args:
        segments: All of them in order; the last one is open for appending and always stays.
        physical_offset: What lies at or behind it stays.
        index_max: The entry with this index and all newer ones stay.
        synced_offset: A segment that is not wholly synced, and thereby sealed, stays.
    """
    limit = min(physical_offset, synced_offset)
    count = 0
    for segment in segments[:-1]:
        if segment.end > limit or segment.last_index >= index_max or not segment.count:
            break
        count += 1
    return count


class FrontRemoval:
    """Segments that the log has let go of; `run` removes their files."""

    def __init__(self, fs: FileSystem, directory: Path, segments: Sequence[SegmentFacts]) -> None:
        self.segments = segments
        self._fs = fs
        self._directory = directory

    def run(self) -> None:
        """Removes the files, the oldest first. On any thread; blocks for as long as that takes.

        Each removal is durable before the next: a power cut in between must not leave a gap.

        Raises:
            OSError: The disk failed. What is left is found, and dropped again, later.
        """
        for segment in self.segments:
            remove_segment(self._fs, self._directory, segment.base)
            self._fs.sync_directory(self._directory)
