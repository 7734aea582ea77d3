"""Opening a log again: what to believe of the files that are found.

The rule. `M` is the durable mark, the offset up to which this replica knew its log to be synced
(`store.mark_file`). Records are read in order up to the first place `p` where no valid one lies.

* `p` below `M`: bytes that had been synced are gone or changed. That is corruption, whatever
  follows: `CorruptRecordError` with path, offset and reason. The replica must be rebuilt.
* `p` at or above `M`: a torn tail. It is cut at `p`, also when valid records follow, because after
  a loss of power pages come back in any order, and nothing that lies there was ever acknowledged
  by this replica. (Flush mode "async" acknowledges earlier, and says so.)
* No mark at all (it was deleted or destroyed): cut only if nothing valid follows `p`, else
  corruption.

Only segments that reach above the mark are read: usually just the newest. Older ones were synced
and sealed before the mark passed them; their records are checked when they are first read, and all
by `verify`. Behind the end of the log the newest segment is always made blank again, so bytes of a
former tail can never be taken for records later on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dledger.errors import Corruption, CorruptRecordError
from store.config import StoreConfig
from store.files import NO_SPACE_ERRNOS, FileSystem
from store.index_file import SUFFIX, TEMPORARY_SUFFIX
from store.mark_file import DurableMark
from store.record import HEADER, HEADER_BYTES, MAGIC, ScanStop, find_record
from store.segment import Segment, parse_segment_name, segment_name

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(slots=True)
class Examination:
    """What was found on disk. `cut_at` is where a torn tail begins, None if there is none."""

    segments: list[Segment] = field(default_factory=list)
    scanned_from: int = 0  # place in `segments` of the first that was read in full
    last_index: int = 0
    last_term: int = 0
    record_count: int = 0  # of the segments that were read
    cut_at: int | None = None
    cut_reason: ScanStop | None = None
    dropped: list[Segment] = field(default_factory=list)  # behind the cut


def open_log(
    fs: FileSystem, directory: Path, config: StoreConfig, mark: DurableMark
) -> Examination:
    """Examines the log and repairs its tail.

    Returns:
        The segments in order; the last one is open for appending and blank behind its end. No
        segments if the log is new.

    Raises:
        CorruptRecordError: See the module. Nothing has been changed then.
        OSError: The disk failed.

    Durability: everything in the returned segments is synced.
    """
    remove_leftovers(fs, directory)
    found = examine(fs, directory, config, mark.offset)
    if found.cut_at is not None:
        logger.warning(
            "torn tail cut physical_offset=%d reason=%s segments_dropped=%d",
            found.cut_at,
            found.cut_reason.value if found.cut_reason else "",
            len(found.dropped),
        )
    for segment in reversed(found.dropped):
        segment.unmap()
        remove_segment(fs, directory, segment.base)
    if found.dropped:
        fs.sync_directory(directory)
    for segment in found.segments[found.scanned_from : -1]:
        _seal(fs, segment)
    if found.segments:
        reopen(fs, found.segments[-1], config)
        mark.raise_to(found.segments[-1].end)
        mark.sync()
    return found


def examine(
    fs: FileSystem,
    directory: Path,
    config: StoreConfig,
    mark_offset: int | None,
    *,
    into: Examination | None = None,
    everything: bool = False,
    progress: Progress | None = None,
) -> Examination:
    """Reads the log without changing it.

    Args:
        fs: Where it lies.
        directory: Likewise.
        config: For its limits.
        mark_offset: The durable mark, None if there is none.
        into: Receives what is found, so that the caller has it also after an error.
        everything: Whether to check the sealed segments as well.
        progress: Called after each segment.

    Raises:
        CorruptRecordError: The first bad place.
    """
    found = into if into is not None else Examination()
    found.segments = segments = list_segments(fs, directory, config)
    if not segments:
        if mark_offset:
            path = str(directory / segment_name(0))
            raise CorruptRecordError(path, 0, Corruption.MISSING_SEGMENT)
        return found
    if mark_offset is not None and segments[0].base > mark_offset:
        if mark_offset:
            path = str(directory / segment_name(mark_offset))
            raise CorruptRecordError(path, mark_offset, Corruption.MISSING_SEGMENT)
        # Nothing was ever synced, and the name of the first file was lost with the power.
        found.cut_at, found.cut_reason = 0, ScanStop.BLANK
        found.dropped, found.segments = segments, []
        return found
    trusted = 0
    while trusted < len(segments) - 1 and not everything and mark_offset is not None:
        if segments[trusted + 1].base >= mark_offset:
            break  # the mark passes the end of a segment only after that was sealed
        trusted += 1
    for place in range(trusted):
        _trust(fs, segments[place], segments[place + 1].base)
    found.scanned_from = trusted
    _scan_from(found, trusted, config, mark_offset, progress)
    if trusted and not segments[trusted].count:
        # What was scanned holds nothing, so it does not tell where the log's last entry is.
        trusted -= 1
        _scan_sealed(found, segments[trusted])
    for place in range(trusted):
        segment, follower = segments[place], segments[place + 1]
        segment.count = follower.first_index - segment.first_index
        if segment.count <= 0 or follower.first_term < segment.first_term:
            raise CorruptRecordError(str(follower.path), follower.base, Corruption.BAD_SEQUENCE)
        if follower.first_term == segment.first_term:
            segment.term_runs = [(segment.first_index, segment.first_term)]
    return found


def list_segments(fs: FileSystem, directory: Path, config: StoreConfig) -> list[Segment]:
    """Returns the segments in order, with nothing but their names and sizes known."""
    segments = []
    for name in fs.list_directory(directory):
        base = parse_segment_name(name)
        if base is None:
            continue
        path = directory / name
        segment = Segment(fs, path, base, record_bytes_max=config.record_bytes_max)
        file = fs.open(path)
        try:
            segment.capacity = fs.size(file)
        finally:
            fs.close(file)
        segments.append(segment)
    segments.sort(key=lambda segment: segment.base)
    return segments


def remove_segment(fs: FileSystem, directory: Path, base: int) -> None:
    """Removes a segment and its index; durable after the directory is synced."""
    with contextlib.suppress(FileNotFoundError):
        fs.remove(directory / (segment_name(base) + SUFFIX))
    fs.remove(directory / segment_name(base))


def reopen(fs: FileSystem, segment: Segment, config: StoreConfig) -> None:
    """Opens the newest segment for appending and makes everything behind its end blank.

    Where the disk is too full to allocate space the segment is opened without room.

    Durability: synced on return.
    """
    with contextlib.suppress(FileNotFoundError):
        fs.remove(segment.path.with_name(segment.path.name + SUFFIX))
    segment.unmap()
    if segment.file is None:
        segment.file = fs.open(segment.path)
    size_bytes = fs.size(segment.file)
    # A new tail of zeros, not a written one: what was there is gone whatever it was.
    fs.truncate(segment.file, segment.length)
    segment.capacity = segment.length
    for wanted in (max(size_bytes, config.segment_bytes), size_bytes):
        if wanted > segment.length and _has_room(fs, segment, wanted - size_bytes, config):
            segment.capacity = _try_allocate(fs, segment.file, segment.length, wanted)
        if segment.capacity > segment.length:
            break
    fs.sync(segment.file)


def remove_leftovers(fs: FileSystem, directory: Path) -> None:
    """Removes half-made index files and those whose segment is gone."""
    names = set(fs.list_directory(directory))
    for name in sorted(names):
        if name.endswith(TEMPORARY_SUFFIX) or (
            name.endswith(SUFFIX)
            and parse_segment_name(name.removesuffix(SUFFIX)) is not None
            and name.removesuffix(SUFFIX) not in names
        ):
            fs.remove(directory / name)


def _scan_from(
    found: Examination,
    first: int,
    config: StoreConfig,
    mark_offset: int | None,
    progress: Progress | None,
) -> None:
    segments = found.segments
    total = segments[-1].base + segments[-1].capacity - segments[first].base
    index = term = 0
    for place in range(first, len(segments)):
        segment = segments[place]
        limit = segments[place + 1].base - segment.base if place + 1 < len(segments) else None
        scanner, stop = segment.scan(index=index, term=term)
        segment.adopt_scan(scanner)
        index, term = scanner.index, scanner.term
        found.record_count += segment.count
        if progress is not None:
            progress(segment.end - segments[first].base, total)
        at = segment.end
        is_whole = scanner.position == limit if limit is not None else _is_clean(stop)
        if is_whole and (limit is not None or mark_offset is None or at >= mark_offset):
            continue
        if mark_offset is not None and at < mark_offset:
            raise CorruptRecordError(str(segment.path), at, _reason(stop, scanner.position, limit))
        if mark_offset is None and _follows(segments[place:], scanner.position, config):
            raise CorruptRecordError(str(segment.path), at, _reason(stop, scanner.position, limit))
        found.cut_at, found.cut_reason = at, stop
        found.dropped = segments[place + 1 :]
        del segments[place + 1 :]
        break
    found.last_index, found.last_term = index, term


def _follows(segments: list[Segment], position: int, config: StoreConfig) -> bool:
    """Says whether a valid record lies behind this place, in this segment or a later one."""
    start = position + 1
    for segment in segments:
        view = segment.whole_view()
        if find_record(view, segment.base, start, config.record_bytes_max) is not None:
            return True
        segment.release_pages()
        start = 0
    return False


def _has_room(fs: FileSystem, segment: Segment, growth_bytes: int, config: StoreConfig) -> bool:
    if growth_bytes <= 0:
        return True  # this much it had before
    return fs.free_bytes(segment.path.parent) - config.disk_free_bytes_min >= growth_bytes


def _try_allocate(fs: FileSystem, file: int, length: int, wanted: int) -> int:
    """Returns the capacity reached: `wanted`, or `length` if the disk is too full."""
    try:
        fs.allocate(file, wanted)
    except OSError as error:
        if error.errno not in NO_SPACE_ERRNOS:
            raise
        fs.truncate(file, length)
        return length
    return wanted


def _is_clean(stop: ScanStop) -> bool:
    return stop in (ScanStop.END, ScanStop.BLANK)


def _reason(stop: ScanStop, position: int, limit: int | None) -> Corruption:
    if limit is not None and _is_clean(stop) and position > limit:
        return Corruption.BAD_LENGTH
    if stop is ScanStop.END:
        return Corruption.TRUNCATED_BODY
    return stop.corruption


def _scan_sealed(found: Examination, segment: Segment) -> None:
    """Reads a sealed segment in full to learn its last entry."""
    scanner, stop = segment.scan(index=0, term=0)
    if stop is not ScanStop.END or not scanner.position:
        at = segment.base + scanner.position
        raise CorruptRecordError(str(segment.path), at, stop.corruption)
    segment.adopt_scan(scanner)
    segment.drop_positions()
    found.last_index, found.last_term = scanner.index, scanner.term


def _read_header(fs: FileSystem, segment: Segment) -> bytes:
    file = fs.open(segment.path)
    try:
        return fs.read(file, 0, HEADER_BYTES)
    finally:
        fs.close(file)


def _trust(fs: FileSystem, segment: Segment, end: int) -> None:
    """Takes a sealed segment as it is after a look at its size and first header."""
    length = end - segment.base
    path = str(segment.path)
    if segment.capacity < length:
        raise CorruptRecordError(path, segment.base + segment.capacity, Corruption.MISSING_SEGMENT)
    if segment.capacity > length:
        raise CorruptRecordError(path, end, Corruption.BAD_LENGTH)
    header = _read_header(fs, segment)
    if len(header) < HEADER_BYTES:
        raise CorruptRecordError(path, segment.base, Corruption.TRUNCATED_HEADER)
    magic, _, _, _, offset, index, term = HEADER.unpack(header)
    if magic != MAGIC:
        raise CorruptRecordError(path, segment.base, Corruption.BAD_MAGIC)
    if offset != segment.base or not index:
        raise CorruptRecordError(path, segment.base, Corruption.BAD_SEQUENCE)
    segment.length = length
    segment.first_index = index
    segment.first_term = term


def _seal(fs: FileSystem, segment: Segment) -> None:
    """Finishes the sealing of a segment that a crash has interrupted."""
    file = fs.open(segment.path)
    try:
        fs.truncate(file, segment.length)
        fs.sync(file)
    finally:
        fs.close(file)
    segment.unmap()
    segment.capacity = segment.length
    if segment.save_index():
        segment.drop_positions()
