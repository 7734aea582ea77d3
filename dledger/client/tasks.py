"""Tasks that nobody waits for, and calls that are made side by side."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from dledger.errors import DLedgerError

logger = logging.getLogger(__name__)

SIDE_BY_SIDE_MAX: Final = 256
_T = TypeVar("_T")


async def side_by_side(
    calls: Sequence[Callable[[], Awaitable[_T]]],
) -> list[_T | DLedgerError]:
    """Makes calls at the same time, a bounded number of them, and waits for all.

    Returns:
        What each returned, or the error of ours that it raised, in their order.

    Raises:
        BaseException: The first that is no error of ours.
    """
    results: list[_T | DLedgerError] = []
    for start in range(0, len(calls), SIDE_BY_SIDE_MAX):
        chunk = calls[start : start + SIDE_BY_SIDE_MAX]
        for result in await asyncio.gather(*(call() for call in chunk), return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, DLedgerError):
                raise result
            results.append(result)
    return results


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
