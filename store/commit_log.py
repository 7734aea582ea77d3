"""The CommitLog: one replica's Raft log and message store, in segment files.

Writes happen on the event loop, into the page cache; one sync thread makes them durable for all
that has gathered (`store.group_commit`). Reads of the newest records come from memory, older ones
from read-only mappings. Memory and opening time do not depend on the length of the log. How a log
is opened after a crash, and what counts as damage, is told in `store.recovery`; the layout of every
file in docs/storage-format.md.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from dledger.clock import Clock, SystemClock
from dledger.errors import (
    StoreError,
    invariant,
)
from store import recovery
from store.active_segment import ActiveSegment
from store.config import StoreConfig
from store.files import FileLock, FileSystem, OsFileSystem
from store.front import FrontRemoval, droppable
from store.group_commit import GroupCommit
from store.log_health import LogHealth
from store.log_reset import reset_files
from store.log_statistics import CommitLogStatistics
from store.mark_file import DurableMark
from store.members_file import load_members, save_members
from store.reader import LogReader
from store.record import (
    HEADER_BYTES,
    LogEntry,
    decode_records,
    encode_record,
    stamped_offsets,
)
from store.segment import Segment, SegmentFacts
from store.sync_worker import SyncWorker, ThreadSyncWorker
from store.tail_cache import TailCache
from store.verify import VerifyReport, open_error, verify_directory
from store.vote_file import Vote, load_vote, save_vote, settle_vote

logger = logging.getLogger(__name__)

LOCK_NAME = "LOCK"


class CommitLog:
    """One replica's log. Satisfies `dledger.raft`'s `LogStorage`.

    Concurrency: everything belongs to one thread, the event loop's.
    """

    record_header_bytes = HEADER_BYTES

    def __init__(
        self,
        directory: Path,
        config: StoreConfig,
        fs: FileSystem,
        group: GroupCommit,
        mark: DurableMark,
        lock: FileLock,
    ) -> None:
        """Use `open`."""
        self._directory = directory
        self._config = config
        self._fs = fs
        self._group = group
        self._mark = mark
        self._lock = lock
        self._health = LogHealth(directory, group)
        self._segments: list[Segment] = []
        self._cache = TailCache(config.tail_cache_bytes)
        self._reader = LogReader(self._segments, self._cache, config.segments_mapped_max)
        self._active = ActiveSegment(
            fs, directory, config, group, self._health, self._segments, self._reader
        )
        self._last_index = 0
        self._last_term = 0
        self._offset_end = 0
        self._vote = Vote(0, None)
        self._members: bytes | None = None

    @classmethod
    def open(
        cls,
        directory: Path | str,
        config: StoreConfig | None = None,
        fs: FileSystem | None = None,
        *,
        sync_worker: SyncWorker | None = None,
        clock: Clock | None = None,
    ) -> CommitLog:
        """Opens the log in a directory of its own, creating it if missing.

        Args:
            directory: Holds nothing else.
            config: Defaults if None.
            fs: The operating system's if None.
            sync_worker: A `ThreadSyncWorker` if None.
            clock: For statistics only.

        Raises:
            DataDirectoryLockedError: Another process has it open.
            CorruptRecordError: The log is damaged; see `store.recovery`. Nothing was changed.
            DiskFullError: No room even for the first small files.
            DiskFailureError: The disk failed, or the directory cannot be used.

        Durability: everything the opened log holds is synced.

        Cost: reads the newest segment.
        """
        directory = Path(directory)
        config = config or StoreConfig()
        fs = fs or OsFileSystem()
        clock = clock or SystemClock()
        delay_s = config.flush_interval_ms / 1000 if config.flush == "async" else None
        with contextlib.ExitStack() as stack:
            try:
                fs.make_directory(directory)
                lock = fs.lock(directory / LOCK_NAME)
                stack.callback(lock.release)
                mark = DurableMark.open(fs, directory)
                stack.callback(mark.close)
                # What is found is built upon from here, so it must be durable first, names too:
                # the last process may have died between a change and its sync.
                fs.sync_directory(directory)
                stored = load_vote(fs, directory)
                members = load_members(fs, directory)
                found = recovery.open_log(fs, directory, config, mark)
                vote = settle_vote(fs, directory, stored, found.last_term)
                if mark.offset is None:
                    mark.lower_to(0)
            except OSError as error:
                raise open_error(directory, error) from error
            group = GroupCommit(
                fs,
                directory,
                mark,
                sync_worker or ThreadSyncWorker(),
                clock,
                async_delay_s=delay_s,
            )
            log = cls(directory, config, fs, group, mark, lock)
            log._adopt(found, vote, members)
            stack.pop_all()
        logger.info("log opened directory=%s %s", directory, log)
        return log

    def __repr__(self) -> str:
        return (
            f"<CommitLog first_index={self.first_index} last_index={self._last_index} "
            f"durable_index={self.durable_index} offset_end={self._offset_end} "
            f"segments={len(self._segments)}>"
        )

    def _adopt(self, found: recovery.Examination, vote: Vote, members: bytes | None) -> None:
        self._segments.extend(found.segments)
        if found.segments:
            self._active.segment = found.segments[-1]
            self._offset_end = found.segments[-1].end
        self._last_index, self._last_term = found.last_index, found.last_term
        self._group.begin(found.last_index, self._offset_end)
        self._vote = vote
        self._members = members

    # --- where the log begins and ends ----------------------------------------------------------

    @property
    def first_index(self) -> int:
        """Returns the index of the oldest entry; 1 if there is none."""
        return self._reader.first_index

    @property
    def last_index(self) -> int:
        """Returns the index of the newest entry, written; 0 if there is none."""
        return self._last_index

    @property
    def last_term(self) -> int:
        """Returns the term of the newest entry; 0 if there is none."""
        return self._last_term

    @property
    def durable_index(self) -> int:
        """Returns up to where entries may be acknowledged: synced, or written if flush="async"."""
        return self._group.durable_index

    @property
    def offset_min(self) -> int:
        """Returns the physical offset of the oldest byte."""
        return self._reader.offset_min

    @property
    def offset_end(self) -> int:
        """Returns the physical offset at which the next record will begin."""
        return self._offset_end

    @property
    def size_bytes(self) -> int:
        """Returns the bytes of all records held."""
        return self._offset_end - self.offset_min

    @property
    def failure(self) -> StoreError | None:
        """Returns why the log has stopped for good, or None."""
        return self._group.failure

    # --- writing --------------------------------------------------------------------------------

    def reserve(self, size_bytes: int) -> None:
        """Makes room for one write of this many record bytes, headers included.

        Records of less than `TINY_RECORD_BYTES` may also use a margin that is kept for the no-ops
        of leaders when the disk is full.

        Raises:
            DiskFullError: There is no room. Nothing has changed; try again later.
            DiskFailureError: The log has failed.
        """
        self._active.reserve(size_bytes, self._offset_end)

    def append(self, index: int, term: int, body: bytes | bytearray | memoryview) -> None:
        """Appends the entry that follows the newest one.

        Raises:
            DiskFullError: There is no room. Nothing has changed.
            DiskFailureError: The write failed; the log has failed for good.

        Durability: written on return; synced after `request_sync`, see `durable_index`.
        """
        record_bytes = HEADER_BYTES + len(body)
        invariant(
            index == self._last_index + 1 or (not self._last_index and index > 0),
            "append out of sequence",
            index=index,
            last_index=self._last_index,
        )
        invariant(term >= self._last_term, "term goes back", term=term, last=self._last_term)
        invariant(record_bytes <= self._config.record_bytes_max, "record too large", n=record_bytes)
        segment = self._active.room(record_bytes, self._offset_end)
        offset = self._offset_end
        record = encode_record(offset, index, term, body)
        self._active.write([record])
        segment.add(index, term, record_bytes)
        self._offset_end = offset + record_bytes
        self._last_index, self._last_term = index, term
        self._cache.add(LogEntry(index, term, memoryview(record)[HEADER_BYTES:], record), offset)

    def append_records(self, entries: Sequence[LogEntry]) -> None:
        """Appends records as they came from the leader, in one write.

        Args:
            entries: From `decode_records`: consecutive, the first following the newest entry. They
                are kept, and so is the memory that they are views of: it must not change.

        Raises:
            DiskFullError: There is no room. Nothing has changed.
            DiskFailureError: The write failed; the log has failed for good.
            InvariantError: They do not belong here: index, term or physical offset differ.

        Durability: as `append`.
        """
        if not entries:
            return
        index, term, offset = self._last_index, self._last_term, self._offset_end
        for entry, stamped in zip(entries, stamped_offsets(entries), strict=True):
            invariant(
                stamped == offset
                and entry.term >= term
                and (entry.index == index + 1 or not index),
                "records do not follow the log",
                index=entry.index,
                term=entry.term,
                physical_offset=stamped,
                last_index=index,
                last_term=term,
                offset_end=offset,
            )
            index, term, offset = entry.index, entry.term, offset + len(entry.record)
        segment = self._active.room(offset - self._offset_end, self._offset_end)
        self._active.write([entry.record for entry in entries])
        start = self._offset_end
        for entry in entries:
            segment.add(entry.index, entry.term, len(entry.record))
            self._cache.add(entry, start)
            start += len(entry.record)
        self._last_index, self._last_term, self._offset_end = index, term, offset

    def decode_records(self, data: memoryview) -> list[LogEntry]:
        """Returns the entries in bytes that a peer has sent, as views of them.

        Raises:
            RemoteProtocolError: The bytes are not whole, valid, consecutive records.
        """
        return decode_records(data, self._config.record_bytes_max)

    def truncate_from(self, index: int) -> None:
        """Drops this entry and all newer ones; nothing if it is beyond the end.

        Raises:
            DiskFailureError: The log has failed for good.

        Durability: on return the dropped entries can never come back, and all others are synced.

        Concurrency: blocks the loop for a few syncs. It happens when leaders change.
        """
        self._health.check()
        if index > self._last_index:
            return
        invariant(index >= self.first_index, "truncating below the first entry", index=index)
        self._settle()
        target = self._reader.segment_of_index(index)
        offset = target.base + target.bounds(index)[0]
        term = self.term_at(index - 1)
        with self._health.fatal_errors("truncation"):
            # Lowered first: else a crash in between would look like loss of synced records.
            self._mark.lower_to(offset)
            self._drop_after(target)
            target.cut(index)
            recovery.reopen(self._fs, target, self._config)
        self._active.segment = target
        self._reader.forget_from(index, target)
        self._last_index = index - 1 if self._segments[0].count else 0
        self._last_term = term or 0
        self._offset_end = offset
        self._group.restart(self._last_index, offset)
        logger.info("log truncated last_index=%d offset_end=%d", self._last_index, offset)

    def reset_to(self, record: bytes) -> None:
        """Replaces the whole log by one that begins with this record. Term and vote stay.

        Raises:
            DiskFailureError: The log has failed for good; so also if the disk is full.

        Durability: synced on return; interrupted, it must be done again: see `log_reset`.

        Concurrency: blocks the loop for as long as removing the files takes.
        """
        self._health.check()
        self._settle()
        with self._health.fatal_errors("replacement"):
            for segment in self._segments:
                segment.close()
            self._segments.clear()
            self._active.segment = None
            self._reader.close()
            reset_files(self._fs, self._directory, self._config, self._mark, record)
            found = recovery.open_log(self._fs, self._directory, self._config, self._mark)
        self._segments.extend(found.segments)
        self._active.segment = found.segments[-1]
        self._offset_end = found.segments[-1].end
        self._last_index, self._last_term = found.last_index, found.last_term
        self._group.restart(self._last_index, self._offset_end)
        logger.info("log replaced %s", self)

    def segments(self) -> list[SegmentFacts]:
        """Returns where the sealed segments lie, the oldest first."""
        return [segment.facts() for segment in self._segments[:-1]]

    def release_front(self, physical_offset: int, index_max: int) -> FrontRemoval | None:
        """Lets go of whole segments at the front; their files are removed by the result's `run`.

        Args:
            physical_offset: Everything from here on stays.
            index_max: The entry with this index and all newer ones stay.

        Returns:
            What is to be removed, None if nothing is. Until it has run, or if the process dies
            before, the segments are found again at the next opening.
        """
        self._health.check()
        count = droppable(
            self._segments,
            physical_offset=physical_offset,
            index_max=index_max,
            synced_offset=self._group.synced_offset,
        )
        if not count:
            return None
        dropped = self._segments[:count]
        del self._segments[:count]
        self._reader.forget_before(self._segments[0])
        for segment in dropped:
            segment.close()
        logger.info(
            "log shortened first_index=%d offset_min=%d segments_dropped=%d",
            self.first_index,
            self.offset_min,
            count,
        )
        return FrontRemoval(self._fs, self._directory, [segment.facts() for segment in dropped])

    def _drop_after(self, target: Segment) -> None:
        place = self._segments.index(target)
        for segment in reversed(self._segments[place + 1 :]):
            segment.close()
            recovery.remove_segment(self._fs, self._directory, segment.base)
        if place + 1 < len(self._segments):
            self._fs.sync_directory(self._directory)
        del self._segments[place + 1 :]

    # --- durability -----------------------------------------------------------------------------

    def request_sync(self) -> None:
        """Tells the sync thread that there is something to sync. Cheap; call it once a turn.

        Concurrency: on the event loop, which then receives the subscribers' callbacks.
        """
        active = self._active.segment
        if active is not None and not self._health.is_closed:
            self._group.request(self._last_index, self._offset_end, active.file)

    def sync(self) -> None:
        """Syncs everything, here and now; for tools, tests and shutdown.

        Raises:
            DiskFailureError: The log has failed for good.

        Durability: everything written is synced on return.
        """
        self._health.check()
        self._settle()

    def subscribe_durable(self, callback: Callable[[int], None]) -> None:
        """Calls back on the loop with the new `durable_index` whenever it has risen."""
        self._group.subscribe_durable(callback)

    def subscribe_failure(self, callback: Callable[[StoreError], None]) -> None:
        """Calls back once when a write or sync has failed: the replica must stop."""
        self._group.subscribe_failure(callback)

    @property
    def term(self) -> int:
        """Returns the stored term."""
        return self._vote.term

    @property
    def voted_for(self) -> str | None:
        """Returns whom this replica voted for in `term`."""
        return self._vote.voted_for

    def save_vote(self, term: int, voted_for: str | None) -> None:
        """Stores term and vote.

        Raises:
            DiskFullError: Nothing has changed.
            DiskFailureError: The log has failed for good.

        Durability: synced on return.
        """
        self._health.check()
        vote = Vote(term, voted_for)
        if vote == self._vote:
            return
        with self._health.replacing():
            save_vote(self._fs, self._directory, vote)
        self._vote = vote

    @property
    def members(self) -> bytes | None:
        """Returns what `save_members` stored last; None if nothing ever was."""
        return self._members

    def save_members(self, content: bytes) -> None:
        """Stores who belongs to the group. Errors and durability as `save_vote`."""
        self._health.check()
        with self._health.replacing():
            save_members(self._fs, self._directory, content)
        self._members = content

    def _settle(self) -> None:
        active = self._active.segment
        if active is not None:
            self._group.settle(self._last_index, self._offset_end, active.file)

    # --- reading --------------------------------------------------------------------------------

    def term_at(self, index: int) -> int | None:
        """Returns the term of an entry, or None if it is not held."""
        if index == self._last_index and index:
            return self._last_term
        return self._reader.term_at(index)

    def read_entries(self, first: int, count_max: int, bytes_max: int) -> list[LogEntry]:
        """Returns consecutive entries from `first`, at least one if it is held, else none.

        Args:
            first: Log index.
            count_max: At least 1.
            bytes_max: Of records; the first is returned even if it is larger.

        Returns:
            Views of memory or of mapped files, valid until the entries are truncated.

        Raises:
            CorruptRecordError: A stored record fails its check.
        """
        return self._reader.read_entries(first, count_max, bytes_max)

    def read_records(self, first: int, bytes_max: int) -> tuple[list[bytes | memoryview], int]:
        """Returns the bytes of consecutive records from `first`, and the last index among them.

        At least one record if it is held, else `([], first - 1)`. Arguments, views and errors as
        `read_entries`.
        """
        return self._reader.read_records(first, bytes_max)

    def read(self, physical_offset: int, size_bytes: int) -> memoryview:
        """Returns stored bytes that lie within one segment, usually within one record.

        Returns:
            A read-only view of memory or of a mapped file, valid until truncated.

        Raises:
            OffsetOutOfRangeError: The bytes are not all held, or not in one segment.
            CorruptRecordError: A record among them fails its check.
        """
        return self._reader.read(physical_offset, size_bytes)

    def locate(self, physical_offset: int) -> tuple[int, int] | None:
        """Returns index and term of the entry whose record holds a byte, None if none does."""
        return self._reader.locate(physical_offset)

    # --- the whole ------------------------------------------------------------------------------

    def verify(self, progress: recovery.Progress | None = None) -> VerifyReport:
        """Checks every record on disk; see `verify_directory`. Blocks for as long as that takes."""
        with contextlib.suppress(StoreError):
            self.sync()
        return verify_directory(self._directory, self._config, self._fs, progress=progress)

    def statistics(self) -> CommitLogStatistics:
        """Returns the log's numbers."""
        return CommitLogStatistics(
            first_index=self.first_index,
            last_index=self._last_index,
            durable_index=self._group.durable_index,
            synced_index=self._group.synced_index,
            offset_min=self.offset_min,
            offset_max=self._offset_end,
            segment_count=len(self._segments),
            segments_mapped=sum(segment.is_mapped for segment in self._segments),
            tail_cache_count=len(self._cache),
            tail_cache_bytes=self._cache.size_bytes,
            sync_count=self._group.sync_count,
            sync_seconds=self._group.sync_seconds,
            is_failed=self._group.failure is not None,
        )

    def close(self) -> None:
        """Syncs, unless the log has failed, and lets go of files and lock. May be called twice.

        Durability: everything written is synced if no error is raised.
        """
        if self._health.is_closed:
            return
        try:
            if self._group.failure is None:
                self._settle()
                with contextlib.suppress(OSError):
                    self._mark.sync()
        finally:
            self._health.is_closed = True
            self._group.close()
            self._reader.close()
            for segment in self._segments:
                segment.close()
            self._mark.close()
            self._lock.release()
