"""Sends and receives snapshots, and puts a received one in the place of log and state.

    DATA/snapshots/incoming/   what has arrived of one; removed at the next start
    DATA/installing            msgpack [applied index, first record, done], then CRC-32

The order makes a crash at any moment leave the old log and state or lead to the new ones: the
received copy becomes a snapshot; `installing` is written (from here on a start finishes the work);
the log is reset to the first record; the state becomes the snapshot; `installing` says `done` and
goes when the log has reached the state. Until then the state is allowed to be ahead of the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from broker.maintenance import Maintenance
from dledger.errors import (
    CorruptRecordError,
    DLedgerError,
    RemoteProtocolError,
    StoreError,
    TransferFailedError,
)
from dledger.raft.protocols import SnapshotWriter
from store.commit_log import CommitLog
from store.config import StoreConfig
from store.files import FileSystem
from store.lmdb_env import DATA_FILE, store_errors
from store.log_reset import reset_directory
from store.snapshots import SnapshotInfo, Snapshots, copy_checked, install_file
from store.state_store import StateStore

logger = logging.getLogger(__name__)

MARKER: Final = "installing"
INCOMING: Final = "incoming"
SNAPSHOT_BYTES_MAX: Final = 1 << 40
_VERSION: Final = 1


class Installation(msgspec.Struct, frozen=True, array_like=True):
    """What the marker says."""

    applied_index: int
    record: bytes
    is_done: bool


def read_marker(directory: Path) -> Installation | None:
    """Returns what is being installed, None if nothing is."""
    try:
        data = (directory / MARKER).read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "big"):
        raise StoreError(f"{directory / MARKER} is damaged; this replica must be rebuilt")
    return msgspec.msgpack.decode(data[:-4], type=Installation)


def write_marker(directory: Path, installation: Installation | None) -> None:
    """Replaces or removes the marker. Durability: synced on return."""
    with store_errors(directory):
        if installation is None:
            (directory / MARKER).unlink(missing_ok=True)
        else:
            data = msgspec.msgpack.encode(installation)
            temporary = directory / (MARKER + ".new")
            with temporary.open("wb") as file:
                file.write(data + zlib.crc32(data).to_bytes(4, "big"))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(directory / MARKER)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def finish_installation(
    directory: Path, log_config: StoreConfig, fs: FileSystem, snapshots: Snapshots
) -> Installation | None:
    """At a start, before anything is opened: finishes what a crash has interrupted.

    Returns:
        The installation whose log has not reached its state yet, or None.

    Raises:
        StoreError: It cannot be finished; this replica must be rebuilt.
    """
    shutil.rmtree(snapshots.directory / INCOMING, ignore_errors=True)
    found = read_marker(directory)
    if found is None or found.is_done:
        return found
    info = snapshots.load(found.applied_index)
    if info is None:
        raise StoreError(f"{directory}: the snapshot to be installed is gone; rebuild this replica")
    logger.warning("finishing the installation of a snapshot applied_index=%d", info.applied_index)
    with store_errors(directory):
        reset_directory(fs, directory / "log", log_config, found.record)
        (directory / "state").mkdir(exist_ok=True)
    install_file(snapshots.data_file(info), directory / "state", info)
    done = Installation(found.applied_index, found.record, is_done=True)
    write_marker(directory, done)
    snapshots.use(info)
    return done


class FileReader:
    """A snapshot's file being sent. Satisfies `raft.protocols.SnapshotReader`."""

    def __init__(self, path: Path, info: SnapshotInfo) -> None:
        self.applied_index = info.applied_index
        self.size_bytes = info.size_bytes
        self.crc = info.crc
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, position: int, size_bytes: int) -> bytes:
        """Returns a piece; shorter only at the end."""
        return os.pread(self._file, size_bytes, position)

    def close(self) -> None:
        """Lets go of it."""
        os.close(self._file)


class FileWriter:
    """A snapshot's file being received. Satisfies `raft.protocols.SnapshotWriter`."""

    def __init__(self, directory: Path, applied_index: int, size_bytes: int, crc: int) -> None:
        self.directory = directory
        self.applied_index = applied_index
        self.size_bytes = size_bytes
        self.crc = crc
        self.position = 0
        with store_errors(directory):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            self._file = (directory / DATA_FILE).open("wb")

    def write(self, data: bytes) -> None:
        """Stores the next piece.

        Raises:
            DiskFullError: The file is given up then.
            RemoteProtocolError: There would be more than was announced.
        """
        if self.position + len(data) > self.size_bytes:
            raise RemoteProtocolError("a snapshot is longer than announced")
        with store_errors(self.directory):
            self._file.write(data)
        self.position += len(data)

    def finish(self) -> None:
        """Hands what was written to the operating system."""
        with store_errors(self.directory):
            self._file.close()

    def abort(self) -> None:
        """Throws away what was received."""
        self._file.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Installer:
    """The snapshots of one replica. Satisfies `raft.protocols.SnapshotExchange`."""

    def __init__(
        self,
        directory: Path,
        log: CommitLog,
        store: StateStore,
        snapshots: Snapshots,
        maintenance: Maintenance,
        catching_up: Installation | None,
    ) -> None:
        """Prepares the exchange.

        Args:
            directory: The replica's data directory.
            log: Open.
            store: Open.
            snapshots: To send from and to add to.
            maintenance: For copying and syncing.
            catching_up: From `finish_installation`.
        """
        self._directory = directory
        self._log = log
        self._store = store
        self._snapshots = snapshots
        self._maintenance = maintenance
        self._catching_up = catching_up
        self._on_installed: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None
        log.subscribe_durable(self._on_durable)
        self._on_durable(log.durable_index)

    @property
    def catch_up_index(self) -> int:
        """How far the state may be ahead of the log; 0: not at all."""
        return 0 if self._catching_up is None else self._catching_up.applied_index

    def on_installed(self, callback: Callable[[], None]) -> None:
        """Calls back after each installation: everything in the state may have changed."""
        self._on_installed = callback

    def open_newest(self) -> FileReader | None:
        """Returns the newest snapshot, None if there is none."""
        newest = self._snapshots.newest
        return None if newest is None else FileReader(self._snapshots.data_file(newest), newest)

    def receive(self, applied_index: int, size_bytes: int, crc: int) -> FileWriter:
        """Begins to receive one; an earlier unfinished one is given up.

        Raises:
            RemoteProtocolError: Sizes are impossible.
        """
        if not 0 < size_bytes <= SNAPSHOT_BYTES_MAX or applied_index <= 0:
            raise RemoteProtocolError(f"a snapshot of {size_bytes} bytes at {applied_index}")
        return FileWriter(self._snapshots.directory / INCOMING, applied_index, size_bytes, crc)

    def install(
        self,
        writer: SnapshotWriter,
        record: bytes,
        may_install: Callable[[], bool],
        done: Callable[[int | None, DLedgerError | None], None],
    ) -> None:
        """Replaces log and state; see `raft.protocols.SnapshotExchange`."""
        if not isinstance(writer, FileWriter):
            raise RemoteProtocolError("not a snapshot of ours")

        async def run() -> None:
            try:
                applied_index = await self._install(writer, record, may_install)
            except CorruptRecordError as error:
                # The snapshot's, not the log's: it arrived damaged and is sent again.
                done(None, RemoteProtocolError(str(error)))
            except DLedgerError as error:
                done(None, error)
            else:
                done(applied_index, None)

        self._task = asyncio.get_running_loop().create_task(run(), name="install-snapshot")

    async def close(self) -> None:
        """Ends an installation under way; a start finishes it if it had begun for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _install(
        self, writer: FileWriter, record: bytes, may_install: Callable[[], bool]
    ) -> int:
        writer.finish()
        info = await self._maintenance.run(lambda: self._adopt(writer))
        state_directory = self._directory / "state"
        source = self._snapshots.data_file(info)
        await self._maintenance.run(lambda: copy_checked(source, state_directory, info))
        # No await from here on: the event loop, and so Raft, sees the old or the new.
        if not may_install():
            self._snapshots.drop_beyond(max(self._store.applied_index, self._log.last_index))
            raise TransferFailedError("the log has gone on meanwhile; no snapshot is needed")
        write_marker(self._directory, Installation(info.applied_index, record, is_done=False))
        self._log.reset_to(record)
        self._store.replace()
        done = self._catching_up = Installation(info.applied_index, record, is_done=True)
        write_marker(self._directory, done)
        self._snapshots.use(info)
        self._on_installed()
        return self._store.applied_index

    def _adopt(self, writer: FileWriter) -> SnapshotInfo:
        term = self._snapshots.term_of(writer.directory)
        info = SnapshotInfo(1, writer.applied_index, term, writer.size_bytes, writer.crc)
        self._snapshots.adopt(writer.directory, info)
        return info

    def _on_durable(self, index: int) -> None:
        """Forgets the installation once the log has reached the state."""
        if self._catching_up is not None and index >= self._catching_up.applied_index:
            self._catching_up = None
            write_marker(self._directory, None)
