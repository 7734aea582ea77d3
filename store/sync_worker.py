"""The thread that makes the log durable: group commit.

Whatever has been written while one sync runs is covered by the next. The worker knows nothing of
the log: it takes work from a `SyncSource`, runs it where it may block, and reports on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from dledger.errors import DiskFailureError, DLedgerError


class SyncWork(Protocol):
    """Something to do that may block on the disk."""

    def run(self) -> None:
        """Does it; raises `OSError` or a `DLedgerError` if it failed."""
        ...


class SyncSource(Protocol):
    """Where work comes from and results go."""

    def take_work(self) -> SyncWork | None:
        """Returns all that has gathered, or None. Called on the worker's thread."""
        ...

    def work_done(self, work: SyncWork, error: DLedgerError | None) -> None:
        """Takes the result. Called on the loop."""
        ...

    def idle(self) -> None:
        """Called on the worker's thread once nothing was to do for a moment; must not raise."""
        ...


class SyncWorker(Protocol):
    """Runs the work of one source."""

    def start(self, source: SyncSource) -> None:
        """Binds the source; called once."""
        ...

    def wake(self, delay_s: float = 0.0) -> None:
        """Says that there is work; it is to be taken within `delay_s` at the latest."""
        ...

    def post(self, callback: Callable[[], None]) -> None:
        """Calls back soon on the loop, never from within this call."""
        ...

    def drain(self) -> DLedgerError | None:
        """Blocks until no work is running. Results are reported later all the same.

        Returns:
            The error of the work that failed, if one has.
        """
        ...

    def stop(self) -> None:
        """Finishes what is running and ends. Nothing is reported afterwards."""
        ...


def run_work(work: SyncWork) -> DLedgerError | None:
    """Runs work and returns how it failed, every foreign error as `DiskFailureError`."""
    try:
        work.run()
    except OSError as error:
        return DiskFailureError(f"sync of the log failed: {error}; the replica must stop")
    except DLedgerError as error:
        return error
    return None


class ThreadSyncWorker:
    """One thread. Results reach the asyncio loop that was running at the first `wake`."""

    def __init__(self, *, idle_after_s: float = 0.2) -> None:
        self._idle_after_s = idle_after_s
        self._condition = threading.Condition()
        self._source: SyncSource | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wanted = False  # there may be work
        self._urgent = False  # and it must not wait for the delay
        self._delay_s = 0.0
        self._running = False  # work is being done right now
        self._delaying = False  # the thread waits for the delay to pass
        self._stopping = False
        self._error: DLedgerError | None = None

    def start(self, source: SyncSource) -> None:
        """Binds the source; the thread starts with the first `wake`."""
        self._source = source

    def wake(self, delay_s: float = 0.0) -> None:
        """Says that there is work. Call it on the loop."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if self._thread is None and not self._stopping:
            self._thread = threading.Thread(target=self._run, name="log-sync", daemon=True)
            self._thread.start()
        with self._condition:
            self._wanted = True
            self._delay_s = delay_s
            self._urgent = self._urgent or delay_s <= 0
            if not self._running and (self._urgent or not self._delaying):
                self._condition.notify_all()

    def post(self, callback: Callable[[], None]) -> None:
        """Calls back soon on the loop; at once where there is no loop (tools, tests)."""
        if self._loop is None:
            with contextlib.suppress(RuntimeError):
                self._loop = asyncio.get_running_loop()
        if self._loop is None:
            callback()
        else:
            self._loop.call_soon(callback)

    def drain(self) -> DLedgerError | None:
        """Blocks until no work is running; returns the error of the work that failed."""
        with self._condition:
            while self._running:
                self._condition.wait()
            return self._error

    def stop(self) -> None:
        """Finishes what is running and joins the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        source = self._source
        if source is None:
            return
        while self._wait_for_work(source):
            work = source.take_work()
            error = None if work is None else run_work(work)
            with self._condition:
                self._running = False
                self._error = error
                self._condition.notify_all()
            if work is not None:
                self._report(source, work, error)
            if error is not None:
                return  # what the disk holds is unknown now; nothing may be tried again

    def _wait_for_work(self, source: SyncSource) -> bool:
        """Returns True with `_running` set when there is work, False to end."""
        idle_told = False
        while True:
            with self._condition:
                if not self._wanted and not self._stopping:
                    self._condition.wait(None if idle_told else self._idle_after_s)
                elif self._wanted and not self._urgent and not self._stopping:
                    self._delaying = True
                    self._condition.wait_for(self._is_pressed, self._delay_s)
                    self._delaying = False
                    self._urgent = True
                if self._stopping:
                    return False
                if self._wanted and self._urgent:
                    self._wanted = self._urgent = False
                    self._running = True
                    return True
                if self._wanted or idle_told:
                    continue
                self._running = True  # `idle` touches the disk, so `drain` must wait for it
            idle_told = True
            source.idle()
            with self._condition:
                self._running = False
                self._condition.notify_all()

    def _is_pressed(self) -> bool:
        return self._urgent or self._stopping

    def _report(self, source: SyncSource, work: SyncWork, error: DLedgerError | None) -> None:
        loop = self._loop
        if loop is not None and not self._stopping:
            # The loop may be closed before us when a program ends; then nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(source.work_done, work, error)


class ManualSyncWorker:
    """Does nothing by itself: a test or a simulation decides when the disk makes progress."""

    def __init__(self) -> None:
        self._source: SyncSource | None = None
        self._posted: deque[Callable[[], None]] = deque()

    def start(self, source: SyncSource) -> None:
        """Binds the source."""
        self._source = source

    def wake(self, delay_s: float = 0.0) -> None:
        """Does nothing; work waits for `run_pending`."""

    def post(self, callback: Callable[[], None]) -> None:
        """Keeps the callback for `run_pending`."""
        self._posted.append(callback)

    def run_pending(self) -> None:
        """Runs all work that has gathered and delivers all results, on the caller's thread."""
        while self._posted:
            self._posted.popleft()()
        source = self._source
        while source is not None and (work := source.take_work()) is not None:
            source.work_done(work, run_work(work))
        while self._posted:
            self._posted.popleft()()

    def run_idle(self) -> None:
        """Does what a worker does after a while without work."""
        if self._source is not None:
            self._source.idle()

    def drain(self) -> DLedgerError | None:
        """Returns at once: no work is ever under way."""
        return None

    def stop(self) -> None:
        """Forgets what was not delivered."""
        self._source = None
        self._posted.clear()


class InlineSyncWorker(ManualSyncWorker):
    """Syncs within `wake`: `durable_index` has risen when `request_sync` returns."""

    def wake(self, delay_s: float = 0.0) -> None:
        """Runs the work and delivers its result at once."""
        self.run_pending()

    def post(self, callback: Callable[[], None]) -> None:
        """Calls back at once."""
        callback()
