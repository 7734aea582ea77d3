"""Snapshots: synced copies of the LMDB state, each of one applied index.

They are what the live environment is not: safe from a stop of the machine. A restart after one
restores the newest and replays the log from its applied index; a follower that needs entries which
the log no longer holds gets one. So the log before a snapshot's applied index can be dropped.

    DIR/<applied index, 20 digits>/data.mdb   the copy, compact
    DIR/<applied index, 20 digits>/manifest   msgpack: version, index, term, size, CRC-32, checked
    DIR/new/                                  one being made; removed at the next start

A snapshot counts once its directory has its name, which is done last: rename, then sync. Its file
never changes afterwards, so it can be read, and even removed, while it is being sent.
"""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from dledger.errors import Corruption, CorruptRecordError, DiskFailureError, invariant
from store import state_keys as keys
from store.lmdb_env import DATA_FILE, LOCK_FILE, UnusableStateError, read_value, store_errors

logger = logging.getLogger(__name__)

NEW_DATA_FILE: Final = DATA_FILE + ".new"
MANIFEST: Final = "manifest"
NEW: Final = "new"
VERSION: Final = 1
_NAME_DIGITS: Final = 20
_MANIFEST_BYTES_MAX: Final = 4096
_STEP_BYTES: Final = 1 << 20


class SnapshotInfo(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot is of."""

    version: int
    applied_index: int
    applied_term: int
    size_bytes: int
    crc: int


class Snapshots:
    """The snapshots of one replica. `keep` of them stay, the newest.

    Concurrency: `prepare`, `commit` and `remove_old` belong to one thread at a time; `newest` is
    for the loop.
    """

    def __init__(self, directory: Path, *, keep: int = 1) -> None:
        """Looks at what is there; removes what was never finished.

        Raises:
            DiskFailureError: The directory cannot be used.
        """
        self.directory = directory
        self._keep = keep
        with store_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(directory / NEW, ignore_errors=True)
        self._newest: SnapshotInfo | None = None
        for name in self._names():
            info = self._load(directory / name)
            if info is not None:
                self._newest = info
                break

    @property
    def newest(self) -> SnapshotInfo | None:
        """Returns the newest snapshot, or None."""
        return self._newest

    def data_file(self, info: SnapshotInfo) -> Path:
        """Returns the file of a snapshot."""
        return self.directory / f"{info.applied_index:0{_NAME_DIGITS}d}" / DATA_FILE

    def prepare(self, copy_to: Callable[[Path], None]) -> SnapshotInfo:
        """Makes a copy and syncs it; it does not count before `commit`. Blocks for as long.

        Args:
            copy_to: From `StateStore.copying`.

        Raises:
            DiskFullError: No room; nothing is left behind.
            DiskFailureError: The disk failed.
        """
        new = self.directory / NEW
        shutil.rmtree(new, ignore_errors=True)
        try:
            with store_errors(new):
                new.mkdir()
                copy_to(new)
                info = _describe(new)
                _write_synced(new / MANIFEST, encode_manifest(info))
                _sync_directory(new)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return info

    def commit(self, info: SnapshotInfo) -> None:
        """Makes the prepared copy the newest snapshot, and removes old ones.

        Durability: synced on return.
        """
        target = self.data_file(info).parent
        with store_errors(self.directory):
            if target.exists():
                shutil.rmtree(self.directory / NEW)
            else:
                (self.directory / NEW).rename(target)
            _sync_directory(self.directory)
        self._newest = info
        older = [name for name in self._names() if int(name) <= info.applied_index]
        for name in older[self._keep :]:
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def adopt(self, directory: Path, info: SnapshotInfo) -> None:
        """Makes a received copy the newest snapshot. On one thread at a time, as `prepare`.

        Args:
            directory: Holds `data.mdb`, synced. It is moved.
            info: What it is of; checked.

        Raises:
            CorruptRecordError: The file is not what `info` says.

        Durability: synced on return.
        """
        with store_errors(directory):
            found = _describe(directory)
            if found != info:
                raise CorruptRecordError(str(directory / DATA_FILE), 0, Corruption.BAD_CHECKSUM)
            _write_synced(directory / MANIFEST, encode_manifest(info))
            _sync_directory(directory)
            target = self.data_file(info).parent
            shutil.rmtree(target, ignore_errors=True)
            directory.rename(target)
            _sync_directory(self.directory)

    @staticmethod
    def term_of(directory: Path) -> int:
        """Returns the applied term of a copy, 0 if it cannot be read."""
        try:
            value = read_value(directory, "meta", keys.APPLIED_KEY)
        except UnusableStateError:
            return 0
        return 0 if value is None else int(keys.APPLIED.unpack(value)[1])

    def use(self, info: SnapshotInfo) -> None:
        """Makes an adopted copy the one that counts, and removes all others."""
        self._newest = info
        for name in self._names():
            if name != self.data_file(info).parent.name:
                shutil.rmtree(self.directory / name, ignore_errors=True)

    def drop_beyond(self, index: int) -> None:
        """Removes snapshots that were received but not installed: of later entries than this."""
        for name in self._names():
            if int(name) > index:
                shutil.rmtree(self.directory / name, ignore_errors=True)
                if self._newest is not None and self._newest.applied_index == int(name):
                    self._newest = None
        if self._newest is None:
            found = (self._load(self.directory / name) for name in self._names())
            self._newest = next((info for info in found if info is not None), None)

    def load(self, applied_index: int) -> SnapshotInfo | None:
        """Returns the snapshot of that index, None if there is none."""
        return self._load(self.directory / f"{applied_index:0{_NAME_DIGITS}d}")

    def restore_into(self, state_directory: Path) -> SnapshotInfo | None:
        """Copies the newest intact snapshot into an empty state directory.

        Returns:
            The snapshot, None if there is none.

        Durability: synced on return; interrupted, it leaves no data file.
        """
        for name in self._names():
            info = self._load(self.directory / name)
            if info is None:
                continue
            try:
                install_file(self.directory / name / DATA_FILE, state_directory, info)
            except CorruptRecordError as error:
                logger.error("snapshot is damaged: %s", error)
                continue
            logger.info("state restored from a snapshot applied_index=%d", info.applied_index)
            self._newest = info
            return info
        return None

    def _names(self) -> list[str]:
        """Returns the names of finished snapshots, the newest first."""
        with store_errors(self.directory):
            found = os.listdir(self.directory)
        names = [name for name in found if len(name) == _NAME_DIGITS and name.isdigit()]
        return sorted(names, reverse=True)

    def _load(self, directory: Path) -> SnapshotInfo | None:
        try:
            with (directory / MANIFEST).open("rb") as file:
                return decode_manifest(file.read(_MANIFEST_BYTES_MAX))
        except OSError:
            return None


def encode_manifest(info: SnapshotInfo) -> bytes:
    """Returns the manifest as stored: msgpack, then a CRC-32 of it."""
    data = msgspec.msgpack.encode(info)
    return data + zlib.crc32(data).to_bytes(4, "big")


def decode_manifest(data: bytes) -> SnapshotInfo | None:
    """Returns what a manifest says, or None if it is none of ours or damaged."""
    if len(data) < 5 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "big"):
        return None
    try:
        info = msgspec.msgpack.decode(data[:-4], type=SnapshotInfo)
    except msgspec.DecodeError:
        return None
    return info if info.version == VERSION and info.applied_index >= 0 else None


def install_file(source: Path, state_directory: Path, info: SnapshotInfo) -> None:
    """Copies a snapshot's file to where the live environment has its own, checking it.

    Raises:
        CorruptRecordError: The file is not what the manifest says.

    Durability: synced on return; the data file appears whole or not at all.
    """
    copy_checked(source, state_directory, info)
    with store_errors(state_directory):
        replace_data_file(state_directory)


def replace_data_file(state_directory: Path) -> None:
    """Gives the file of `copy_checked` the name of the live one, which nobody has open.

    Durability: synced on return.
    """
    # Its readers belong to the old file.
    (state_directory / LOCK_FILE).unlink(missing_ok=True)
    (state_directory / NEW_DATA_FILE).replace(state_directory / DATA_FILE)
    _sync_directory(state_directory)


def copy_checked(source: Path, state_directory: Path, info: SnapshotInfo) -> None:
    """Copies a snapshot's file beside the live one. On any thread.

    Raises:
        CorruptRecordError: The file is not what the manifest says.

    Durability: synced on return.
    """
    temporary = state_directory / NEW_DATA_FILE
    crc = size = 0
    with store_errors(state_directory), source.open("rb") as old, temporary.open("wb") as new:
        while data := old.read(_STEP_BYTES):
            crc = zlib.crc32(data, crc)
            size += len(data)
            new.write(data)
        new.flush()
        os.fsync(new.fileno())
    if (crc, size) != (info.crc, info.size_bytes):
        temporary.unlink()
        raise CorruptRecordError(str(source), 0, Corruption.BAD_CHECKSUM)


def _describe(directory: Path) -> SnapshotInfo:
    """Syncs a copy's file and returns what it is of."""
    crc = size = 0
    with (directory / DATA_FILE).open("rb+") as file:
        while data := file.read(_STEP_BYTES):
            crc = zlib.crc32(data, crc)
            size += len(data)
        os.fsync(file.fileno())
    try:
        value = read_value(directory, "meta", keys.APPLIED_KEY)
    except UnusableStateError as error:
        raise DiskFailureError(f"the copy in {directory} is not readable: {error}") from error
    index, term = (0, 0) if value is None else keys.APPLIED.unpack(value)
    invariant(size > 0, "an empty copy of the state", path=str(directory))
    return SnapshotInfo(VERSION, index, term, size, crc)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
