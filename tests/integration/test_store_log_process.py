"""The CommitLog in real processes: SIGKILL, memory, and what opening reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from store.commit_log import CommitLog
from store.config import KIB, MIB, StoreConfig
from store.files import Mapping, OsFileSystem
from store.sync_worker import ManualSyncWorker

CONFIG = StoreConfig(segment_bytes=512 * KIB, disk_free_bytes_min=0, tail_cache_bytes=MIB)

WRITER = """
import asyncio, sys
from random import Random
from store.commit_log import CommitLog
from store.config import KIB, MIB, StoreConfig

async def main():
    config = StoreConfig(segment_bytes=512 * KIB, disk_free_bytes_min=0, tail_cache_bytes=MIB)
    log = CommitLog.open(sys.argv[1], config)
    log.subscribe_durable(lambda index: print(index, flush=True))
    print(log.last_index, flush=True)
    index = log.last_index
    while True:
        for _ in range(Random(index).randrange(1, 8)):
            index += 1
            random = Random(index)
            log.append(index, 1, random.randbytes(random.randrange(0, 9000)))
        log.request_sync()
        await asyncio.sleep(0)

asyncio.run(main())
"""


def body_of(index: int) -> bytes:
    random = Random(index)
    return random.randbytes(random.randrange(0, 9000))


def test_sigkill_at_any_moment_loses_nothing_durable(tmp_path: Path) -> None:
    path = tmp_path / "log"
    random = Random(42)
    last = 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= last
        deadline = time.monotonic() + random.uniform(0.05, 0.4)
        durable = last
        while time.monotonic() < deadline:
            durable = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")[:-1]
        durable = int(rest[-1]) if rest else durable
        process.wait(10)
        process.stdout.close()
        log = CommitLog.open(path, CONFIG, sync_worker=ManualSyncWorker())
        assert log.last_index >= durable > last
        for index in range(last + 1, log.last_index + 1):
            assert log.read_entries(index, 1, 1)[0].body == body_of(index), index
        last = log.last_index
        assert log.verify().problem is None
        log.close()


class CountingFileSystem(OsFileSystem):
    """Notes how many bytes are read or mapped."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self.bytes_mapped = 0

    def read(self, file: int, position: int, size_bytes: int) -> bytes:
        self.bytes_read += size_bytes
        return super().read(file, position, size_bytes)

    def map(self, file: int, size_bytes: int) -> Mapping:
        self.bytes_mapped += size_bytes
        return super().map(file, size_bytes)


@pytest.fixture
def long_log(tmp_path: Path) -> Iterator[tuple[Path, StoreConfig]]:
    config = StoreConfig(segment_bytes=4 * MIB, disk_free_bytes_min=0, segments_mapped_max=4)
    log = CommitLog.open(tmp_path, config, sync_worker=ManualSyncWorker())
    body = os.urandom(64 * KIB)
    for index in range(1, 1001):
        log.append(index, 1, body)
    log.close()
    yield tmp_path, config


def test_opening_reads_the_newest_segment_only(long_log: tuple[Path, StoreConfig]) -> None:
    path, config = long_log
    fs = CountingFileSystem()
    log = CommitLog.open(path, config, fs, sync_worker=ManualSyncWorker())
    assert log.last_index == 1000 and log.size_bytes > 60 * MIB
    assert fs.bytes_mapped <= config.segment_bytes
    assert fs.bytes_read < 20 * KIB
    log.close()


def resident_file_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) * KIB
    raise AssertionError("no RssFile in /proc/self/status")


def test_reading_a_long_log_does_not_hold_its_pages(long_log: tuple[Path, StoreConfig]) -> None:
    path, config = long_log
    log = CommitLog.open(path, config, sync_worker=ManualSyncWorker())
    before, most = resident_file_bytes(), 0
    index = 1
    while index <= log.last_index:
        _, last = log.read_records(index, MIB)
        index = last + 1
        most = max(most, resident_file_bytes() - before)
    random = Random(1)
    for _ in range(3000):
        log.read(random.randrange(0, 60 * MIB) // 65576 * 65576 + 1000, 100)
        most = max(most, resident_file_bytes() - before)
    limit = (config.segments_mapped_max + 1) * 5 * MIB
    assert most < limit, f"{most >> 20} MiB of mapped pages held"
    assert log.statistics().segments_mapped <= config.segments_mapped_max + 1
    log.close()
