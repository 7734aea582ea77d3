"""A full check of a log on disk, for people and tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dledger.errors import CorruptRecordError, DiskFailureError, DiskFullError, StoreError
from store import recovery
from store.config import StoreConfig
from store.files import NO_SPACE_ERRNOS, FileSystem, OsFileSystem
from store.mark_file import DurableMark


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What a full check has found.

    Attributes:
        record_count: Valid records, up to the problem if there is one.
        size_bytes: Their bytes.
        problem: The first bad place; None if all is well.
        torn_tail_at: Physical offset of a torn tail, which opening the log would cut.
    """

    record_count: int
    size_bytes: int
    problem: CorruptRecordError | None
    torn_tail_at: int | None


def verify_directory(
    directory: Path | str,
    config: StoreConfig | None = None,
    fs: FileSystem | None = None,
    *,
    progress: recovery.Progress | None = None,
) -> VerifyReport:
    """Checks every record of a log without changing anything. The log may be open elsewhere.

    Raises:
        DiskFailureError: The files cannot be read.

    Cost: reads the whole log; blocks for as long as that takes.
    """
    directory, config, fs = Path(directory), config or StoreConfig(), fs or OsFileSystem()
    found = recovery.Examination()
    problem: CorruptRecordError | None = None
    try:
        mark_offset = DurableMark.peek(fs, directory)
        recovery.examine(
            fs, directory, config, mark_offset, into=found, everything=True, progress=progress
        )
    except CorruptRecordError as error:
        problem = error
    except OSError as error:
        raise open_error(directory, error) from error
    finally:
        for segment in found.segments + found.dropped:
            segment.close()
    return VerifyReport(
        record_count=found.record_count,
        size_bytes=sum(segment.length for segment in found.segments),
        problem=problem,
        torn_tail_at=found.cut_at,
    )


def open_error(directory: Path, error: OSError) -> StoreError:
    """Returns the typed form of an error met while a log was opened."""
    if error.errno in NO_SPACE_ERRNOS:
        return DiskFullError(f"no space to open the log in {directory}: {error}")
    return DiskFailureError(f"cannot use {directory}: {error}")
