"""Servers in threads of this process: each with an event loop of its own, as if in a process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine
from enum import Enum
from typing import Any, TypeVar

from broker.config import BrokerConfig
from broker.server import Broker
from dledger.client.background import BackgroundLoop
from dledger.errors import DLedgerError
from dledger.testing.links import Links, transport_with
from nameserver.server import NameserverConfig, NameserverServer

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ReplicaState(Enum):
    """What a replica is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    DOWN = "down"


class NameserverHost:
    """One nameserver. Started and stopped once."""

    def __init__(self, config: NameserverConfig) -> None:
        self._config = config
        self._loop = BackgroundLoop("dledger-test nameserver")
        self._server: NameserverServer | None = None

    def start(self) -> None:
        """Listens.

        Raises:
            ConfigError: The port is taken.
        """
        self._loop.start()
        try:
            self._server = NameserverServer(self._config)
            self.run(self._server.start())
        except BaseException:
            self._loop.stop()
            raise

    def stop(self) -> None:
        """Ends at once. Twice does nothing."""
        if self._server is not None:
            self.run(self._server.stop(0))
            self._server = None
        self._loop.stop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs something on the nameserver's loop."""
        return self._loop.run(work)


class ReplicaHost:
    """One broker replica, which can be ended and started again. One thread at a time."""

    def __init__(self, config: BrokerConfig, links: Links) -> None:
        self.config = config
        self._transport_class = transport_with(links)
        self._loop: BackgroundLoop | None = None
        self._broker: Broker | None = None
        self._watch: asyncio.Task[None] | None = None
        self._go_on = threading.Event()
        self._is_paused = False
        self._go_on.set()

    def __repr__(self) -> str:
        return f"<ReplicaHost {self.config.replica_id} {self.state.value}>"

    @property
    def state(self) -> ReplicaState:
        """What it is doing."""
        if self._broker is None or self._broker.failure is not None:
            return ReplicaState.DOWN
        return ReplicaState.PAUSED if self._is_paused else ReplicaState.RUNNING

    @property
    def failure(self) -> BaseException | None:
        """Why it ended by itself, if it did."""
        return None if self._broker is None else self._broker.failure

    @property
    def serving_term(self) -> int | None:
        """The term in which it leads and serves now; `None` while it does not, or is paused."""
        broker = self._broker
        if broker is None or self.state is not ReplicaState.RUNNING:
            return None
        with contextlib.suppress(DLedgerError):  # ends in this moment
            return broker.raft.term if broker.raft.is_serving else None
        return None

    def has_topic(self, name: str) -> bool:
        """Whether a topic's creation has been applied here."""
        broker = self._broker
        with contextlib.suppress(DLedgerError):
            return broker is not None and broker.store.topic(name) is not None
        return False

    def start(self) -> None:
        """Starts it on what its directory holds.

        Raises:
            ConfigError: A port is taken.
            StoreError: The directory cannot be used.
        """
        if self._broker is not None:
            self.crash()  # the rest of one that failed
        loop = BackgroundLoop(f"dledger-test {self.config.replica_id}")
        loop.start()
        try:
            self._broker = loop.run(self._make())
        except BaseException:
            loop.stop()
            raise
        self._loop = loop

    def stop(self) -> None:
        """Stops it in order: its leadership is handed over first. Does nothing if it is down."""
        self._end(orderly=True)

    def crash(self) -> None:
        """Ends it as `kill -9` does: its connections break, nobody is told anything."""
        self._end(orderly=False)

    def pause(self) -> None:
        """Stops it as SIGSTOP does: its connections stay, it answers nothing."""
        if self.state is not ReplicaState.RUNNING or self._loop is None:
            return
        stands_still = threading.Event()
        self._go_on.clear()
        self._is_paused = True
        self._loop.call_soon(self._stand_still, stands_still)
        stands_still.wait()

    def resume(self) -> None:
        """Lets it go on. Does nothing if it is not paused."""
        self._is_paused = False
        self._go_on.set()

    def _stand_still(self, stands_still: threading.Event) -> None:
        stands_still.set()
        self._go_on.wait()

    async def _make(self) -> Broker:
        broker = Broker(self.config, transport_class=self._transport_class)
        await broker.start()
        self._watch = asyncio.create_task(self._end_when_failed(broker))
        return broker

    async def _end_when_failed(self, broker: Broker) -> None:
        """Does what the server's process does then."""
        failure = await broker.wait_failed()
        logger.error("replica %s failed: %s", self.config.replica_id, failure)
        with contextlib.suppress(DLedgerError):
            await broker.stop()

    def _end(self, *, orderly: bool) -> None:
        broker, loop = self._broker, self._loop
        self.resume()
        if broker is None or loop is None:
            return
        try:
            loop.run(broker.stop() if orderly else broker.crash())
        finally:
            loop.stop()
            self._broker = self._loop = None
