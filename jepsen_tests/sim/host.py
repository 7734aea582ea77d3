"""A simulated machine: its disk, its clock, and the one server process that runs on it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

from dledger.errors import DLedgerError
from jepsen_tests.sim.loop import HostClock, Process, VirtualLoop
from jepsen_tests.sim.network import Network
from store.simulated_files import PowerLossError, SimulatedFileSystem
from store.sync_worker import SyncSource, SyncWork, run_work

IDLE_S = 0.2
CAPACITY_BYTES = 1 << 30


class Disk:
    """What a machine's disk does just now, and what it is about to do."""

    def __init__(self, random: Random, sync_s: float, *, ignores_sync: bool = False) -> None:
        self.random = random
        self.files = SimulatedFileSystem(capacity_bytes=CAPACITY_BYTES, ignores_sync=ignores_sync)
        self.sync_s = sync_s
        self.extra_sync_s = 0.0
        self.fail_syncs = 0  # so many of the next syncs fail
        self.crash_in = 0  # the process dies at that operation from now
        self.on_crash: Callable[[], None] | None = None
        self.failed = 0
        self.files.on_call = self._called

    def replace(self, files: SimulatedFileSystem) -> None:
        """Takes the disk as a crash has left it."""
        self.files = files
        files.on_call = self._called

    def sync_latency(self) -> float:
        """Draws how long a sync takes."""
        return (self.sync_s + self.extra_sync_s) * self.random.uniform(0.5, 2.0)

    def heal(self) -> None:
        """Ends every fault that can end."""
        self.extra_sync_s = 0.0
        self.fail_syncs = 0
        self.crash_in = 0
        self.files.capacity_bytes = CAPACITY_BYTES

    def fill(self) -> None:
        """Leaves no room."""
        free = self.files.free_bytes(Path())
        self.files.capacity_bytes -= max(0, free - 4096)

    def _called(self, operation: str, _path: Path) -> None:
        if self.crash_in:
            self.crash_in -= 1
            if not self.crash_in and self.on_crash is not None:
                self.on_crash()
                raise PowerLossError
        if operation == "sync" and self.fail_syncs:
            self.fail_syncs -= 1
            self.failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class SimulatedSyncWorker:
    """The sync thread: takes what has gathered, and is done after the disk's latency.

    What a sync covers is fixed when it begins; what it makes durable becomes so when it ends.
    """

    def __init__(self, loop: VirtualLoop, disk: Disk) -> None:
        self._loop = loop
        self._disk = disk
        self._source: SyncSource | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._work: SyncWork | None = None
        self._wanted = False
        self._error: DLedgerError | None = None

    def start(self, source: SyncSource) -> None:
        """Binds the source."""
        self._source = source

    def wake(self, delay_s: float = 0.0) -> None:
        """Begins, or begins again after the sync under way."""
        if self._source is None or self._error is not None:
            return
        if self._work is not None:
            self._wanted = True
            return
        if self._timer is not None:
            if delay_s > 0:
                return
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._begin)

    def post(self, callback: Callable[[], None]) -> None:
        """Calls back soon."""
        self._loop.call_soon(callback)

    def drain(self) -> DLedgerError | None:
        """Ends the sync under way now; its result is reported later."""
        work, source = self._work, self._source
        if work is not None and source is not None:
            self._disarm()
            self._work = None
            self._error = run_work(work)
            self._loop.call_soon(self._report, work, self._error)
            self._again()
        return self._error

    def stop(self) -> None:
        """Finishes what is running; reports nothing any more."""
        self.drain()
        self._source = None
        self._disarm()

    def _begin(self) -> None:
        self._timer = None
        source = self._source
        if source is None:
            return
        work = source.take_work()
        if work is None:
            return
        self._work = work
        self._timer = self._loop.call_later(self._disk.sync_latency(), self._end)

    def _end(self) -> None:
        self._timer = None
        work, source = self._work, self._source
        if work is None or source is None:
            return
        self._work = None
        self._error = run_work(work)
        self._again()
        source.work_done(work, self._error)

    def _again(self) -> None:
        if self._error is not None:
            return
        if self._wanted:
            self._wanted = False
            self._begin()
        else:
            self._timer = self._loop.call_later(IDLE_S, self._idle)

    def _idle(self) -> None:
        self._timer = None
        if self._source is not None:
            self._source.idle()

    def _report(self, work: SyncWork, error: DLedgerError | None) -> None:
        if self._source is not None:
            self._source.work_done(work, error)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Host:
    """One machine that runs (at most) one server process at a time."""

    def __init__(
        self,
        network: Network,
        name: str,
        address: str,
        seed: int,
        *,
        sync_s: float,
        ignores_sync: bool = False,
    ) -> None:
        self.network = network
        self.loop = network.loop
        self.name = name
        self.address = address
        self.random = Random(f"{seed}/{name}")
        self.disk = Disk(self.random, sync_s, ignores_sync=ignores_sync)
        self.clock = HostClock(self.loop)
        self.process: Process | None = None
        self.app: Any = None  # of the running process
        self.incarnation = 0
        self.boots = 0
        self.is_on = True
        self.refused: str | None = None  # why it cannot be started any more
        self.damaged: list[str] = []
        network.add_machine(name, address)

    @property
    def is_running(self) -> bool:
        """Whether the process lives, even if paused."""
        return self.process is not None and self.process.is_alive

    @property
    def is_paused(self) -> bool:
        """Whether it lives and is stopped."""
        return self.is_running and self.process is not None and self.process.is_paused

    def start(self, app: Any, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts a process."""
        if not self.is_on:
            self.is_on = True
            self.network.power_on(self.name)
        self.incarnation += 1
        self.process = Process(self.loop, self.name, f"{self.name}#{self.incarnation}")
        self.app = app
        self.process.spawn(main())

    def kill(self) -> None:
        """SIGKILL: what was written stays, what was scheduled never happens."""
        process = self.process
        if process is None or not process.is_alive:
            return
        process.kill()
        self.network.process_died(process)
        self.disk.replace(self.disk.files.process_death())
        self.disk.crash_in = 0

    def power_off(self) -> None:
        """The machine loses power: what was not synced may be gone, and nobody is told."""
        process = self.process
        if process is not None:
            process.kill()
        self.network.power_off(self.name, process)
        self.is_on = False
        self.boots += 1
        self.disk.replace(self.disk.files.power_loss(self.random))
        self.disk.crash_in = 0

    def flip_bit(self, random: Random) -> str:
        """Flips one bit within the log's used part; says where, or nothing if there is no log."""
        files = self.disk.files
        paths = sorted(path for path in files._names if path.name.isdigit())
        if not paths:
            return ""
        path = random.choice(paths)
        used = len(files.content(path).rstrip(b"\0"))
        if not used:
            return ""
        position = random.randrange(used)
        files.flip_bit(path, position, random.randrange(8))
        where = f"{path.name} byte {position}"
        self.damaged.append(where)
        return where
