"""Everything the CommitLog does to a disk, as a protocol, and the real thing.

The protocol is small so that a simulated disk can stand in for the real one
(`store.simulated_files`): it can then lose or reorder what was not synced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dledger.errors import DataDirectoryLockedError

NO_SPACE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Other things of which there may be too few for the moment, disk intact.
SHORTAGE_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_IOV_MAX = 1024
_FILE_MODE = 0o640
_DIRECTORY_MODE = 0o750

Buffer = bytes | bytearray | memoryview


class Mapping(Protocol):
    """A read-only window on a file that shows what is written to it."""

    view: memoryview

    def release_pages(self) -> None:
        """Gives the mapped pages back; the view stays valid and reads them again on demand."""
        ...

    def close(self) -> None:
        """Unmaps, or leaves it to the last view that was handed out."""
        ...


class FileLock(Protocol):
    """A held lock."""

    def release(self) -> None:
        """Gives the lock up."""
        ...


class FileSystem(Protocol):
    """What the store needs of an operating system. Files are small integers.

    Every method raises `OSError` when it fails. Only what its docstring calls synced survives a
    loss of power.
    """

    def make_directory(self, path: Path) -> None:
        """Creates a directory and its parents if missing, and syncs their entries."""
        ...

    def list_directory(self, path: Path) -> list[str]:
        """Returns the names in a directory, sorted."""
        ...

    def create(self, path: Path, size_bytes: int) -> int:
        """Creates a file of zeros with its space allocated; leaves nothing behind if it fails."""
        ...

    def open(self, path: Path) -> int:
        """Opens an existing file for reading and writing."""
        ...

    def close(self, file: int) -> None:
        """Closes a file without syncing it."""
        ...

    def size(self, file: int) -> int:
        """Returns the file's length in bytes."""
        ...

    def allocate(self, file: int, size_bytes: int) -> None:
        """Extends a file with zeros to at least this length, its space allocated."""
        ...

    def write(self, file: int, position: int, buffers: Sequence[Buffer]) -> None:
        """Writes all buffers one after the other; visible to readers and mappings at once."""
        ...

    def read(self, file: int, position: int, size_bytes: int) -> bytes:
        """Returns up to `size_bytes` bytes; fewer only at the end of the file."""
        ...

    def sync(self, file: int) -> None:
        """Makes content and length durable (fdatasync). After a failure nothing is known."""
        ...

    def truncate(self, file: int, size_bytes: int) -> None:
        """Cuts the file; not durable before `sync`."""
        ...

    def map(self, file: int, size_bytes: int) -> Mapping:
        """Maps the first `size_bytes` bytes read-only. The file may be closed afterwards."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Renames within a directory, replacing; durable after `sync_directory`."""
        ...

    def remove(self, path: Path) -> None:
        """Removes a file; durable after `sync_directory`."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Makes the names in a directory durable."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Returns the space left for this user."""
        ...

    def lock(self, path: Path) -> FileLock:
        """Takes an exclusive lock or raises `DataDirectoryLockedError` at once."""
        ...


class OsFileSystem:
    """The operating system's file system."""

    def make_directory(self, path: Path) -> None:
        """Creates a directory and its parents if missing, and syncs their entries."""
        path = path.absolute()
        missing = [level for level in (path, *path.parents) if not level.exists()]
        path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        for level in missing:
            self.sync_directory(level.parent)

    def list_directory(self, path: Path) -> list[str]:
        """Returns the names in a directory, sorted."""
        return sorted(os.listdir(path))

    def create(self, path: Path, size_bytes: int) -> int:
        """Creates a file of zeros with its space allocated; leaves nothing behind if it fails."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        try:
            self.allocate(file, size_bytes)
        except BaseException:
            os.close(file)
            path.unlink()
            raise
        return file

    def open(self, path: Path) -> int:
        """Opens an existing file for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, file: int) -> None:
        """Closes a file without syncing it."""
        os.close(file)

    def size(self, file: int) -> int:
        """Returns the file's length in bytes."""
        return os.fstat(file).st_size

    def allocate(self, file: int, size_bytes: int) -> None:
        """Extends a file with zeros to at least this length, its space allocated."""
        if size_bytes:
            os.posix_fallocate(file, 0, size_bytes)

    def write(self, file: int, position: int, buffers: Sequence[Buffer]) -> None:
        """Writes all buffers one after the other; visible to readers and mappings at once."""
        total = sum(map(len, buffers))
        written = os.pwritev(file, buffers[:_IOV_MAX], position)
        if written != total:
            self._write_rest(file, position + written, b"".join(buffers), written)

    def _write_rest(self, file: int, position: int, data: bytes, done: int) -> None:
        rest = memoryview(data)[done:]
        while rest:
            written = os.pwrite(file, rest, position)
            if not written:
                raise OSError(errno.EIO, "write made no progress")
            position += written
            rest = rest[written:]

    def read(self, file: int, position: int, size_bytes: int) -> bytes:
        """Returns up to `size_bytes` bytes; fewer only at the end of the file."""
        return os.pread(file, size_bytes, position)

    def sync(self, file: int) -> None:
        """Makes content and length durable (fdatasync)."""
        os.fdatasync(file)

    def truncate(self, file: int, size_bytes: int) -> None:
        """Cuts the file; not durable before `sync`."""
        os.ftruncate(file, size_bytes)

    def map(self, file: int, size_bytes: int) -> Mapping:
        """Maps the first `size_bytes` bytes read-only. The file may be closed afterwards."""
        return _OsMapping(file, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        """Renames within a directory, replacing; durable after `sync_directory`."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        """Removes a file; durable after `sync_directory`."""
        os.unlink(path)

    def sync_directory(self, path: Path) -> None:
        """Makes the names in a directory durable."""
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def free_bytes(self, path: Path) -> int:
        """Returns the space left for this user."""
        facts = os.statvfs(path)
        return facts.f_bavail * facts.f_frsize

    def lock(self, path: Path) -> FileLock:
        """Takes an exclusive lock or raises `DataDirectoryLockedError` at once."""
        return _OsFileLock(path)


class _OsMapping:
    def __init__(self, file: int, size_bytes: int) -> None:
        self._map = mmap.mmap(file, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        self.view = memoryview(self._map)

    def release_pages(self) -> None:
        # For a shared file mapping this drops page table entries only: the page cache keeps the
        # data and views that were handed out fault it in again.
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        # A view that is still in somebody's hands keeps the memory mapped; the interpreter unmaps
        # it when the last one goes.
        with contextlib.suppress(BufferError):
            self.view.release()
            self._map.close()


class _OsFileLock:
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise DataDirectoryLockedError(
                f"data directory {path.parent} is in use by another process (pid {owner})"
            ) from error
        # The pid is for people only, so a full disk must not keep the replica from starting.
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
