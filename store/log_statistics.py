"""What the metrics read from a CommitLog."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CommitLogStatistics:
    """A snapshot of the log's numbers."""

    first_index: int
    last_index: int
    durable_index: int
    synced_index: int
    offset_min: int
    offset_max: int
    segment_count: int
    segments_mapped: int
    tail_cache_count: int
    tail_cache_bytes: int
    sync_count: int
    sync_seconds: float
    is_failed: bool
