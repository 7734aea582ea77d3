"""Whether a log may still be written, and what its disk's errors mean for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dledger.errors import DiskFailureError, DiskFullError, StoreClosedError, StoreError
from store.files import NO_SPACE_ERRNOS, SHORTAGE_ERRNOS
from store.group_commit import GroupCommit
from store.space import PAGE_BYTES


class LogHealth:
    """Turns errors of the disk into ours; all but a lack of space stop the log for good."""

    def __init__(self, directory: Path, group: GroupCommit) -> None:
        self._directory = directory
        self._group = group
        self.is_closed = False

    def check(self) -> None:
        """Raises why the log cannot be written, if it cannot.

        Raises:
            StoreClosedError: It is closed.
            DiskFailureError: It has failed.
        """
        if self.is_closed:
            raise StoreClosedError("the log is closed")
        if self._group.failure is not None:
            raise self._group.failure

    def fail(self, what: str, error: OSError) -> StoreError:
        """Stops the log for good; returns what to raise."""
        failure = DiskFailureError(f"{what} of the log failed: {error}; the replica must stop")
        self._group.fail(failure)
        return failure

    def space_error(self, error: OSError, size_bytes: int) -> StoreError:
        """Returns what to raise when a file could not be made or enlarged."""
        if error.errno in NO_SPACE_ERRNOS or error.errno in SHORTAGE_ERRNOS:
            return DiskFullError(f"no room for {size_bytes} bytes in {self._directory}: {error}")
        return self.fail("creation of a file", error)

    @contextlib.contextmanager
    def fatal_errors(self, what: str) -> Iterator[None]:
        """Around what must not fail half-way: any error of the disk stops the log."""
        try:
            yield
        except OSError as error:
            raise self.fail(what, error) from error

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Around the replacement of a small file, which either happens or changes nothing."""
        try:
            yield
        except DiskFailureError as error:
            self._group.fail(error)
            raise
        except OSError as error:
            raise self.space_error(error, PAGE_BYTES) from error
