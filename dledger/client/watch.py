"""Looks after the replicas at which long polls wait.

A long poll is silent for as long as there is no message, so its silence tells nothing about the
replica. A stopped process, or one beyond a broken network, would keep its consumers until the poll
runs out. So while polls wait somewhere, that replica is asked something easy about once a second,
however many polls wait there. If it does not answer, or does not know who leads, and another one
serves as leader, its connection is given up, which ends every poll on it; they go on at the leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from dledger.codes import EXT_LEADER_ADDRESS, ResponseCode
from dledger.errors import DLedgerError, RequestTimeoutError
from dledger.remoting.commands import Command

logger = logging.getLogger(__name__)

WATCH_S = 1.0


class _Watched:
    """`count` polls wait at this replica; `was_used`: some did since the last look."""

    __slots__ = ("count", "was_used")

    def __init__(self) -> None:
        self.count = 0
        self.was_used = True


class LeaderWatch:
    """Runs at most one watch per replica, and only while polls wait there."""

    def __init__(
        self,
        *,
        probe: Callable[[str], Awaitable[Command]],
        find_successor: Callable[[str, str], Awaitable[bool]],
        give_up: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        """Prepares watching.

        Args:
            probe: Asks a replica something that only a leader answers.
            find_successor: Takes a group's name and a replica's address; says whether another
                replica of the group serves as leader, and notes it.
            give_up: Ends the connection to an address, with all that waits on it.
            spawn: Runs a watch until it ends or the client is closed.
        """
        self._probe = probe
        self._find_successor = find_successor
        self._give_up = give_up
        self._spawn = spawn
        self._watched: dict[tuple[str, str], _Watched] = {}

    def enter(self, broker_name: str, address: str) -> None:
        """Notes that a poll begins to wait at a replica."""
        key = (broker_name, address)
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched()
            self._spawn(self._watch(key, watched), f"watch {address}")
        watched.count += 1
        watched.was_used = True

    def leave(self, broker_name: str, address: str) -> None:
        """Notes that a poll has ended."""
        watched = self._watched.get((broker_name, address))
        if watched is not None:
            watched.count -= 1

    async def _watch(self, key: tuple[str, str], watched: _Watched) -> None:
        broker_name, address = key
        try:
            while watched.count or watched.was_used:
                watched.was_used = False
                await asyncio.sleep(WATCH_S)
                if not watched.count or await self._is_well(address):
                    continue
                if await self._find_successor(broker_name, address):
                    logger.info("long polls leave %s: another replica leads", address)
                    self._give_up(address)
        finally:
            # No other task runs between the last look at `count` and here.
            del self._watched[key]

    async def _is_well(self, address: str) -> bool:
        """Whether a replica answers, and either leads or knows who does."""
        try:
            answer = await self._probe(address)
        except RequestTimeoutError:
            return False
        except DLedgerError:
            return True  # a lost connection has ended the polls already
        if answer.code != ResponseCode.SERVICE_NOT_AVAILABLE:
            return True
        return bool(answer.ext.get(EXT_LEADER_ADDRESS))
