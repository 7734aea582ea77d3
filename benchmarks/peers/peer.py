"""What every peer does for the harness, and what most of them do in the same way."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build" / "peers"

Send = Callable[[bytes], Awaitable[object]]


class Done(NamedTuple):
    """How much went through in how long."""

    messages: int
    seconds: float

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds if self.seconds > 0 else 0.0


class Peer(abc.ABC):
    """A cluster of three nodes on loopback, and how a Python program uses it.

    `start` to `revive` are called outside of an event loop; every coroutine gets a loop of its own,
    so that a connection lives as long as one case.

    Attributes:
        title: For the table.
        consensus: By what the nodes agree.
        synced: What is on disks (fsync) before a message is acknowledged.
        client: What publishes and consumes.
        warm_up: How many times as long as others it needs until it is as fast as it gets.
    """

    title: str
    consensus: str
    synced: str
    client: str
    warm_up: float = 1.0

    @abc.abstractmethod
    def missing(self) -> str | None:
        """Returns why this peer cannot run here, if it cannot."""

    @abc.abstractmethod
    def version(self) -> str:
        """Returns the version of the server."""

    @abc.abstractmethod
    def start(self, directory: Path) -> None:
        """Starts all nodes in an empty directory; returns when they take messages."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Ends all processes."""

    @abc.abstractmethod
    def nodes(self) -> dict[str, int]:
        """Returns the processes that hold messages, by name."""

    @abc.abstractmethod
    async def create(self, topic: str) -> None:
        """Makes a queue, stream or topic of three replicas."""

    @abc.abstractmethod
    def publisher(self, topic: str, *, killing: bool = False) -> AbstractAsyncContextManager[Send]:
        """Connects; what it gives sends one message and returns when it is acknowledged.

        Args:
            topic: Where to.
            killing: The leader will be killed: connect where this peer gets over that best.
        """

    @abc.abstractmethod
    async def consume(self, topic: str, count: int, seconds: float, each: int) -> Done:
        """Reads a backlog from its beginning, acknowledging every `each` messages.

        Ends after so many messages or seconds, whichever comes first.
        """

    @abc.abstractmethod
    async def leader(self, topic: str) -> str:
        """Returns the node that leads this topic."""

    @abc.abstractmethod
    def kill(self, node: str) -> None:
        """kill -9 of a node; returns when it is gone."""

    async def kill_leader(self, topic: str) -> float:
        """Kills the node that leads this topic; returns when, on the clock of `perf_counter`."""
        node = await self.leader(topic)
        killed_at = time.perf_counter()
        self.kill(node)
        return killed_at

    @abc.abstractmethod
    def revive(self) -> None:
        """Starts the killed node again; returns when all nodes take part."""

    async def publish(self, topic: str, body: bytes, window: int, seconds: float) -> Done:
        """As many tasks as the window is wide, each awaiting one message after the other."""
        async with self.publisher(topic) as send:
            await send(body)
            sent = 0
            started = time.perf_counter()
            end = started + seconds

            async def work() -> None:
                nonlocal sent
                while time.perf_counter() < end:
                    await send(body)
                    sent += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(window):
                    group.create_task(work())
            return Done(sent, time.perf_counter() - started)


async def until_confirmed(send: Send, body: bytes) -> None:
    """Sends a message again until it is acknowledged, as somebody would who must not lose it."""
    while True:
        try:
            await send(body)
        except Exception:  # whatever a client makes of a killed server
            await asyncio.sleep(0.01)
        else:
            return


class Until:
    """Counts what a callback gets; waits for the last or for the time to be over."""

    def __init__(self, count: int) -> None:
        self.messages = 0
        self._count = count
        self._started = time.perf_counter()
        self._last = self._started
        self._full = asyncio.Event()

    def add(self) -> None:
        """Counts one message."""
        self.messages += 1
        if self.messages >= self._count and not self._full.is_set():
            self._last = time.perf_counter()
            self._full.set()

    async def done(self, seconds: float) -> Done:
        """Waits; returns what has come until then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._full.wait()
        if not self._full.is_set():
            self._last = time.perf_counter()
        return Done(min(self.messages, self._count), self._last - self._started)


@contextlib.asynccontextmanager
async def closing(connection: object) -> AsyncIterator[None]:
    """Closes a connection at the end, whatever has become of it by then."""
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5):
                await connection.close()  # type: ignore[attr-defined]
