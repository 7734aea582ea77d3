"""A batch's first attempt, made without a task: most are answered, and well, within milliseconds.

Whoever made it is called back in the same turn of the loop as the answer is read. Only what does
not end so is worth a task, which then goes on with the attempt as it is: ended, or under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dledger.client.batching import Pending
from dledger.codes import RequestCode
from dledger.errors import DLedgerError
from dledger.model import MessageQueue
from dledger.remoting.commands import Command
from dledger.remoting.link import Asked

Request = tuple[RequestCode, dict[str, object], bytes]


class Attempt:
    """A request of a batch, under way or ended. `on_end` is called once, unless it is awaited."""

    __slots__ = (
        "_asked",
        "_error",
        "_on_end",
        "_response",
        "_waiter",
        "address",
        "batch",
        "began",
        "queue",
        "request",
    )

    def __init__(
        self,
        queue: MessageQueue,
        batch: list[Pending],
        request: Request,
        address: str,
        began: float,
        on_end: Callable[[Attempt, Command | None], None],
    ) -> None:
        self.queue = queue
        self.batch = batch
        self.request = request
        self.address = address
        self.began = began  # on the loop's clock
        self._on_end = on_end
        self._asked: Asked | None = None
        self._waiter: asyncio.Future[Command] | None = None
        self._response: Command | None = None
        self._error: DLedgerError | None = None

    def sent(self, asked: Asked) -> None:
        """Notes that it is under way."""
        self._asked = asked

    def end(self, response: Command | None, error: DLedgerError | None) -> None:
        """Takes the answer, or the error."""
        self._response, self._error = response, error
        if self._waiter is None:
            self._on_end(self, response)
        else:
            self._tell(self._waiter)

    def wait(self) -> asyncio.Future[Command]:
        """Returns what will hold the answer or the error. Cancelling it gives the attempt up."""
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        if self._response is not None or self._error is not None:
            self._tell(waiter)
        elif self._asked is not None:
            waiter.add_done_callback(self._given_up)
        return waiter

    def _tell(self, waiter: asyncio.Future[Command]) -> None:
        if waiter.done():
            return
        if self._response is not None:
            waiter.set_result(self._response)
        elif self._error is not None:
            waiter.set_exception(self._error)

    def _given_up(self, _waiter: asyncio.Future[Command]) -> None:
        if self._asked is not None:
            self._asked.cancel()  # does nothing if it has ended
