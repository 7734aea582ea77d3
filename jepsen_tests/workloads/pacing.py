"""Keeps a process at its share of the wanted rate, and lets it stop."""

from __future__ import annotations

import asyncio
import random


class Pacer:
    """One for each process: calls of `turn` come at the rate on average, never in a burst."""

    def __init__(self, rate: float, chance: random.Random, stopping: asyncio.Event) -> None:
        self._interval_s = 1.0 / rate if rate > 0 else 0.0
        self._chance = chance
        self._stopping = stopping
        self._due = 0.0

    async def turn(self) -> bool:
        """Waits for the next operation's time; returns whether there shall be one."""
        if self._stopping.is_set():
            return False
        now = asyncio.get_running_loop().time()
        if self._interval_s:
            wait = self._due - now
            if wait > 0:
                await asyncio.sleep(wait)
            self._due = max(now, self._due) + self._interval_s * self._chance.uniform(0.5, 1.5)
        else:
            await asyncio.sleep(0)
        return not self._stopping.is_set()

    async def rest(self, seconds: float) -> None:
        """Waits after a failure, but not beyond the end."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
