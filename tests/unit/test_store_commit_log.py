"""The CommitLog on a real file system: append, read, roll, truncate, reopen."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dledger.errors import (
    DataDirectoryLockedError,
    DiskFailureError,
    InvariantError,
    OffsetOutOfRangeError,
    RemoteProtocolError,
    StoreClosedError,
)
from store.commit_log import CommitLog
from store.config import KIB, StoreConfig
from store.record import HEADER_BYTES
from store.sync_worker import InlineSyncWorker, ManualSyncWorker

SMALL = StoreConfig(segment_bytes=64 * KIB, disk_free_bytes_min=0)
COLD = StoreConfig(
    segment_bytes=64 * KIB, disk_free_bytes_min=0, tail_cache_bytes=0, segments_mapped_max=2
)


def body_of(index: int, size: int = 1000) -> bytes:
    return (b"%08d" % index * (size // 8 + 1))[:size]


def fill(log: CommitLog, first: int, last: int, *, term: int = 1, size: int = 1000) -> None:
    for index in range(first, last + 1):
        log.append(index, term, body_of(index, size))
    log.sync()


def contents(log: CommitLog) -> list[tuple[int, int, bytes]]:
    found: list[tuple[int, int, bytes]] = []
    index = log.first_index
    while index <= log.last_index:
        entries = log.read_entries(index, 1000, 1 << 20)
        assert entries and entries[0].index == index
        found += [(entry.index, entry.term, bytes(entry.body)) for entry in entries]
        index = entries[-1].index + 1
    return found


@pytest.fixture(params=[SMALL, COLD], ids=["cached", "cold"])
def config(request: pytest.FixtureRequest) -> StoreConfig:
    found: StoreConfig = request.param
    return found


@pytest.fixture
def log(tmp_path: Path, config: StoreConfig) -> Iterator[CommitLog]:
    log = CommitLog.open(tmp_path, config, sync_worker=ManualSyncWorker())
    yield log
    log.close()


def reopen(log: CommitLog, path: Path, config: StoreConfig) -> CommitLog:
    log.close()
    return CommitLog.open(path, config, sync_worker=ManualSyncWorker())


def test_empty_log(log: CommitLog) -> None:
    assert (log.first_index, log.last_index, log.last_term, log.durable_index) == (1, 0, 0, 0)
    assert (log.offset_min, log.offset_end, log.size_bytes) == (0, 0, 0)
    assert log.term_at(0) is None and log.term_at(1) is None
    assert log.read_entries(1, 10, 100) == []
    assert log.read_records(1, 100) == ([], 0)
    assert (log.term, log.voted_for) == (0, None)
    with pytest.raises(OffsetOutOfRangeError):
        log.read(0, 1)
    log.truncate_from(1)
    log.request_sync()
    log.sync()


def test_entries_come_back_across_many_segments_and_a_restart(
    log: CommitLog, tmp_path: Path, config: StoreConfig
) -> None:
    fill(log, 1, 150, term=1)
    fill(log, 151, 400, term=7)
    assert log.statistics().segment_count > 5
    expected = [(index, 1 if index <= 150 else 7, body_of(index)) for index in range(1, 401)]
    assert contents(log) == expected
    end = log.offset_end
    log = reopen(log, tmp_path, config)
    assert (log.first_index, log.last_index, log.last_term, log.offset_end) == (1, 400, 7, end)
    assert log.durable_index == 400
    assert contents(log) == expected
    assert [log.term_at(index) for index in range(402)] == [
        None, *([1] * 150), *([7] * 250), None
    ]  # fmt: skip
    assert log.statistics().segments_mapped <= config.segments_mapped_max + 1
    fill(log, 401, 450, term=8)
    log = reopen(log, tmp_path, config)
    assert log.last_index == 450 and log.term_at(400) == 7 and log.term_at(401) == 8
    assert log.verify().record_count == 450 and log.verify().problem is None
    log.close()


def test_the_body_lies_where_offset_end_said(log: CommitLog) -> None:
    for index in range(1, 201):
        at = log.offset_end + log.record_header_bytes
        body = body_of(index, 700 + index)
        log.append(index, 1, body)
        assert log.read(at, len(body)) == body
        assert log.read(at + 10, 20) == body[10:30]
    offset = 0
    for index in range(1, 201):
        size = HEADER_BYTES + 700 + index
        assert bytes(log.read(offset, size))[HEADER_BYTES:] == body_of(index, 700 + index)
        offset += size
    for bad in [(-1, 5), (0, 0), (offset, 1), (offset - 1, 2), (1 << 70, 1)]:
        with pytest.raises(OffsetOutOfRangeError):
            log.read(*bad)


def test_read_limits(log: CommitLog) -> None:
    fill(log, 1, 20)
    size = HEADER_BYTES + 1000
    assert [entry.index for entry in log.read_entries(3, 2, 1 << 20)] == [3, 4]
    assert len(log.read_entries(3, 100, 3 * size)) == 3
    assert len(log.read_entries(3, 100, 3 * size - 1)) == 2
    assert len(log.read_entries(3, 100, 1)) == 1
    assert log.read_entries(21, 1, 1000) == []
    buffers, last = log.read_records(5, 4 * size)
    assert last == 8
    decoded = log.decode_records(memoryview(b"".join(buffers)))
    assert [(entry.index, bytes(entry.body)) for entry in decoded] == [
        (index, body_of(index)) for index in range(5, 9)
    ]
    assert log.read_records(20, 1)[1] == 20
    assert log.read_records(21, 1) == ([], 20)


def test_a_follower_stores_the_same_bytes(tmp_path: Path, config: StoreConfig) -> None:
    leader = CommitLog.open(tmp_path / "a", config, sync_worker=InlineSyncWorker())
    other = StoreConfig(segment_bytes=100 * KIB, disk_free_bytes_min=0)
    follower = CommitLog.open(tmp_path / "b", other, sync_worker=InlineSyncWorker())
    fill(leader, 1, 300, term=2)
    while follower.last_index < leader.last_index:
        buffers, _ = leader.read_records(follower.last_index + 1, 10_000)
        follower.append_records(follower.decode_records(memoryview(b"".join(buffers))))
    follower.request_sync()
    assert follower.durable_index == 300
    assert follower.offset_end == leader.offset_end
    assert contents(follower) == contents(leader)
    entries = leader.decode_records(memoryview(b"".join(leader.read_records(10, 5000)[0])))
    with pytest.raises(InvariantError, match="do not follow"):
        follower.append_records(entries)
    follower.append_records([])
    leader.close()
    follower.close()
    follower = CommitLog.open(tmp_path / "b", config, sync_worker=InlineSyncWorker())
    assert len(contents(follower)) == 300
    follower.close()


@pytest.mark.parametrize("damage", ["cut", "flip", "magic", "swap", "huge"])
def test_decode_refuses_what_is_not_whole_and_consecutive(log: CommitLog, damage: str) -> None:
    fill(log, 1, 4)
    data = bytearray(b"".join(log.read_records(1, 4 * (1000 + HEADER_BYTES))[0]))
    size = 1000 + HEADER_BYTES
    if damage == "cut":
        del data[-1]
    elif damage == "flip":
        data[size + 300] ^= 4
    elif damage == "magic":
        data[0] ^= 1
    elif damage == "swap":
        data[:size], data[size : 2 * size] = data[size : 2 * size], data[:size]
    else:
        data[8:12] = b"\xff\xff\xff\xff"
    with pytest.raises(RemoteProtocolError):
        log.decode_records(memoryview(bytes(data)))


@pytest.mark.parametrize("index", [1, 2, 60, 61, 62, 63, 64, 120, 150, 199, 200])
def test_truncation_is_forgotten_for_good(
    log: CommitLog, tmp_path: Path, config: StoreConfig, index: int
) -> None:
    fill(log, 1, 100, term=1)
    fill(log, 101, 200, term=2)
    log.truncate_from(index)
    expected = [(i, 1 if i <= 100 else 2, body_of(i)) for i in range(1, index)]
    assert log.last_index == index - 1
    assert contents(log) == expected
    log = reopen(log, tmp_path, config)
    assert contents(log) == expected
    fill(log, index, index + 5, term=3, size=1000)  # same sizes: old records would fit behind
    expected += [(i, 3, body_of(i)) for i in range(index, index + 6)]
    assert contents(log) == expected
    assert log.last_term == 3
    log = reopen(log, tmp_path, config)
    assert contents(log) == expected
    fill(log, index + 6, index + 200, term=4)
    log = reopen(log, tmp_path, config)
    assert log.last_index == index + 200
    log.close()


def test_durable_index_follows_syncs(log: CommitLog) -> None:
    worker = log._group._worker
    assert isinstance(worker, ManualSyncWorker)
    seen: list[int] = []
    log.subscribe_durable(seen.append)
    log.append(1, 1, b"a")
    log.append(2, 1, b"b")
    worker.run_pending()
    assert (log.durable_index, seen) == (0, [])  # nobody asked
    log.request_sync()
    log.append(3, 1, b"c")
    worker.run_pending()
    assert (log.durable_index, seen) == (2, [2])
    log.request_sync()
    log.truncate_from(2)
    assert log.durable_index == 1
    worker.run_pending()
    assert (log.durable_index, log.last_index) == (1, 1)
    log.append(2, 2, b"d")
    log.request_sync()
    worker.run_pending()
    assert (log.durable_index, seen[-1]) == (2, 2)


def test_async_flush_announces_what_is_written(tmp_path: Path) -> None:
    config = StoreConfig(segment_bytes=64 * KIB, flush="async", disk_free_bytes_min=0)
    worker = ManualSyncWorker()
    log = CommitLog.open(tmp_path, config, sync_worker=worker)
    seen: list[int] = []
    log.subscribe_durable(seen.append)
    log.append(1, 1, b"a")
    log.request_sync()
    log.append(2, 1, b"b")
    log.request_sync()
    assert seen == []  # never from within request_sync
    worker.run_pending()
    assert seen == [2] and log.statistics().synced_index == 2
    log.close()


def test_sequence_is_checked(log: CommitLog) -> None:
    log.append(1, 5, b"a")
    with pytest.raises(InvariantError):
        log.append(3, 5, b"a")
    with pytest.raises(InvariantError):
        log.append(2, 4, b"a")
    with pytest.raises(InvariantError):
        log.append(2, 5, bytes(SMALL.record_bytes_max))
    assert log.last_index == 1
    log.append(2, 5, b"")
    assert [bytes(entry.body) for entry in log.read_entries(1, 9, 999)] == [b"a", b""]


def test_a_record_larger_than_a_segment(
    log: CommitLog, tmp_path: Path, config: StoreConfig
) -> None:
    big = bytes(range(256)) * 4096
    log.append(1, 1, big)
    log.append(2, 1, b"small")
    log.append(3, 1, big)
    log.append(4, 1, big)
    log = reopen(log, tmp_path, config)
    assert next(len(entry.body) for entry in log.read_entries(1, 9, 1 << 30)) == len(big)
    assert contents(log) == [(1, 1, big), (2, 1, b"small"), (3, 1, big), (4, 1, big)]
    log.close()


def test_vote_survives(log: CommitLog, tmp_path: Path, config: StoreConfig) -> None:
    log.save_vote(3, "broker-a-1")
    assert (log.term, log.voted_for) == (3, "broker-a-1")
    log = reopen(log, tmp_path, config)
    assert (log.term, log.voted_for) == (3, "broker-a-1")
    log.save_vote(4, None)
    log = reopen(log, tmp_path, config)
    assert (log.term, log.voted_for) == (4, None)
    fill(log, 1, 1, term=9)
    log.close()
    (tmp_path / "vote").unlink()
    log = CommitLog.open(tmp_path, config)
    assert (log.term, log.voted_for) == (9, None)  # never below what the log proves
    log.close()


def test_a_closed_log_refuses(log: CommitLog) -> None:
    log.append(1, 1, b"a")
    log.close()
    log.close()
    for call in (
        lambda: log.append(2, 1, b"b"),
        lambda: log.reserve(1),
        lambda: log.truncate_from(1),
        lambda: log.save_vote(9, None),
        log.sync,
    ):
        with pytest.raises(StoreClosedError):
            call()
    log.request_sync()


def test_views_outlive_the_log(tmp_path: Path) -> None:
    log = CommitLog.open(tmp_path, COLD, sync_worker=ManualSyncWorker())
    fill(log, 1, 200)
    views = [log.read(index * 1040, 1040) for index in range(200)]
    entry = log.read_entries(5, 1, 1)[0]
    log.close()
    for index, view in enumerate(views, 1):
        assert view[HEADER_BYTES:] == body_of(index)
    assert entry.body == body_of(5)


def test_one_process_at_a_time(log: CommitLog, tmp_path: Path) -> None:
    script = (
        "import sys; from store.commit_log import CommitLog\n"
        "from dledger.errors import DataDirectoryLockedError\n"
        "try: CommitLog.open(sys.argv[1])\n"
        "except DataDirectoryLockedError as error: print(error); sys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "in use by another process (pid " in done.stdout
    with pytest.raises(DataDirectoryLockedError):
        CommitLog.open(tmp_path)
    log.close()
    CommitLog.open(tmp_path, sync_worker=ManualSyncWorker()).close()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskFailureError, match="cannot use"):
        CommitLog.open(tmp_path / "file" / "log")


def test_group_commit_thread(tmp_path: Path, config: StoreConfig) -> None:
    async def scenario() -> None:
        log = CommitLog.open(tmp_path, config)
        risen = asyncio.Event()
        seen: list[int] = []

        def on_durable(index: int) -> None:
            seen.append(index)
            risen.set()

        log.subscribe_durable(on_durable)
        for index in range(1, 501):
            log.append(index, 1, body_of(index))
            if index % 7 == 0:
                log.request_sync()
                await asyncio.sleep(0)
            if index % 100 == 0:
                log.truncate_from(index - 3)
                for again in range(index - 3, index + 1):
                    log.append(again, 1, body_of(again))
        log.request_sync()
        async with asyncio.timeout(20):
            while log.durable_index < 500:
                risen.clear()
                await risen.wait()
        assert seen[-1] == 500 and max(seen) == 500
        log.close()

    asyncio.run(scenario())
    log = CommitLog.open(tmp_path, config, sync_worker=ManualSyncWorker())
    assert contents(log) == [(index, 1, body_of(index)) for index in range(1, 501)]
    log.close()
