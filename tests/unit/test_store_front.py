"""A log that loses its oldest segments: what stays, what is found again after a crash."""

from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random

import pytest

from dledger.errors import OffsetOutOfRangeError
from store.commit_log import CommitLog
from store.config import KIB, StoreConfig
from store.simulated_files import PowerLossError, SimulatedFileSystem
from store.sync_worker import InlineSyncWorker

CONFIG = StoreConfig(segment_bytes=64 * KIB, disk_free_bytes_min=0)
DIRECTORY = Path("/log")


def opened(fs: SimulatedFileSystem) -> CommitLog:
    return CommitLog.open(DIRECTORY, CONFIG, fs, sync_worker=InlineSyncWorker())


def filled(fs: SimulatedFileSystem, last: int = 400) -> CommitLog:
    log = opened(fs)
    for index in range(1, last + 1):
        log.append(index, 1 + index // 100, b"%08d" % index * 100)
    log.sync()
    return log


def check(log: CommitLog, last: int = 400) -> None:
    index = log.first_index
    while index <= last:
        entries = log.read_entries(index, 100, 1 << 20)
        assert entries[0].index == index
        for entry in entries:
            assert bytes(entry.body) == b"%08d" % entry.index * 100
            assert log.term_at(entry.index) == 1 + entry.index // 100
        index = entries[-1].index + 1
    assert log.last_index == last


def test_whole_segments_go_and_the_rest_stays_where_it_was() -> None:
    fs = SimulatedFileSystem()
    log = filled(fs)
    segments = log.segments()
    assert len(segments) >= 4
    removal = log.release_front(segments[2].base + 10, log.last_index)
    assert removal is not None
    removal.run()
    assert (log.first_index, log.offset_min) == (segments[2].first_index, segments[2].base)
    assert log.size_bytes == log.offset_end - segments[2].base
    assert log.term_at(segments[1].last_index) is None
    assert log.read_entries(segments[1].last_index, 10, 1000) == []
    with pytest.raises(OffsetOutOfRangeError):
        log.read(segments[1].base, 10)
    check(log)
    end = log.offset_end
    log.close()
    log = opened(fs)
    assert (log.first_index, log.offset_min) == (segments[2].first_index, segments[2].base)
    assert log.offset_end == end
    check(log)
    log.append(401, 9, b"more")
    log.sync()
    log.truncate_from(300)
    assert log.last_index == 299
    log.close()


def test_what_is_needed_stays() -> None:
    fs = SimulatedFileSystem()
    log = filled(fs)
    segments = log.segments()
    end = log.offset_end
    assert log.release_front(segments[0].end - 1, log.last_index) is None
    assert log.release_front(end, segments[0].last_index) is None
    assert log.release_front(end, 0) is None
    # The segment that holds the entry stays, and the newest one always.
    removal = log.release_front(end, segments[1].last_index + 1)
    assert removal is not None
    assert removal.segments == segments[:2]
    removal.run()
    removal = log.release_front(end + 1, log.last_index + 1)
    assert removal is not None
    removal.run()
    assert log.segments() == []
    assert log.last_index == 400
    check(log)
    log.close()
    log = opened(fs)
    check(log)
    log.close()


def test_the_tail_cache_forgets_too() -> None:
    fs = SimulatedFileSystem()
    log = filled(fs)
    assert log.statistics().tail_cache_count == 400
    removal = log.release_front(log.offset_end, log.last_index)
    assert removal is not None
    assert log.statistics().tail_cache_count == log.last_index - log.first_index + 1
    assert log.term_at(1) is None
    log.close()


@pytest.mark.parametrize("seed", range(30))
def test_a_power_cut_at_any_point_leaves_no_gap(seed: int) -> None:
    chance = Random(seed)
    fs = SimulatedFileSystem()
    log = filled(fs)
    segments = log.segments()
    removal = log.release_front(segments[3].base, log.last_index)
    assert removal is not None
    left = chance.randrange(10)

    def call(_operation: str, _path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise PowerLossError

    fs.on_call = call
    with contextlib.suppress(PowerLossError):
        removal.run()
    fs = fs.power_loss(chance)
    log = opened(fs)
    assert log.first_index in {facts.first_index for facts in segments[:4]}
    check(log)
    log.close()


def test_a_process_that_dies_before_the_removal_finds_the_segments_again() -> None:
    fs = SimulatedFileSystem()
    log = filled(fs)
    segments = log.segments()
    assert log.release_front(segments[3].base, log.last_index) is not None
    log = opened(fs.process_death())
    assert log.first_index == 1
    check(log)
    log.close()
