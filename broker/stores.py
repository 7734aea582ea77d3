"""Opens what lies on a replica's disk, and checks that it belongs together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.config import BrokerConfig
from broker.installing import Installation, finish_installation
from dledger.clock import Clock
from dledger.errors import ConfigError, StoreError
from store.clean_mark import machine_boot_id
from store.commit_log import LOCK_NAME, CommitLog
from store.config import StoreConfig
from store.files import FileSystem
from store.snapshots import Snapshots
from store.state_store import StateStore
from store.sync_worker import SyncWorker
from store.verify import open_error


class StateAheadError(StoreError):
    """The state has applied entries that the log does not hold: one of the two was replaced."""

    definite = True


class StateBehindError(StoreError):
    """The log no longer holds the entries that the state would have to apply next."""

    definite = True


@dataclass(frozen=True, slots=True)
class Stores:
    """Log, state and snapshots of one replica, open."""

    log: CommitLog
    store: StateStore
    snapshots: Snapshots
    catching_up: Installation | None = None  # the state may be ahead of the log so far

    def close(self, *, clean: bool) -> None:
        """Closes all. The state is marked clean only above a log that was closed in order.

        After a power cut the state must not know entries that the log lost.
        """
        is_log_closed = False
        try:
            self.log.close()
            is_log_closed = True
        finally:
            self.store.close(clean=clean and is_log_closed)


def open_stores(
    config: BrokerConfig,
    fs: FileSystem,
    clock: Clock,
    *,
    sync_worker: SyncWorker | None = None,
    boot_id: Callable[[], str] = machine_boot_id,
) -> Stores:
    """Opens the data directory.

    Raises:
        ConfigError: The directory cannot be made.
        DataDirectoryLockedError: Another process uses it.
        CorruptRecordError: The log is damaged; nothing was changed.
        StateAheadError, StateBehindError: Log and state do not belong together.
        StoreError: The directory cannot be used.
    """
    directory, section = config.data_directory, config.store
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("data_directory", str(directory), str(error)) from error
    log_config = StoreConfig(
        segment_bytes=section.segment_bytes,
        tail_cache_bytes=section.tail_cache_bytes,
        flush=section.flush,
        # More than the floor of the gate: a new segment must not by itself stop writing.
        disk_free_bytes_min=2 * section.disk_free_min_bytes,
    )
    log_directory = directory / "log"
    try:
        fs.make_directory(log_directory)
        lock = fs.lock(log_directory / LOCK_NAME)
    except OSError as error:
        raise open_error(log_directory, error) from error
    try:
        snapshots = Snapshots(directory / "snapshots")
        catching_up = finish_installation(directory, log_config, fs, snapshots)
    finally:
        lock.release()
    log = CommitLog.open(log_directory, log_config, fs, sync_worker=sync_worker, clock=clock)
    ahead_max = 0 if catching_up is None else catching_up.applied_index
    try:
        # One beyond the log was received but never installed.
        snapshots.drop_beyond(max(log.last_index, ahead_max))
        store = StateStore.open(
            directory / "state",
            map_bytes=section.map_bytes,
            boot_id=boot_id,
            restore=snapshots.restore_into,
        )
    except BaseException:
        log.close()
        raise
    try:
        _check(config, log, store, ahead_max)
    except BaseException:
        store.close(clean=False)
        log.close()
        raise
    return Stores(log, store, snapshots, catching_up)


def _check(config: BrokerConfig, log: CommitLog, store: StateStore, ahead_max: int) -> None:
    directory = config.data_directory
    if store.applied_index > max(log.last_index, ahead_max):
        raise StateAheadError(
            f"{directory / 'state'} has applied entry {store.applied_index}, but "
            f"{directory / 'log'} ends with {log.last_index}: the log was replaced or lost; "
            "this replica must be rebuilt from its peers"
        )
    if store.applied_index + 1 < log.first_index:
        raise StateBehindError(
            f"{directory / 'state'} has applied entry {store.applied_index}, but "
            f"{directory / 'log'} begins with {log.first_index}: the state was lost and no "
            "snapshot could replace it; this replica must be rebuilt from its peers"
        )
