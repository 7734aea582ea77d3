"""One thread that runs an event loop, for programs that have none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from dledger.errors import ClientClosedError, LocalProtocolError
from dledger.lifetime import Lifetime

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines for other threads. Started and stopped once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def is_running(self) -> bool:
        """Whether coroutines can be run."""
        return self._loop is not None

    def start(self) -> None:
        """Starts the thread. A second call does nothing."""
        with self._lock:
            if self._thread is not None:
                return
            ready = threading.Event()
            self._thread = threading.Thread(
                target=self._main, args=(ready,), name=self._name, daemon=True
            )
            self._thread.start()
            ready.wait()

    def stop(self) -> None:
        """Ends the thread after what it is doing now. A second call does nothing."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is None or self._thread is None:
                return
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and returns its result. Any thread but the loop's own.

        Raises:
            ClientClosedError: (definite) Not running.
            LocalProtocolError: (definite) Called on the loop itself, where waiting would never end.
        """
        loop = self._loop
        if loop is None:
            work.close()
            raise ClientClosedError("the client is closed or was not started")
        if threading.current_thread() is self._thread:
            work.close()
            raise LocalProtocolError("a synchronous client was called on its own loop's thread")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClientClosedError("the client was closed meanwhile") from None
        except BaseException:
            future.cancel()  # for an interrupt; does nothing to one that is done
            raise

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Has a function called on the loop.

        Raises:
            ClientClosedError: (definite) Not running.
        """
        loop = self._loop
        if loop is None:
            raise ClientClosedError("the client is closed or was not started")
        loop.call_soon_threadsafe(callback, *args)

    def _main(self, ready: threading.Event) -> None:
        loop = _new_loop()
        asyncio.set_event_loop(loop)
        self._loop = loop
        loop.call_soon(ready.set)
        try:
            loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class AsyncClient(Protocol):
    """What every asynchronous client has."""

    async def start(self) -> None:
        """Makes the client ready."""
        ...

    async def close(self) -> None:
        """Ends what is under way and disconnects."""
        ...


C = TypeVar("C", bound=AsyncClient)


class SyncFront(Lifetime, Generic[C]):
    """The life of a synchronous client: its asynchronous twin on a background loop of its own."""

    def __init__(self, name: str, inner: C) -> None:
        """Connects to nothing.

        Args:
            name: Of the thread.
            inner: The twin, not started.
        """
        self._loop = BackgroundLoop(name)
        self._inner = inner

    def start(self) -> None:
        """Makes the client ready. Needs no broker to be up yet."""
        self._loop.start()
        try:
            self._loop.run(self._inner.start())
        except BaseException:
            self._loop.stop()
            raise

    def close(self) -> None:
        """Closes the twin, see there, and ends the thread. Twice does nothing."""
        if self._loop.is_running:
            self._loop.run(self._inner.close())
            self._loop.stop()
