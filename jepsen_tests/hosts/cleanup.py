"""Undoes what a run has set up, whatever way the run ends: in order, by exception, by signal."""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

from dledger.errors import DLedgerError

logger = logging.getLogger(__name__)


class RunStoppedError(DLedgerError):
    """A signal asked the run to end."""

    definite = True


class CleanUp:
    """A stack of undo steps, run once, the newest first.

    As a context manager it also runs at interpreter exit and turns SIGTERM, SIGINT and SIGHUP into
    `RunStoppedError` in the main thread, so that the steps of everybody run in order.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []
        self._lock = threading.Lock()
        self._old: dict[int, object] = {}

    def add(self, name: str, step: Callable[[], object]) -> None:
        """Registers a step; `name` is for the log line if it fails."""
        with self._lock:
            self._steps.append((name, step))

    def run(self) -> list[str]:
        """Runs all steps; returns what failed. A failing step keeps no other from running."""
        failures: list[str] = []
        while True:
            with self._lock:
                if not self._steps:
                    return failures
                name, step = self._steps.pop()
            try:
                step()
            except (DLedgerError, OSError) as error:
                failures.append(f"{name}: {error}")
                logger.warning("clean-up step failed name=%s error=%s", name, error)

    def __enter__(self) -> Self:
        """Begins to listen for signals."""
        atexit.register(self.run)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._old[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        """Runs all steps and gives the signals back."""
        self.run()
        atexit.unregister(self.run)
        for number, handler in self._old.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A second signal must not interrupt the clean-up that the first has begun.
        for known in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(known, signal.SIG_IGN)
        raise RunStoppedError(f"stopped by {signal.Signals(number).name}")
