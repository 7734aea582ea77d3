"""An asyncio event loop on virtual time, and the processes that live on it.

Every callback belongs to the simulated process in whose context it was scheduled. Killing a
process therefore needs nothing of the code under test: what it has scheduled just never runs, as
after SIGKILL; pausing it (SIGSTOP) keeps what is due until it is resumed.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from store.simulated_files import PowerLossError

if TYPE_CHECKING:
    from jepsen_tests.sim.network import Network

T = TypeVar("T")

START_S = 1_000.0
WALL_START_MS = 1_700_000_000_000
STALL_TURNS_MAX = 200_000


class SimulationStuckError(Exception):
    """Time cannot go on: nothing is scheduled, or something is always ready."""


class Process:
    """A simulated process: the owner of callbacks, tasks and connections."""

    def __init__(self, loop: VirtualLoop, host: str, name: str) -> None:
        self.loop = loop
        self.host = host
        self.name = name
        self.is_alive = True
        self.is_paused = False
        self.held: deque[asyncio.Handle] = deque()
        # Kept to the end of the run: a pending coroutine that is collected runs its `finally`
        # blocks, at a moment that no seed decides.
        self.tasks: list[asyncio.Task[Any]] = []
        self.endpoints: dict[int, Any] = {}
        self.listeners: list[Any] = []
        loop.processes.append(self)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs a coroutine as part of the process."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, self)
        task: asyncio.Task[T] = self.loop.create_task(work, context=context)
        return task

    def pause(self) -> None:
        """Stops the process as SIGSTOP does."""
        self.is_paused = True

    def resume(self) -> None:
        """Lets it go on; everything that became due meanwhile happens now."""
        self.is_paused = False
        if self.is_alive:
            self.loop.release(self.held)
        self.held.clear()

    def kill(self) -> None:
        """Ends it at once. Its connections are the network's business."""
        self.is_alive = False
        self.held.clear()


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Ready(asyncio.Handle):
    """asyncio's, made in one step: a run makes hundreds of thousands."""

    __slots__ = ()

    def __init__(self, callback: Any, args: Any, loop: Any, context: Any) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class _Timer(asyncio.TimerHandle):
    """As `_Ready`."""

    __slots__ = ()

    def __init__(self, when: float, callback: Any, args: Any, loop: Any, context: Any) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = True


class VirtualTask(asyncio.Task[Any]):
    """A task whose place in sets is decided by when it was made, not by where it lies."""

    def __init__(self, number: int, coro: Any, **settings: Any) -> None:
        self._number = number
        super().__init__(coro, **settings)

    def __hash__(self) -> int:
        return self._number


# asyncio's loops have private parts that any other loop class has to use, and that have no types.
_BaseLoop: Any = asyncio.BaseEventLoop


class VirtualLoop(_BaseLoop):  # type: ignore[misc]
    """Runs what is ready, then lets time jump to the next timer."""

    network: Network

    def __init__(self) -> None:
        super().__init__()
        self._now = START_S
        self._timer_cancelled_count: int = 0
        self._still_turns = 0
        self._sequence = 0
        self._timers: list[tuple[float, int, Any]] = []
        self.problems: list[str] = []
        self.processes: list[Process] = []
        self._tasks_made = 0
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note_problem)

    def time(self) -> float:
        """Returns virtual seconds."""
        return self._now

    def release(self, handles: deque[asyncio.Handle]) -> None:
        """Schedules what a paused process had to do."""
        self._ready.extend(handles)

    def create_task(self, coro: Any, **settings: Any) -> Any:
        """Creates a task and keeps it alive to the end of the run."""
        task = super().create_task(coro, **settings)
        task._log_destroy_pending = False
        context = settings.get("context")
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            tasks = process.tasks
            tasks.append(task)
            if len(tasks) > 512:
                process.tasks = [kept for kept in tasks if not kept.done()]
        return task

    def _make_task(self, _loop: Any, coro: Any, **settings: Any) -> VirtualTask:
        self._tasks_made += 1
        return VirtualTask(self._tasks_made, coro, loop=self, **settings)

    async def create_server(
        self, factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        """Listens on the simulated network."""
        process = PROCESS.get()
        if process is None:
            raise RuntimeError("a server outside of any simulated process")
        return self.network.listen(process, factory, port)

    def remove_reader(self, fd: int) -> bool:
        """Does nothing: no descriptor is ever watched here."""
        return False

    async def create_connection(
        self, factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        """Connects through the simulated network."""
        process = PROCESS.get()
        if process is None:
            raise RuntimeError("a connection outside of any simulated process")
        return await self.network.connect(process, factory, host, port)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        """Schedules a timer. Those of one moment run in the order in which they were set."""
        timer = _Timer(when, callback, args, self, context)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, timer))
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        """Schedules a timer from now."""
        when = self._now + delay
        timer = _Timer(when, callback, args, self, context)
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, timer))
        return timer

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        """Schedules something for the next turn."""
        handle = _Ready(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def _drop_cancelled(self) -> None:
        kept = []
        for item in self._timers:
            if item[2]._cancelled:
                item[2]._scheduled = False
            else:
                kept.append(item)
        heapq.heapify(kept)
        self._timers = kept
        self._timer_cancelled_count = 0

    def _run_once(self) -> None:
        pop = heapq.heappop
        ready: deque[Any] = self._ready
        if self._timer_cancelled_count > max(64, len(self._timers) // 2):
            self._drop_cancelled()
        scheduled = self._timers
        while scheduled and scheduled[0][2]._cancelled:
            self._timer_cancelled_count -= 1
            pop(scheduled)[2]._scheduled = False
        if ready:
            self._still_turns += 1
            if self._still_turns > STALL_TURNS_MAX:
                raise SimulationStuckError(f"something is always ready at {self._now:.3f}")
        else:
            if not scheduled:
                if self._stopping:
                    return
                raise SimulationStuckError("nothing will ever happen")
            self._still_turns = 0
            self._now = max(self._now, scheduled[0][0])
        now = self._now
        while scheduled and scheduled[0][0] <= now:
            timer = pop(scheduled)[2]
            timer._scheduled = False
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            context = handle._context
            process = context.get(PROCESS)
            if process is not None:
                if not process.is_alive:
                    continue
                if process.is_paused:
                    process.held.append(handle)
                    continue
            try:
                context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler(
                    {"message": f"Exception in callback {handle!r}", "exception": error}
                )

    def close_coroutines(self) -> None:
        """Ends what still waits, in a fixed order; the run is over."""
        for process in self.processes:
            process.is_alive = False
        for process in self.processes:
            for task in process.tasks:
                coroutine = task.get_coro()
                for _ in range(3):  # one that awaits in its `finally` needs to be told twice
                    try:
                        coroutine.close()  # type: ignore[union-attr]
                    except BaseException:  # noqa: S112
                        continue
                    break

    def _check_closed(self) -> None:
        """Coroutines that are collected after the run still run their `finally` blocks."""

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody needs to be woken."""

    def _note_problem(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        process = PROCESS.get()
        if isinstance(error, PowerLossError) or (process is not None and not process.is_alive):
            return  # a process that dies in the middle of a callback
        self.problems.append(f"{context.get('message')}: {type(error).__name__}: {error}")


class HostClock:
    """A machine's clocks: exact monotonic time, wall time that may jump."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.offset_ms = 0

    def wall_ms(self) -> int:
        """Returns milliseconds since the epoch, as this machine believes."""
        return WALL_START_MS + int(self._loop.time() * 1000) + self.offset_ms

    def monotonic(self) -> float:
        """Returns virtual seconds."""
        return self._loop._now


def run_virtual(make_main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine to its end on a loop of its own."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        result: T = loop.run_until_complete(make_main(loop))
        return result
    finally:
        asyncio.set_event_loop(None)
        loop.close_coroutines()
        loop._ready.clear()
        loop._timers.clear()
        loop.close()
