"""One LMDB environment: the only module that knows the lmdb package.

What it adds: room is made before a write transaction begins, both in the memory map (which grows
on demand) and in the file (which is extended with `posix_fallocate`), so that a full disk shows
itself as DiskFullError before anything was written. LMDB alone reports a full disk either as
ENOSPC or, when part of a vector of pages still went in, as a plain I/O error; with the file
extended beforehand neither happens, and where the estimate was too low the failed transaction is
gone without a trace and the error is told apart by trying to extend again.

Durability: a commit is *written*. It survives the death of the process, not of the machine; see
`clean_mark` for what follows from that. `sync` makes all commits durable.

Concurrency: one thread, but for `copy_to`, which may run on another one. Read transactions must be
short: a long one keeps freed pages from being used again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import lmdb

from dledger.errors import (
    ConfigError,
    DiskFailureError,
    DiskFullError,
    StoreClosedError,
    StoreError,
)
from store.mapped_pages import MappedPages

ReadTransaction: TypeAlias = "lmdb.Transaction[bytes]"
WriteTransaction: TypeAlias = "lmdb.Transaction[bytes]"
ReadCursor: TypeAlias = "lmdb.Cursor[bytes]"
Database: TypeAlias = "lmdb._Database"

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
MAP_BYTES_MIN: Final = 1 << 20

# The file is extended in steps of this size. Small, because every replica pays it when idle.
_EXTEND_BYTES: Final = 4 << 20
# Free pages, tree growth and the copies of touched pages that every transaction needs.
_ROOM_BYTES_MIN: Final = 1 << 20
# Room in the map before a copy begins: it cannot grow while another thread reads it.
_COPY_ROOM_BYTES: Final = 4 << 30
_FULL_CODES: Final = frozenset((errno.ENOSPC, errno.EFBIG, errno.EDQUOT))


class UnusableStateError(StoreError):
    """The files are not an LMDB environment of ours. They must be discarded and rebuilt."""


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turns operating system errors of the block into store errors that name the path."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL_CODES:
            raise DiskFullError(f"no space for {path}: {exc}") from exc
        raise DiskFailureError(f"{path}: {exc}") from exc


class LmdbEnvironment:
    """An open environment and its databases."""

    def __init__(
        self,
        path: Path,
        *,
        database_names: Sequence[str],
        map_bytes: int,
        map_bytes_max: int,
    ) -> None:
        """Opens or creates the environment.

        Args:
            path: Its directory, which must exist.
            database_names: Databases to open or create.
            map_bytes: Address space to begin with; the file is sparse and grows with its content.
            map_bytes_max: Where growing ends; beyond it writes are refused like on a full disk.

        Raises:
            UnusableStateError: The files are not an LMDB environment.
            DiskFullError: No room for an empty environment.
            DiskFailureError: The directory cannot be used.
        """
        if not MAP_BYTES_MIN <= map_bytes <= map_bytes_max:
            raise ConfigError(
                "map_bytes", map_bytes, f"must lie in [{MAP_BYTES_MIN}, {map_bytes_max}]"
            )
        self._path = path
        self._map_bytes_max = map_bytes_max
        self._map_bytes = map_bytes
        self._database_names = tuple(database_names)
        self._copying = False
        self._begin()

    def _begin(self) -> None:
        """Opens the files that are there now."""
        path, database_names = self._path, self._database_names
        data_file = path / DATA_FILE
        existing_bytes = data_file.stat().st_size if data_file.exists() else 0
        # A file larger than the map of its first start: the map has to cover all of it.
        self._map_bytes = min(
            _rounded_up(max(self._map_bytes, existing_bytes)), self._map_bytes_max
        )
        try:
            self._env = _open_environment(path, self._map_bytes, len(database_names))
            self.databases: Mapping[str, Database] = {
                name: self._env.open_db(name.encode()) for name in database_names
            }
            # Readers of a process that was killed would keep their pages for ever.
            self._env.reader_check()
        except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as exc:
            raise UnusableStateError(f"{path}: {exc}") from exc
        except lmdb.Error as exc:
            raise _translated(exc, path) from exc
        self._pages = MappedPages(data_file)
        self._page_bytes: int = self._env.stat()["psize"]
        self._allocated_bytes = data_file.stat().st_size
        self._open = True

    @property
    def map_bytes(self) -> int:
        """Size of the memory map now."""
        return self._map_bytes

    def replace_file(self, exchange: Callable[[], None]) -> None:
        """Closes the environment, lets the file be exchanged, and opens it again.

        Whoever holds this object goes on with the new content.

        Raises:
            UnusableStateError: The new file is not an LMDB environment. This one stays closed.
        """
        self._check_open()
        self.close()
        exchange()
        self._begin()

    def read(self) -> ReadTransaction:
        """Returns a read transaction, to be used in a `with` and left soon."""
        self._check_open()
        self._pages.used()
        return self._env.begin()

    def write(self, operations: Callable[[WriteTransaction], None], *, bytes_estimate: int) -> None:
        """Runs the operations in one write transaction and commits it.

        Args:
            operations: Called with the transaction; called again from the start, in a fresh
                transaction, if the map had to grow. Its own exceptions abort the transaction.
            bytes_estimate: About how many bytes of pages the transaction will write.

        Raises:
            DiskFullError: Nothing was written; the same call may be made again later.
            DiskFailureError: The disk failed; the replica must stop.

        Durability: written on return.
        """
        self._check_open()
        self._pages.used()
        self._make_room(_ROOM_BYTES_MIN + bytes_estimate)
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    operations(transaction)
                return
            except lmdb.MapFullError:
                self._grow_map(self._map_bytes * 2)
            except lmdb.Error as exc:
                if getattr(exc, "code", 0) == errno.EIO:
                    # Half a vector of pages written looks like this. If the disk is full, this
                    # raises DiskFullError instead.
                    self._extend_file(self._allocated_bytes + _EXTEND_BYTES)
                raise _translated(exc, self._path) from exc

    def sync(self) -> None:
        """Makes every commit so far durable. Blocks until the disk has it.

        Raises:
            DiskFailureError: The sync failed.
        """
        self._check_open()
        try:
            self._env.sync(True)
        except lmdb.Error as exc:
            raise DiskFailureError(f"syncing {self._path}: {exc}") from exc

    def begin_copy(self) -> None:
        """Prepares `copy_to`; to be called on the owning thread, and `end_copy` after it.

        While a copy runs the map cannot grow (it would be mapped anew under the other thread's
        feet), so it gets room first. A write that needs more is refused like one to a full disk.
        """
        self._check_open()
        room = min(self.used_bytes() + _COPY_ROOM_BYTES, self._map_bytes_max)
        if room > self._map_bytes:
            self._grow_map(room)
        self._copying = True

    def end_copy(self) -> None:
        """Ends what `begin_copy` began."""
        self._copying = False
        self.release_pages()

    def copy_to(self, directory: Path) -> None:
        """Writes a consistent, compact copy into an existing directory. On any thread.

        Raises:
            DiskFullError: No room.
            DiskFailureError: The disk failed.
        """
        try:
            self._env.copy(str(directory), compact=True)
        except lmdb.Error as exc:
            raise _translated(exc, directory) from exc

    def release_pages(self) -> None:
        """Gives mapped pages back if there are many; for while a copy runs, which maps them all."""
        self._pages.look()

    def used_bytes(self) -> int:
        """Returns how far the file is used: bytes up to its last page in use."""
        self._check_open()
        return (self._env.info()["last_pgno"] + 1) * self._page_bytes

    def close(self) -> None:
        """Closes the environment without syncing. Idempotent."""
        if self._open:
            self._open = False
            self._env.close()

    def _check_open(self) -> None:
        if not self._open:
            raise StoreClosedError(f"the state in {self._path} is closed")

    def _make_room(self, room_bytes: int) -> None:
        end = self.used_bytes() + room_bytes
        if end > self._map_bytes:
            self._grow_map(end)
        if end > self._allocated_bytes:
            self._extend_file(end)

    def _grow_map(self, bytes_min: int) -> None:
        if self._copying:
            raise DiskFullError(f"the map of {self._path} cannot grow while it is copied")
        size = self._map_bytes
        while size < bytes_min and size < self._map_bytes_max:
            size = min(size * 2, self._map_bytes_max)
        if size < bytes_min:
            raise DiskFullError(
                f"{self._path} has reached its limit of {self._map_bytes_max} bytes; raise it"
            )
        try:
            self._env.set_mapsize(size)
        except lmdb.Error as exc:
            raise DiskFullError(f"cannot map {size} bytes of {self._path}: {exc}") from exc
        self._map_bytes = size

    def _extend_file(self, bytes_min: int) -> None:
        size = -(-bytes_min // _EXTEND_BYTES) * _EXTEND_BYTES
        # LMDB locks its lock file, not this one: closing this descriptor releases nothing.
        with store_errors(self._path):
            descriptor = os.open(self._path / DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        self._allocated_bytes = size


def read_value(path: Path, database_name: str, key: bytes) -> bytes | None:
    """Returns one value of an environment that nobody has open.

    Raises:
        UnusableStateError: It is not an environment with that database.
    """
    try:
        environment = lmdb.open(str(path), readonly=True, lock=False, max_dbs=1)
        try:
            database = environment.open_db(database_name.encode(), create=False)
            with environment.begin(db=database) as transaction:
                return transaction.get(key)
        finally:
            environment.close()
    except lmdb.Error as exc:
        raise UnusableStateError(f"{path}: {exc}") from exc


def _open_environment(path: Path, map_bytes: int, database_count: int) -> lmdb.Environment:
    return lmdb.open(
        str(path),
        map_size=map_bytes,
        max_dbs=database_count,
        # The truth is the log; see the module's docstring.
        sync=False,
        metasync=False,
        # A full disk under a writable map would be a SIGBUS instead of an error.
        writemap=False,
        # Access is at a few hot pages, and read-ahead would fill memory with cold ones.
        readahead=False,
        meminit=False,
        max_spare_txns=1,
    )


def _rounded_up(size: int) -> int:
    return -(-size // MAP_BYTES_MIN) * MAP_BYTES_MIN


def _translated(exc: lmdb.Error, path: Path) -> StoreError:
    if isinstance(exc, lmdb.DiskError) or getattr(exc, "code", 0) in _FULL_CODES:
        return DiskFullError(f"no space for {path}: {exc}")
    return DiskFailureError(f"{path}: {exc}")
