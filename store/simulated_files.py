"""A disk in memory that can lose power, die with the process, fill up and fail.

It is what `dledger.clock.ManualClock` is to clocks: the same store code runs on it in tests and in
simulations. It is meaner than a real disk where that is cheap: a loss of power keeps any subset of
the unsynced sectors, and any subset of the unsynced names, in any order. A name that was not synced
may be gone although its file was.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from dledger.errors import DataDirectoryLockedError
from store.files import Buffer, FileLock, Mapping

SECTOR_BYTES = 512


class PowerLossError(Exception):
    """The simulated machine is off. Not an `OSError`: no code may survive it."""


@dataclass(eq=False)
class _Inode:
    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    # Since the last sync, in order: (position, bytes) written, or (-1, b"") with a new size.
    pending: list[tuple[int, bytes, int]] = field(default_factory=list)

    def resize(self, size_bytes: int) -> None:
        # A new buffer each time, as mappings pin the old one.
        self.data = bytearray(self.data[:size_bytes].ljust(size_bytes, b"\0"))
        self.pending.append((-1, b"", size_bytes))

    def settle(self) -> None:
        """Makes content and length durable."""
        if len(self.durable) == len(self.data):
            for position, written, _ in self.pending:
                if position < 0:
                    break  # it had another size meanwhile
                self.durable[position : position + len(written)] = written
            else:
                self.pending.clear()
                return
        self.durable = bytearray(self.data)
        self.pending.clear()


@dataclass
class _NameChange:
    path: Path
    inode: _Inode | None  # None: removed
    source: Path | None = None  # of a rename


class SimulatedFileSystem:
    """A `FileSystem` in memory.

    Attributes:
        on_call: Called before each changing operation with its name and path; may raise an
            `OSError` to let it fail, or `PowerLossError`.
        calls: How many changing operations there have been.
        ignores_sync: A broken disk that reports syncs it has not done: for positive controls.
    """

    def __init__(self, *, capacity_bytes: int = 1 << 40, ignores_sync: bool = False) -> None:
        self.capacity_bytes = capacity_bytes
        self.ignores_sync = ignores_sync
        self.on_call: Callable[[str, Path], None] | None = None
        self.calls = 0
        self._is_off = False
        self._names: dict[Path, _Inode] = {}
        self._durable_names: dict[Path, _Inode] = {}
        self._changes: list[_NameChange] = []
        self._directories: set[Path] = set()
        self._open: dict[int, tuple[Path, _Inode]] = {}
        self._next_file = 3
        self._locks: set[Path] = set()

    # --- what a simulation does -----------------------------------------------------------------

    def process_death(self) -> SimulatedFileSystem:
        """Returns the disk as the next process finds it: all that was written is there."""
        self._is_off = True
        after = SimulatedFileSystem(
            capacity_bytes=self.capacity_bytes, ignores_sync=self.ignores_sync
        )
        after._names = dict(self._names)
        after._durable_names = dict(self._durable_names)
        after._changes = list(self._changes)
        after._directories = set(self._directories)
        return after

    def power_loss(self, random: Random) -> SimulatedFileSystem:
        """Returns the disk as it is found after the machine was switched off just now."""
        self._is_off = True
        after = SimulatedFileSystem(
            capacity_bytes=self.capacity_bytes, ignores_sync=self.ignores_sync
        )
        after._directories = set(self._directories)
        # How much of what is pending gets lost: nothing, all, or anything in between.
        survival = random.choice((0.0, 0.2, 0.5, 0.8, 0.98, 1.0))
        names = dict(self._durable_names)
        for change in self._changes:
            if random.random() < survival:
                _apply(names, change)
        survivors: dict[int, _Inode] = {}
        for path, inode in names.items():
            if id(inode) not in survivors:
                data = _surviving(inode, random, survival)
                survivors[id(inode)] = _Inode(bytearray(data), bytearray(data))
            after._names[path] = survivors[id(inode)]
        after._durable_names = dict(after._names)
        return after

    def flip_bit(self, path: Path, position: int, bit: int = 0) -> None:
        """Damages a file on disk."""
        inode = self._names[path]
        inode.data[position] ^= 1 << bit
        inode.durable = bytearray(inode.data)

    def content(self, path: Path) -> bytes:
        """Returns a file's bytes."""
        return bytes(self._names[path].data)

    # --- FileSystem -----------------------------------------------------------------------------

    def make_directory(self, path: Path) -> None:
        """Creates a directory, durably."""
        self._directories.add(path)

    def list_directory(self, path: Path) -> list[str]:
        """Returns the names in a directory, sorted."""
        return sorted(name.name for name in self._names if name.parent == path)

    def create(self, path: Path, size_bytes: int) -> int:
        """Creates a file of zeros."""
        self._call("create", path)
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._take_space(size_bytes)
        inode = _Inode()
        if size_bytes:
            inode.resize(size_bytes)
        self._change(_NameChange(path, inode))
        return self._hand_out(path, inode)

    def open(self, path: Path) -> int:
        """Opens a file."""
        self._check_power()
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._hand_out(path, self._names[path])

    def close(self, file: int) -> None:
        """Closes a file."""
        if file not in self._open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        del self._open[file]

    def size(self, file: int) -> int:
        """Returns a file's length."""
        return len(self._inode(file).data)

    def allocate(self, file: int, size_bytes: int) -> None:
        """Extends a file with zeros."""
        self._call("allocate", self._path(file))
        inode = self._inode(file)
        if size_bytes > len(inode.data):
            self._take_space(size_bytes - len(inode.data))
            inode.resize(size_bytes)

    def write(self, file: int, position: int, buffers: Sequence[Buffer]) -> None:
        """Writes within the file, or extends it."""
        self._call("write", self._path(file))
        inode = self._inode(file)
        data = b"".join(buffers)
        if position + len(data) > len(inode.data):
            self._take_space(position + len(data) - len(inode.data))
            inode.resize(position + len(data))
        inode.data[position : position + len(data)] = data
        inode.pending.append((position, data, 0))

    def read(self, file: int, position: int, size_bytes: int) -> bytes:
        """Returns bytes of a file."""
        return bytes(self._inode(file).data[position : position + size_bytes])

    def sync(self, file: int) -> None:
        """Makes content and length durable."""
        self._call("sync", self._path(file))
        if self.ignores_sync:
            return
        self._inode(file).settle()

    def truncate(self, file: int, size_bytes: int) -> None:
        """Cuts or extends a file."""
        self._call("truncate", self._path(file))
        inode = self._inode(file)
        if size_bytes != len(inode.data):
            inode.resize(size_bytes)

    def map(self, file: int, size_bytes: int) -> Mapping:
        """Returns a window on the file's current buffer; resizing the file detaches it."""
        inode = self._inode(file)
        if not 0 < size_bytes <= len(inode.data):
            raise ValueError(f"cannot map {size_bytes} of {len(inode.data)} bytes")
        return _SimulatedMapping(inode.data, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        """Renames a file."""
        self._call("rename", target)
        if source not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        self._change(_NameChange(target, self._names[source], source))

    def remove(self, path: Path) -> None:
        """Removes a file."""
        self._call("remove", path)
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._change(_NameChange(path, None))

    def sync_directory(self, path: Path) -> None:
        """Makes the names in a directory durable."""
        self._call("sync_directory", path)
        if self.ignores_sync:
            return
        for change in self._changes:
            if change.path.parent == path:
                _apply(self._durable_names, change)
        self._changes = [change for change in self._changes if change.path.parent != path]

    def free_bytes(self, path: Path) -> int:
        """Returns the space left."""
        self._check_power()
        return self.capacity_bytes - sum(len(inode.data) for inode in self._names.values())

    def lock(self, path: Path) -> FileLock:
        """Takes a lock that dies with this object."""
        self._check_power()
        if path in self._locks:
            raise DataDirectoryLockedError(f"data directory {path.parent} is in use")
        self._locks.add(path)
        return _SimulatedLock(self._locks, path)

    # --- private --------------------------------------------------------------------------------

    def _check_power(self) -> None:
        if self._is_off:
            raise PowerLossError

    def _call(self, operation: str, path: Path) -> None:
        self._check_power()
        self.calls += 1
        if self.on_call is not None:
            self.on_call(operation, path)

    def _take_space(self, size_bytes: int) -> None:
        if self.free_bytes(Path()) < size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _hand_out(self, path: Path, inode: _Inode) -> int:
        file, self._next_file = self._next_file, self._next_file + 1
        self._open[file] = (path, inode)
        return file

    def _inode(self, file: int) -> _Inode:
        self._check_power()
        if file not in self._open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._open[file][1]

    def _path(self, file: int) -> Path:
        self._inode(file)
        return self._open[file][0]

    def _change(self, change: _NameChange) -> None:
        _apply(self._names, change)
        self._changes.append(change)


class _SimulatedMapping:
    def __init__(self, data: bytearray, size_bytes: int) -> None:
        self.view = memoryview(data)[:size_bytes].toreadonly()

    def release_pages(self) -> None:
        pass

    def close(self) -> None:
        self.view.release()


class _SimulatedLock:
    def __init__(self, locks: set[Path], path: Path) -> None:
        self._locks = locks
        self._path = path

    def release(self) -> None:
        self._locks.discard(self._path)


def _apply(names: dict[Path, _Inode], change: _NameChange) -> None:
    if change.source is not None:
        names.pop(change.source, None)
    if change.inode is None:
        names.pop(change.path, None)
    else:
        names[change.path] = change.inode


def _surviving(inode: _Inode, random: Random, survival: float) -> bytes:
    data = bytearray(inode.durable)
    sizes_survive = True
    for position, written, size_bytes in inode.pending:
        if position < 0:
            # Changes of size are metadata, which file systems keep in order.
            sizes_survive = sizes_survive and random.random() < survival
            if sizes_survive:
                data = data[:size_bytes].ljust(size_bytes, b"\0")
            continue
        start = position
        while start < position + len(written):
            stop = min((start // SECTOR_BYTES + 1) * SECTOR_BYTES, position + len(written))
            if random.random() < survival and stop <= len(data):
                data[start:stop] = written[start - position : stop - position]
            start = stop
    return bytes(data)
