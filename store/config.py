"""What can be configured about one replica's log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dledger.errors import ConfigError

KIB: Final = 1024
MIB: Final = 1024 * 1024
FLUSH_MODES: Final = ("sync", "async")


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Settings of the CommitLog; all of them belong to the process and may differ by replica.

    Attributes:
        segment_bytes: Preallocated size of a segment file. Larger means fewer files and coarser
            retention; opening after a crash reads about one segment.
        record_bytes_max: Largest record, header included. Bounds every length read from disk
            or from a peer.
        tail_cache_bytes: Memory for the newest records, so that replication, apply and tail reads
            need no disk. 0 turns it off.
        flush: "sync": `durable_index` means on disk. "async": it means in the page cache, and the
            disk follows every `flush_interval_ms`; a machine that loses power loses that much.
        flush_interval_ms: See `flush`.
        segments_mapped_max: Sealed segments that may be mapped at the same time.
        disk_free_bytes_min: Space that a new segment must leave free for everything else on the
            file system (LMDB, votes, logs).
    """

    segment_bytes: int = 256 * MIB
    record_bytes_max: int = 16 * MIB
    tail_cache_bytes: int = 16 * MIB
    flush: str = "sync"
    flush_interval_ms: int = 200
    segments_mapped_max: int = 8
    disk_free_bytes_min: int = 16 * MIB

    def __post_init__(self) -> None:
        self._check_range("segment_bytes", 64 * KIB, 2048 * MIB)
        self._check_range("record_bytes_max", 1 * KIB, 1024 * MIB)
        self._check_range("tail_cache_bytes", 0, 16384 * MIB)
        self._check_range("flush_interval_ms", 1, 60_000)
        self._check_range("segments_mapped_max", 1, 4096)
        self._check_range("disk_free_bytes_min", 0, 1 << 60)
        if self.flush not in FLUSH_MODES:
            raise ConfigError("store.flush", self.flush, "must be one of " + ", ".join(FLUSH_MODES))

    def _check_range(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"store.{name}", value, f"must be an integer from {low} to {high}")
