"""The segment that a log is written to, and the change to the next one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dledger.errors import DiskFullError, StoreClosedError
from store.config import StoreConfig
from store.files import FileSystem
from store.group_commit import GroupCommit, Seal
from store.log_health import LogHealth
from store.reader import LogReader
from store.record import Buffer
from store.segment import Segment, segment_name
from store.space import TINY_RECORD_BYTES, choose_capacity, margin_bytes

logger = logging.getLogger(__name__)


class ActiveSegment:
    """Where the next record goes: room for it is allocated before it is written."""

    def __init__(
        self,
        fs: FileSystem,
        directory: Path,
        config: StoreConfig,
        group: GroupCommit,
        health: LogHealth,
        segments: list[Segment],
        reader: LogReader,
    ) -> None:
        """Begins without a segment.

        Args:
            fs: The disk.
            directory: Of the log.
            config: Sizes.
            group: Seals the segments that are left.
            health: Is told of errors.
            segments: The log's; new ones are added at the end.
            reader: Of the same segments.
        """
        self._fs = fs
        self._directory = directory
        self._config = config
        self._group = group
        self._health = health
        self._segments = segments
        self._reader = reader
        self._margin_bytes = margin_bytes(config)
        self.segment: Segment | None = None

    def reserve(self, size_bytes: int, base: int) -> None:
        """Makes room for one write; see `CommitLog.reserve`.

        Args:
            size_bytes: Of records, headers included.
            base: Physical offset at which a new segment would begin.
        """
        self._health.check()
        active = self.segment
        if active is not None and self._has_room(active, size_bytes + self._margin_bytes):
            return
        try:
            self._roll(size_bytes + self._margin_bytes, base)
        except DiskFullError:
            fits = active is not None and self._has_room(active, size_bytes)
            if size_bytes > TINY_RECORD_BYTES or not fits:
                raise

    def room(self, size_bytes: int, base: int) -> Segment:
        """Returns the segment that the next write goes to. Arguments and errors as `reserve`."""
        self.reserve(size_bytes, base)
        if self.segment is None:
            raise StoreClosedError("the log has no segment")
        return self.segment

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Writes behind what the segment holds; `room` was called for it.

        Raises:
            DiskFailureError: The log has failed for good.
        """
        active = self.segment
        if active is None or active.file is None:
            raise StoreClosedError("the segment is not open")
        try:
            self._fs.write(active.file, active.length, buffers)
        except OSError as error:
            # Not even a full disk is expected here: the space was allocated.
            raise self._health.fail("write", error) from error

    @staticmethod
    def _has_room(segment: Segment, size_bytes: int) -> bool:
        return segment.length + size_bytes <= segment.capacity

    def _roll(self, needed: int, base: int) -> None:
        """Begins a new segment with room for this many bytes."""
        active = self.segment
        try:
            capacity = choose_capacity(self._fs, self._directory, self._config, needed)
        except OSError as error:
            raise self._health.fail("free space", error) from error
        if active is not None and not active.length:
            self._extend(active, capacity)
            return
        path = self._directory / segment_name(base)
        try:
            file = self._fs.create(path, capacity)
        except OSError as error:
            raise self._health.space_error(error, capacity) from error
        self._group.note_names_changed()
        if active is not None and active.file is not None:
            seal_file, active.file = active.file, None
            active.capacity = active.length
            self._group.add_seal(Seal(self._fs, active, seal_file))
            self._reader.note_read(active)
        segment = Segment(self._fs, path, base, record_bytes_max=self._config.record_bytes_max)
        segment.begin(file, capacity)
        self._segments.append(segment)
        self.segment = segment
        logger.info("segment rolled base_offset=%d capacity_bytes=%d", base, capacity)

    def _extend(self, active: Segment, capacity: int) -> None:
        """Enlarges an empty segment: a second one cannot begin at the same offset."""
        if active.file is None:
            raise StoreClosedError("the log has no segment")
        try:
            self._fs.allocate(active.file, capacity)
        except OSError as error:
            raise self._health.space_error(error, capacity) from error
        active.unmap()
        active.capacity = capacity
