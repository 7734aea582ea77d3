"""One suite over both file systems, so that the simulated one may be trusted; and the workers."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from random import Random

import pytest

from dledger.errors import DataDirectoryLockedError, DiskFailureError, DLedgerError
from store.files import FileSystem, OsFileSystem
from store.simulated_files import PowerLossError, SimulatedFileSystem
from store.sync_worker import SyncWork, ThreadSyncWorker


@pytest.fixture(params=["os", "simulated"])
def fs(request: pytest.FixtureRequest) -> FileSystem:
    return OsFileSystem() if request.param == "os" else SimulatedFileSystem()


@pytest.fixture
def directory(fs: FileSystem, tmp_path: Path) -> Path:
    fs.make_directory(tmp_path / "a" / "b")
    fs.make_directory(tmp_path / "a" / "b")
    return tmp_path / "a" / "b"


def test_a_file_from_creation_to_removal(fs: FileSystem, directory: Path) -> None:
    path = directory / "file"
    file = fs.create(path, 10_000)
    assert fs.size(file) == 10_000
    assert fs.read(file, 0, 20_000) == bytes(10_000)
    fs.write(file, 5, [b"hello", bytearray(b", "), memoryview(b"world")])
    assert fs.read(file, 4, 14) == b"\0hello, world\0"
    assert fs.read(file, 9_999, 10) == b"\0" and fs.read(file, 10_000, 10) == b""
    fs.write(file, 9_998, [b"beyond"])
    assert fs.size(file) == 10_004
    fs.sync(file)
    fs.truncate(file, 8)
    assert fs.read(file, 0, 100) == b"\0\0\0\0\0hel"
    fs.allocate(file, 4)
    assert fs.size(file) == 8
    fs.allocate(file, 12)
    assert fs.read(file, 0, 100) == b"\0\0\0\0\0hel\0\0\0\0"
    fs.close(file)
    with pytest.raises(FileExistsError):
        fs.create(path, 1)
    assert fs.list_directory(directory) == ["file"]
    fs.close(fs.create(directory / "empty", 0))
    fs.rename(path, directory / "empty")
    assert fs.list_directory(directory) == ["empty"]
    with pytest.raises(FileNotFoundError):
        fs.open(path)
    with pytest.raises(FileNotFoundError):
        fs.remove(path)
    with pytest.raises(FileNotFoundError):
        fs.rename(path, directory / "x")
    file = fs.open(directory / "empty")
    assert fs.read(file, 5, 3) == b"hel"
    fs.remove(directory / "empty")
    fs.sync_directory(directory)
    assert fs.read(file, 5, 3) == b"hel"  # open files outlive their name
    fs.close(file)
    assert fs.list_directory(directory) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        fs.close(1 << 20)
    assert fs.free_bytes(directory) > 0


def test_a_mapping_shows_later_writes(fs: FileSystem, directory: Path) -> None:
    file = fs.create(directory / "file", 100_000)
    mapping = fs.map(file, 100_000)
    assert mapping.view.readonly and len(mapping.view) == 100_000
    fs.write(file, 50_000, [b"later"])
    part = mapping.view[50_000:50_005]
    assert part == b"later"
    mapping.release_pages()
    assert part == b"later"
    fs.close(file)
    mapping.close()
    assert part == b"later"  # a view that was handed out stays valid


def test_locks(fs: FileSystem, directory: Path) -> None:
    lock = fs.lock(directory / "LOCK")
    with pytest.raises(DataDirectoryLockedError, match="in use"):
        fs.lock(directory / "LOCK")
    lock.release()
    lock.release()
    fs.lock(directory / "LOCK").release()


def test_os_writes_more_buffers_than_the_system_takes_at_once(tmp_path: Path) -> None:
    fs = OsFileSystem()
    file = fs.create(tmp_path / "file", 0)
    fs.write(file, 3, [bytes([n % 256]) for n in range(5000)])
    assert fs.read(file, 3, 6000) == bytes(n % 256 for n in range(5000))
    fs.close(file)


def test_os_leaves_nothing_behind_when_creation_fails(tmp_path: Path) -> None:
    class Full(OsFileSystem):
        def allocate(self, file: int, size_bytes: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        Full().create(tmp_path / "file", 10)
    assert not list(tmp_path.iterdir())


def test_power_loss_keeps_what_was_synced_and_any_part_of_the_rest() -> None:
    root = Path("/d")
    seen_names: set[tuple[str, ...]] = set()
    seen_data: set[bytes] = set()
    for seed in range(300):
        fs = SimulatedFileSystem()
        file = fs.create(root / "synced", 2048)
        fs.write(file, 0, [b"a" * 2048])
        fs.sync(file)
        fs.sync_directory(root)
        fs.write(file, 0, [b"b" * 1536])
        fs.close(fs.create(root / "new", 10))
        fs.rename(root / "new", root / "newer")
        after = fs.power_loss(Random(seed))
        with pytest.raises(PowerLossError):
            fs.open(root / "synced")
        seen_names.add(tuple(after.list_directory(root)))
        seen_data.add(after.content(root / "synced")[::512])
        assert after.content(root / "synced")[1536:] == b"a" * 512
    assert seen_names == {("synced",), ("new", "synced"), ("newer", "synced")}
    assert len(seen_data) == 8  # every subset of three sectors


class Source:
    """Hands out numbered pieces of work."""

    def __init__(self) -> None:
        self.waiting: list[Work] = []
        self.done: list[tuple[SyncWork, DLedgerError | None]] = []
        self.idled = threading.Event()
        self.changed = asyncio.Event()

    def take_work(self) -> SyncWork | None:
        return self.waiting.pop(0) if self.waiting else None

    def work_done(self, work: SyncWork, error: DLedgerError | None) -> None:
        self.done.append((work, error))
        self.changed.set()

    def idle(self) -> None:
        self.idled.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.done) < count:
                self.changed.clear()
                await self.changed.wait()


class Work:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.thread: str | None = None
        self.gate: threading.Event | None = None

    def run(self) -> None:
        self.thread = threading.current_thread().name
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("seed", range(30))
def test_whatever_was_written_and_resized_before_a_sync_survives(seed: int, tmp_path: Path) -> None:
    random, fs = Random(seed), SimulatedFileSystem()
    path = tmp_path / "file"
    file = fs.create(path, random.choice((0, 100)))
    fs.sync_directory(tmp_path)
    for _ in range(40):
        action = random.random()
        if action < 0.6:
            written = random.randbytes(random.randrange(1, 30))
            fs.write(file, random.randrange(fs.size(file) + 1), [written])
        elif action < 0.8:
            fs.truncate(file, random.randrange(150))
        else:
            fs.sync(file)
    fs.sync(file)
    before = fs.content(path)
    fs.write(file, 0, [b"perhaps"])
    after = fs.power_loss(random).content(path)
    assert after[7:] == before[7:]


def test_the_thread_works_and_reports_on_the_loop() -> None:
    async def scenario() -> None:
        source, worker = Source(), ThreadSyncWorker(idle_after_s=0.01)
        worker.start(source)
        first, second = Work(), Work()
        source.waiting = [first]
        worker.wake()
        await source.until(1)
        assert source.done == [(first, None)] and first.thread == "log-sync"
        assert await asyncio.to_thread(source.idled.wait, 10)
        source.waiting = [second]
        worker.wake(0.01)  # not urgent, but soon
        await source.until(2)
        assert worker.drain() is None
        worker.stop()
        worker.stop()

    asyncio.run(scenario())


def test_drain_waits_for_what_is_running() -> None:
    async def scenario() -> None:
        source, worker = Source(), ThreadSyncWorker()
        worker.start(source)
        work = Work()
        work.gate = threading.Event()
        source.waiting = [work]
        worker.wake()
        async with asyncio.timeout(10):
            while work.thread is None:
                await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0, work.gate.set)
        await asyncio.to_thread(worker.drain)
        await source.until(1)
        worker.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), DiskFailureError("bad")])
def test_after_a_failure_the_thread_does_nothing_more(error: Exception) -> None:
    async def scenario() -> None:
        source, worker = Source(), ThreadSyncWorker()
        worker.start(source)
        bad, never = Work(error), Work()
        source.waiting = [bad, never]
        worker.wake()
        await source.until(1)
        worker.wake()
        assert isinstance(source.done[0][1], DiskFailureError)
        assert isinstance(worker.drain(), DiskFailureError)
        worker.stop()
        assert never.thread is None and source.waiting == [never]

    asyncio.run(scenario())


def test_nothing_is_reported_after_stop() -> None:
    async def scenario() -> None:
        source, worker = Source(), ThreadSyncWorker()
        worker.start(source)
        posted: list[int] = []
        worker.post(lambda: posted.append(1))
        source.waiting = [Work()]
        worker.wake()
        worker.stop()
        await asyncio.sleep(0)
        assert posted == [1]

    asyncio.run(scenario())


def test_post_without_a_loop_calls_at_once() -> None:
    posted: list[int] = []
    worker = ThreadSyncWorker()
    worker.post(lambda: posted.append(1))
    assert posted == [1]
    worker.stop()
