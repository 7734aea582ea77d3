"""The thread for work that blocks for long: copying snapshots, deleting segments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")

_MEANWHILE_S = 0.05


class Maintenance(Protocol):
    """Runs one piece of work after the other, away from the event loop."""

    async def run(self, work: Callable[[], T], meanwhile: Callable[[], None] | None = None) -> T:
        """Returns what the work returns, or raises what it raises.

        Args:
            work: Blocks for as long as it likes.
            meanwhile: Called on the event loop now and then while the work is under way.
        """
        ...

    def close(self) -> None:
        """Waits for the work under way; what has not begun is dropped."""
        ...


class InlineMaintenance:
    """Does the work at once, for simulations and tests. Satisfies `Maintenance`."""

    async def run(self, work: Callable[[], T], meanwhile: Callable[[], None] | None = None) -> T:
        """Returns what the work returns, or raises what it raises."""
        return work()

    def close(self) -> None:
        """Does nothing."""


class MaintenanceThread:
    """One thread of this process. Satisfies `Maintenance`."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="maintenance")

    async def run(self, work: Callable[[], T], meanwhile: Callable[[], None] | None = None) -> T:
        """Returns what the work returns, or raises what it raises."""
        running = asyncio.get_running_loop().run_in_executor(self._executor, work)
        while meanwhile is not None and not running.done():
            await asyncio.wait({running}, timeout=_MEANWHILE_S)
            meanwhile()
        return await running

    def close(self) -> None:
        """Waits for the work under way; what has not begun is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)
