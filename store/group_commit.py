"""Group commit: what has been written but not synced, and how far the log is durable."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from dledger.clock import Clock
from dledger.errors import DiskFailureError, DLedgerError, StoreError
from store.files import FileSystem
from store.mark_file import SYNC_INTERVAL_S, DurableMark
from store.segment import Segment
from store.sync_worker import SyncWork, SyncWorker, run_work

logger = logging.getLogger(__name__)


class Seal:
    """A segment that takes no more records and is to be closed for good.

    The file belongs to the seal from the moment it is made.
    """

    def __init__(self, fs: FileSystem, segment: Segment, file: int) -> None:
        self.segment = segment
        self.file = file
        self.length = segment.length
        self.is_indexed = False
        self._fs = fs

    def run(self) -> None:
        """Cuts the allocated rest off, syncs, saves the index. Durable on return."""
        self._fs.truncate(self.file, self.length)
        self._fs.sync(self.file)
        self.is_indexed = self.segment.save_index()
        self.abandon()

    def abandon(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):
            self._fs.close(self.file)

    def finish(self) -> None:
        """Frees the memory that the index file replaces, unless the segment was reopened."""
        segment = self.segment
        if self.is_indexed and segment.file is None and segment.length == self.length:
            segment.drop_positions()


class SyncBatch:
    """Everything that one sync makes durable, in an order that any crash may interrupt."""

    def __init__(self, group: GroupCommit) -> None:
        self.seals: list[Seal] = []
        self.is_directory_dirty = False
        self.file: int | None = None  # of the segment open for appending
        self.index = 0
        self.offset = 0
        self.epoch = 0
        self._group = group

    def run(self) -> None:
        """Syncs sealed segments, then names, then the open segment, then raises the mark."""
        for seal in self.seals:
            seal.run()
        self._group.run_sync(self)


class GroupCommit:
    """Collects what must be synced, hands it to the worker, announces what became durable.

    `durable_index` is what may be acknowledged: with flush "async" that is what was written, and
    `synced_index` follows. Both never rise above what the log holds: truncation starts a new epoch,
    and results of an older one no longer count.

    Concurrency: everything belongs to the loop, except `take_work`, `idle` and `run_sync`, which
    the worker calls on its thread.
    """

    def __init__(
        self,
        fs: FileSystem,
        directory: Path,
        mark: DurableMark,
        worker: SyncWorker,
        clock: Clock,
        *,
        async_delay_s: float | None,
    ) -> None:
        """`async_delay_s` None means flush mode "sync"."""
        self.durable_index = 0
        self.synced_index = 0
        self.synced_offset = 0
        self.failure: StoreError | None = None
        self.sync_count = 0
        self.sync_seconds = 0.0
        self._fs = fs
        self._directory = directory
        self._mark = mark
        self._worker = worker
        self._clock = clock
        self._async_delay_s = async_delay_s
        self._epoch = 0
        self._lock = threading.Lock()  # guards the next two, for a few instructions only
        self._gathering = SyncBatch(self)
        self._is_requested = False
        self._mark_synced_at = clock.monotonic()
        self._on_durable: list[Callable[[int], None]] = []
        self._on_failure: list[Callable[[StoreError], None]] = []
        self._announced_index = 0
        self._is_announcing = False
        worker.start(self)

    def begin(self, index: int, offset: int) -> None:
        """Takes note of what an opened log holds, all of it synced."""
        self.durable_index = self.synced_index = self._announced_index = index
        self.synced_offset = offset

    # --- loop -----------------------------------------------------------------------------------

    def subscribe_durable(self, callback: Callable[[int], None]) -> None:
        """Calls back on the loop with the new `durable_index` whenever it has risen."""
        self._on_durable.append(callback)

    def subscribe_failure(self, callback: Callable[[StoreError], None]) -> None:
        """Calls back once, when a write or sync has failed."""
        self._on_failure.append(callback)

    def add_seal(self, seal: Seal) -> None:
        """Queues a full segment; it is sealed with the next sync."""
        with self._lock:
            if self._gathering.file == seal.file:
                self._gathering.file = None  # the seal syncs it, and then closes it
            self._gathering.seals.append(seal)

    def note_names_changed(self) -> None:
        """Says that the next sync must make names in the directory durable."""
        with self._lock:
            self._gathering.is_directory_dirty = True

    def request(self, index: int, offset: int, file: int | None) -> None:
        """Asks for a sync of everything up to this index and offset."""
        if self.failure is not None or index == self.synced_index:
            return
        self._gather(index, offset, file)
        if self._async_delay_s is None:
            self._worker.wake()
            return
        self._worker.wake(self._async_delay_s)
        if index > self.durable_index:
            self.durable_index = index
            self._announce_soon()

    def settle(self, index: int, offset: int, file: int | None) -> None:
        """Syncs everything up to this index, here and now.

        Raises:
            StoreError: A sync failed, here or on the worker.

        Durability: everything up to `index` is synced on return.
        """
        self._gather(index, offset, file)
        batch = self.take_work()  # None if the worker was faster
        error = self._worker.drain()
        if error is None and batch is not None and self.failure is None:
            error = run_work(batch)
        if error is not None:
            self.fail(_as_failure(error))
        if self.failure is not None:
            raise self.failure
        if isinstance(batch, SyncBatch):
            for seal in batch.seals:
                seal.finish()
        self._note_synced(index, offset)
        self._announce_soon()

    def restart(self, index: int, offset: int) -> None:
        """Takes note that the log now ends here, and is synced to here, after a truncation."""
        self._epoch += 1
        self.synced_index, self.synced_offset = index, offset
        self.durable_index = index
        self._announced_index = min(self._announced_index, index)
        self._announce_soon()

    def fail(self, error: StoreError) -> None:
        """Marks the log as failed for good and tells all subscribers, once."""
        if self.failure is not None:
            return
        self.failure = error
        # Not critical: the one line before the process stops is written by who stops it.
        logger.error("log failed error=%s", error)
        for callback in self._on_failure:
            callback(error)

    def close(self) -> None:
        """Stops the worker. What was not settled before is not synced."""
        self._worker.stop()
        batch = self.take_work()
        if isinstance(batch, SyncBatch):
            for seal in batch.seals:
                seal.abandon()
        self._on_durable.clear()
        self._on_failure.clear()

    def work_done(self, work: SyncWork, error: DLedgerError | None) -> None:
        """Takes the result of a batch."""
        if error is not None:
            self.fail(_as_failure(error))
            return
        if not isinstance(work, SyncBatch):
            return
        for seal in work.seals:
            seal.finish()
        if work.epoch == self._epoch:
            self._note_synced(work.index, work.offset)
            self._announce()

    def _gather(self, index: int, offset: int, file: int | None) -> None:
        with self._lock:
            batch = self._gathering
            batch.index, batch.offset, batch.file = index, offset, file
            batch.epoch = self._epoch
            self._is_requested = True

    def _note_synced(self, index: int, offset: int) -> None:
        if index > self.synced_index:
            self.synced_index, self.synced_offset = index, offset
        self.durable_index = max(self.durable_index, index)

    def _announce_soon(self) -> None:
        # Never from within `request_sync` or `truncate_from`: their callers are in the middle of
        # something, and all that is written in one turn of the loop is announced at once.
        if not self._is_announcing and self.durable_index > self._announced_index:
            self._is_announcing = True
            self._worker.post(self._announce)

    def _announce(self) -> None:
        self._is_announcing = False
        index = self.durable_index
        if index <= self._announced_index or self.failure is not None:
            return
        self._announced_index = index
        for callback in self._on_durable:
            callback(index)

    # --- the worker's thread --------------------------------------------------------------------

    def take_work(self) -> SyncWork | None:
        """Returns what has gathered since the last call, or None if nothing was asked for."""
        with self._lock:
            if not self._is_requested:
                return None
            batch, self._gathering = self._gathering, SyncBatch(self)
            self._is_requested = False
            return batch

    def run_sync(self, batch: SyncBatch) -> None:
        """Does the second half of `SyncBatch.run`."""
        started = self._clock.monotonic()
        if batch.is_directory_dirty or batch.seals:
            self._fs.sync_directory(self._directory)
        if batch.file is not None:
            self._fs.sync(batch.file)
        self._mark.raise_to(batch.offset)
        ended = self._clock.monotonic()
        self.sync_count += 1
        self.sync_seconds += ended - started
        if batch.seals or ended - self._mark_synced_at >= SYNC_INTERVAL_S:
            self._mark.sync()
            self._mark_synced_at = ended

    def idle(self) -> None:
        """Makes the mark durable when the log has come to rest."""
        if not self._mark.is_dirty:
            return
        # A mark that could not be synced claims too little at worst, so this is not fatal.
        with contextlib.suppress(OSError):
            self._mark.sync()
            self._mark_synced_at = self._clock.monotonic()


def _as_failure(error: DLedgerError) -> StoreError:
    return error if isinstance(error, StoreError) else DiskFailureError(str(error))
