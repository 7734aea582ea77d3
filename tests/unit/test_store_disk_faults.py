"""Full and failing disks: a definite refusal, or a full stop; never a wrong acknowledgement."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dledger.errors import DiskFailureError, DiskFullError, StoreError
from store.commit_log import CommitLog
from store.config import KIB, StoreConfig
from store.files import OsFileSystem
from store.simulated_files import SimulatedFileSystem
from store.sync_worker import ManualSyncWorker

LOG = Path("/log")
CONFIG = StoreConfig(segment_bytes=64 * KIB, disk_free_bytes_min=0)


class FailingFileSystem(OsFileSystem):
    """The real one, with an error to be met by one operation."""

    def __init__(self) -> None:
        self.fail_sync: int | None = None
        self.fail_write: int | None = None
        self.syncs_after_failure = 0

    def sync(self, file: int) -> None:
        if self.fail_sync is not None:
            self.syncs_after_failure += 1
            raise OSError(self.fail_sync, os.strerror(self.fail_sync))
        super().sync(file)

    def write(self, file: int, position: int, buffers: object) -> None:
        if self.fail_write is not None:
            raise OSError(self.fail_write, os.strerror(self.fail_write))
        super().write(file, position, buffers)  # type: ignore[arg-type]


def open_log(fs: SimulatedFileSystem) -> CommitLog:
    return CommitLog.open(LOG, CONFIG, fs, sync_worker=ManualSyncWorker())


def fill_up(log: CommitLog, size: int = 1000) -> None:
    while True:
        log.append(log.last_index + 1, 1, bytes([log.last_index % 251]) * size)


def test_a_full_disk_refuses_and_recovers() -> None:
    fs = SimulatedFileSystem(capacity_bytes=300 * KIB)
    log = open_log(fs)
    with pytest.raises(DiskFullError) as caught:
        fill_up(log)
    assert caught.value.definite and caught.value.retryable
    last, end = log.last_index, log.offset_end
    assert last > 200
    for _ in range(3):  # refused again and again, and nothing changes
        with pytest.raises(DiskFullError):
            log.reserve(5000)
        with pytest.raises(DiskFullError):
            log.append(last + 1, 1, bytes(5000))
        assert (log.last_index, log.offset_end, log.failure) == (last, end, None)
    assert log.read_entries(last, 1, 1)[0].body == bytes([(last - 1) % 251]) * 1000
    log.sync()
    assert log.durable_index == last
    # A leader's no-op still fits, a few times.
    for index in range(last + 1, last + 6):
        log.reserve(100)
        log.append(index, 2, b"\x01")
    log.sync()
    log.save_vote(3, "a")
    fs.capacity_bytes *= 2
    log.append(last + 6, 2, bytes(5000))
    log.close()
    log = open_log(fs.process_death())
    assert (log.last_index, log.last_term, log.term) == (last + 6, 2, 3)


def test_even_the_margin_ends() -> None:
    fs = SimulatedFileSystem(capacity_bytes=100 * KIB)
    log = open_log(fs)
    with pytest.raises(DiskFullError):
        fill_up(log, size=900)  # tiny by our rule, so it may use the margin, and then no more
    assert log.failure is None
    log.sync()
    assert log.durable_index == log.last_index


def test_a_full_disk_when_the_file_is_made() -> None:
    """The free space was there when asked, but not when taken."""
    fs = SimulatedFileSystem()
    log = open_log(fs)
    log.append(1, 1, bytes(40_000))

    def full(operation: str, path: Path) -> None:
        if operation == "create":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fs.on_call = full
    with pytest.raises(DiskFullError):
        log.append(2, 1, bytes(40_000))
    with pytest.raises(DiskFullError):
        log.save_vote(5, "b")
    assert (log.term, log.voted_for, log.failure) == (0, None, None)
    fs.on_call = None
    log.append(2, 1, bytes(40_000))
    log.save_vote(5, "b")
    log.close()


def test_a_disk_too_full_to_open_with_room() -> None:
    fs = SimulatedFileSystem()
    log = open_log(fs)
    log.append(1, 1, bytes(1000))
    log.close()
    after = fs.process_death()

    def full(operation: str, path: Path) -> None:
        if operation == "allocate" and path.name.isdigit():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    after.on_call = full
    log = open_log(after)
    assert log.last_index == 1 and log.read_entries(1, 1, 1)[0].body == bytes(1000)
    after.on_call = None
    log.append(2, 1, b"x")
    log.close()
    assert open_log(after).last_index == 2


def test_opening_an_empty_directory_on_a_full_disk() -> None:
    with pytest.raises(DiskFullError):
        open_log(SimulatedFileSystem(capacity_bytes=1000))


def test_a_full_disk_does_not_stop_a_seal() -> None:
    """The index file is a convenience; without it the segment is read once more later."""
    fs = SimulatedFileSystem()
    log = open_log(fs)

    def full(operation: str, path: Path) -> None:
        if operation == "create" and "index" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fs.on_call = full
    for index in range(1, 11):
        log.append(index, 1, bytes([index]) * 20_000)
        log.sync()
    assert log.durable_index == 10
    log.close()
    log = open_log(fs.process_death())
    assert [bytes(log.read_entries(i, 1, 1)[0].body)[:1] for i in range(1, 11)] == [
        bytes([i]) for i in range(1, 11)
    ]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_sync_stops_the_log_for_good(tmp_path: Path, number: int) -> None:
    async def scenario() -> None:
        fs = FailingFileSystem()
        log = CommitLog.open(tmp_path, CONFIG, fs)
        failed = asyncio.Event()
        failures: list[StoreError] = []
        durable: list[int] = []

        def on_failure(error: StoreError) -> None:
            failures.append(error)
            failed.set()

        log.subscribe_failure(on_failure)
        log.subscribe_durable(durable.append)
        log.append(1, 1, b"synced")
        log.sync()
        fs.fail_sync = number
        log.append(2, 1, b"never durable")
        log.request_sync()
        async with asyncio.timeout(10):
            await failed.wait()
        fs.fail_sync = None  # a second try would seem to succeed, with the data gone
        assert fs.syncs_after_failure == 1
        assert len(failures) == 1 and isinstance(failures[0], DiskFailureError)
        assert log.failure is failures[0] and log.statistics().is_failed
        refused: list[Callable[[], object]] = [
            lambda: log.append(3, 1, b"x"),
            lambda: log.reserve(10),
            lambda: log.truncate_from(2),
            lambda: log.save_vote(2, "a"),
            log.sync,
        ]
        for call in refused:
            with pytest.raises(DiskFailureError):
                call()
        log.request_sync()
        await asyncio.sleep(0)
        assert log.durable_index == 1 and max(durable, default=1) == 1
        assert log.read_entries(1, 1, 1)[0].body == b"synced"  # reads go on
        log.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("action", ["append", "truncate", "settle", "roll"])
def test_a_failed_write_stops_the_log(tmp_path: Path, action: str) -> None:
    fs = FailingFileSystem()
    log = CommitLog.open(tmp_path, CONFIG, fs, sync_worker=ManualSyncWorker())
    failures: list[StoreError] = []
    log.subscribe_failure(failures.append)
    log.append(1, 1, bytes(40_000))
    log.append(2, 1, b"2")
    log.sync()
    if action == "append":
        fs.fail_write = errno.EIO
        with pytest.raises(DiskFailureError):
            log.append(3, 1, b"3")
    elif action == "truncate":
        fs.fail_write = errno.EIO
        with pytest.raises(DiskFailureError):
            log.truncate_from(2)
    elif action == "settle":
        log.append(3, 1, b"3")
        fs.fail_sync = errno.EIO
        with pytest.raises(DiskFailureError):
            log.sync()
    else:
        log.append(3, 1, bytes(40_000))
        fs.fail_sync = errno.EIO
        with pytest.raises(DiskFailureError):
            log.sync()
    assert len(failures) == 1
    fs.fail_write = fs.fail_sync = None
    with pytest.raises(DiskFailureError):
        log.append(log.last_index + 1, 1, b"4")
    log.close()
    log = CommitLog.open(tmp_path, CONFIG, sync_worker=ManualSyncWorker())
    assert log.last_index >= 2
    log.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 3 MiB."""
    mount, path = shutil.which("mount"), tmp_path / "disk"
    path.mkdir()
    if os.getuid() or mount is None:
        pytest.skip("needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_really_full_disk(small_disk: Path) -> None:
    config = StoreConfig(segment_bytes=512 * KIB, disk_free_bytes_min=0)
    log = CommitLog.open(small_disk / "log", config, sync_worker=ManualSyncWorker())
    log.save_vote(1, "a")
    with pytest.raises(DiskFullError):
        fill_up(log, 3000)
    log.sync()
    last = log.last_index
    assert last > 700 and log.failure is None
    log.append(last + 1, 2, b"\x01")
    log.sync()
    # Somebody else takes the rest of the space as well.
    with pytest.raises(OSError, match="No space"), (small_disk / "other").open("wb") as file:
        file.write(bytes(4 << 20))
    with pytest.raises(DiskFullError):
        log.append(last + 2, 2, bytes(3000))
    log.append(last + 2, 2, b"\x01")
    for term in range(2, 6):  # votes find their space even now
        log.save_vote(term, f"replica-{term}")
    log.close()
    log = CommitLog.open(small_disk / "log", config, sync_worker=ManualSyncWorker())
    assert (log.last_index, log.term, log.voted_for) == (last + 2, 5, "replica-5")
    assert log.read_entries(700, 1, 1)[0].body == bytes([699 % 251]) * 3000
    with pytest.raises(DiskFullError):
        log.append(last + 3, 2, bytes(70_000))
    (small_disk / "other").unlink()
    subprocess.run(["mount", "-o", "remount,size=6m", str(small_disk)], check=True)
    log.append(last + 3, 2, bytes(70_000))
    log.sync()
    log.close()
