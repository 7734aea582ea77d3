"""Finds a broker group's leader when the one believed in has gone.

All who need the leader of a group share one search. It asks every replica the same cheap question
at short intervals and, more rarely, the nameserver; a replica that does not answer (stopped, or
beyond a broken network) holds nobody up. A leader counts as found only when it says so itself:
hints are where to look next, not where to send megabytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from dledger.client.config import SessionConfig
from dledger.client.leaders import LeaderBook
from dledger.client.routes import RouteCache
from dledger.client.tasks import log_failure
from dledger.clock import Clock
from dledger.codes import EXT_LEADER_ADDRESS, EXT_TERM, ResponseCode
from dledger.errors import (
    ClientClosedError,
    ConnectFailedError,
    ConnectionLostError,
    DLedgerError,
    RequestTimeoutError,
)
from dledger.remoting.commands import Command

logger = logging.getLogger(__name__)

_REFRESH_EVERY_S = 0.15
_SEEK_S = 30.0  # a search that nobody waits for ends after this
_ROUNDS_FAST = 400  # after so many rounds in vain, ask less often
_SLOWER = 8


class LeaderFinder:
    """Runs at most one search per broker group."""

    def __init__(
        self,
        routes: RouteCache,
        config: SessionConfig,
        clock: Clock,
        *,
        probe: Callable[[str], Awaitable[Command]],
        refresh: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._routes = routes
        self._config = config
        self._clock = clock
        self._probe = probe
        self._refresh = refresh
        self._searches: dict[str, asyncio.Task[None]] = {}
        self._until: dict[str, float] = {}  # how long a search is wanted
        self._closed = False

    async def find(self, broker_name: str, deadline: float) -> str:
        """Returns the leader's address.

        Raises:
            ConnectFailedError: (definite) None was found until the deadline.
            ClientClosedError: (definite) Closed meanwhile.

        Concurrency: safe to cancel.
        """
        book = self._routes.book(broker_name)
        try:
            async with asyncio.timeout_at(deadline):
                while book.leader is None:
                    search = self._search(broker_name, deadline)
                    try:
                        await asyncio.shield(search)
                    except asyncio.CancelledError:
                        if self._closed and search.done():
                            raise ClientClosedError("the client was closed") from None
                        raise
        except TimeoutError as exc:
            raise ConnectFailedError(
                f"no replica of {broker_name} leads; asked {book.addresses}"
            ) from exc
        return book.leader

    def seek_soon(self, broker_name: str) -> None:
        """Searches in the background, for a while."""
        if not self._closed and self._routes.book(broker_name).leader is None:
            self._search(broker_name, asyncio.get_running_loop().time() + _SEEK_S)

    async def close(self) -> None:
        """Ends all searches."""
        self._closed = True
        tasks = list(self._searches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _search(self, broker_name: str, deadline: float) -> asyncio.Task[None]:
        if self._closed:
            raise ClientClosedError("the client is closed")
        self._until[broker_name] = max(self._until.get(broker_name, 0.0), deadline)
        task = self._searches.get(broker_name)
        if task is None or task.done():  # done, but its callback has not run: it is of no use
            task = asyncio.get_running_loop().create_task(
                self._run(broker_name), name=f"find leader of {broker_name}"
            )
            self._searches[broker_name] = task
            task.add_done_callback(lambda done: self._ended(broker_name, done))
        return task

    def _ended(self, broker_name: str, task: asyncio.Task[None]) -> None:
        if self._searches.get(broker_name) is task:
            del self._searches[broker_name]
            del self._until[broker_name]
        log_failure(task)

    async def _run(self, broker_name: str) -> None:
        book = self._routes.book(broker_name)
        loop = asyncio.get_running_loop()
        book.leader = None
        found = asyncio.Event()
        asking: dict[str, asyncio.Task[None]] = {}
        refreshing: asyncio.Task[None] | None = None
        refreshed_at = loop.time() - _REFRESH_EVERY_S
        rounds = 0
        try:
            while not found.is_set() and loop.time() < self._until[broker_name]:
                rounds += 1
                pause = self._config.leader_poll_s * (1 if rounds < _ROUNDS_FAST else _SLOWER)
                for address in book.addresses:
                    if address not in asking or asking[address].done():
                        asking[address] = loop.create_task(self._ask(book, address, found))
                idle = refreshing is None or refreshing.done()
                if idle and loop.time() - refreshed_at >= _REFRESH_EVERY_S:
                    refreshed_at = loop.time()
                    refreshing = loop.create_task(self._refresh())
                await _wait_for(found, pause)
        finally:
            others = [*asking.values(), *([refreshing] if refreshing is not None else [])]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        if not found.is_set():
            book.leader = None  # hearsay only

    async def _ask(self, book: LeaderBook, address: str, found: asyncio.Event) -> None:
        now_ms = int(self._clock.monotonic() * 1000)
        try:
            response = await self._probe(address)
        except (ConnectFailedError, ConnectionLostError, RequestTimeoutError):
            book.failed(address, now_ms)
            return
        except DLedgerError as error:
            logger.debug("probe failed address=%s error=%s", address, error)
            return
        if found.is_set():
            return
        if response.code == ResponseCode.SERVICE_NOT_AVAILABLE:
            term = response.ext.get(EXT_TERM, "")
            hint = response.ext.get(EXT_LEADER_ADDRESS) or None
            book.hinted(address, hint, int(term) if term.isdigit() else 0, now_ms)
            return
        book.succeeded(address)
        found.set()


async def _wait_for(event: asyncio.Event, pause_s: float) -> None:
    try:
        async with asyncio.timeout(pause_s):
            await event.wait()
    except TimeoutError:
        pass
