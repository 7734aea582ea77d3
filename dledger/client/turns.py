"""Answers that came together are handed out one after the other.

Whoever is woken by the first of them sends again; that leaves, and the brokers work on it, before
those are woken that wait for the second. Handed out together, answers would wake all callers first,
whose next messages would then leave together: client, leader and followers would work in turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

# Turns of the loop from an answer to the next request: callers are woken and send; what they sent
# is gathered into batches; the requests of these are written.
LOOP_TURNS = 4


class Turns:
    """Calls one function at once, and the next one some turns of the loop later, in order."""

    def __init__(self) -> None:
        self._left = 0  # turns of the loop until the next call
        self._waiting: deque[Callable[[], None]] = deque()

    def call(self, function: Callable[[], None]) -> None:
        """Calls a function, which must not raise: now, or when it is its turn."""
        if self._left:
            self._waiting.append(function)
            return
        self._left = LOOP_TURNS
        asyncio.get_running_loop().call_soon(self._pass_on)
        function()

    def _pass_on(self) -> None:
        self._left -= 1
        if not self._left and self._waiting:
            self._left = LOOP_TURNS
            self._waiting.popleft()()
        if self._left:
            asyncio.get_running_loop().call_soon(self._pass_on)
