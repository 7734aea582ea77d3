"""Tasks that nobody waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class TaskSet:
    """Background tasks of one owner: kept while they run, and logged if they fail. One loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Runs some work as a task of this name."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(log_failure)

    async def drain(self, timeout_s: float) -> None:
        """Waits for all to end, at most so long; none is cancelled."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def cancel(self) -> list[asyncio.Task[None]]:
        """Cancels all; returns them, to be awaited."""
        for task in self._tasks:
            task.cancel()
        return list(self._tasks)


def log_failure(task: asyncio.Task[Any]) -> None:
    """Logs what a task died of, if it did; as the callback for its end."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("task failed name=%s", task.get_name(), exc_info=error)
