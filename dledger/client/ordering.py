"""Ordered consumption: locks at the brokers, and one message of a queue in hand at a time.

Three things keep a queue's order. A member reads a queue only while it holds its lock, which the
brokers give to one member at a time. It considers its own lock dead some time before the
brokers would give it to another. And it hands out a message only when the one before it is
processed: a message whose handler failed comes again before anything behind it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from dledger.client.process_queue import ProcessQueue
from dledger.client.session import ClientSession
from dledger.codes import RequestCode
from dledger.errors import DLedgerError
from dledger.model import MessageQueue
from dledger.remoting.bodies import LockBatchBody, decode_locked_queues, encode_lock_batch

logger = logging.getLogger(__name__)

_UNLOCK_S = 3.0


class Handed(Protocol):
    """A delivery, as far as order is concerned."""

    @property
    def window(self) -> ProcessQueue:
        """The window of the message's queue."""
        ...


D = TypeVar("D", bound=Handed)


class QueueLocks:
    """One member's locks. `is_held` from any thread, the rest on the loop."""

    def __init__(
        self,
        session: ClientSession,
        group: str,
        *,
        valid_s: float,
        now_s: Callable[[], float],
    ) -> None:
        """Holds nothing yet.

        Args:
            session: The client's ties to the cluster.
            group: The consumer group.
            valid_s: How long a lock counts after its renewal was asked for.
            now_s: Monotonic time.
        """
        self._session = session
        self._group = group
        self._valid_s = valid_s
        self._now_s = now_s
        self._until: dict[MessageQueue, float] = {}
        # A renewal that is under way must not come after the unlocking.
        self._one_at_a_time = asyncio.Lock()

    def is_held(self, queue: MessageQueue) -> bool:
        """Whether the lock on a queue still counts."""
        return self._until.get(queue, 0.0) > self._now_s()

    async def lock(self, queues: Iterable[MessageQueue]) -> set[MessageQueue]:
        """Asks for locks, or renews them.

        Returns:
            The queues locked now. Those of brokers that could not be asked are not among them, but
            what was held before still counts for the rest of its time.
        """
        async with self._one_at_a_time:
            return await self._lock(queues)

    async def _lock(self, queues: Iterable[MessageQueue]) -> set[MessageQueue]:
        granted: set[MessageQueue] = set()
        for name, wanted in _by_broker(queues).items():
            # From before it was asked: the broker reckons from when it answered, or later.
            asked_s = self._now_s()
            try:
                response = await self._session.call_leader(
                    name, RequestCode.LOCK_BATCH_MQ, None, self._body(wanted)
                )
                held = set(decode_locked_queues(response.body)).intersection(wanted)
            except DLedgerError as error:
                logger.info("queues not locked broker=%s error=%s", name, error)
                continue
            for queue in wanted:
                if queue in held:
                    self._until[queue] = asked_s + self._valid_s
                else:
                    self._until.pop(queue, None)
            granted |= held
        return granted

    async def unlock(self, queues: Iterable[MessageQueue]) -> None:
        """Gives locks back; where that fails they expire by themselves."""
        async with self._one_at_a_time:
            await self._unlock(queues)

    async def _unlock(self, queues: Iterable[MessageQueue]) -> None:
        for name, given_up in _by_broker(queues).items():
            for queue in given_up:
                self._until.pop(queue, None)
            try:
                await self._session.call_leader(
                    name,
                    RequestCode.UNLOCK_BATCH_MQ,
                    None,
                    self._body(given_up),
                    timeout_s=_UNLOCK_S,
                )
            except DLedgerError as error:
                logger.info("queues not unlocked broker=%s error=%s", name, error)

    def _body(self, queues: list[MessageQueue]) -> bytes:
        return encode_lock_batch(
            LockBatchBody(
                consumer_group=self._group, client_id=self._session.client_id, queues=queues
            )
        )


class OrderedLine(dict[ProcessQueue, deque[D]]):
    """What waits behind the message in hand, by window. Any thread.

    Invariant: of one window at most one delivery is outside: ready to be taken, in hand, or waiting
    to come again.
    """

    def __init__(self, is_held: Callable[[MessageQueue], bool]) -> None:
        super().__init__()
        self._is_held = is_held
        self._lock = threading.Lock()
        self._outside: set[ProcessQueue] = set()
        self._in_hand: dict[MessageQueue, D] = {}

    def offer(self, window: ProcessQueue, deliveries: list[D]) -> D | None:
        """Puts messages in line; returns the one that can be taken at once, if any."""
        with self._lock:
            waiting = self.setdefault(window, deque())
            waiting.extend(deliveries)
            return self._next(window)

    def take(self, delivery: D) -> bool:
        """Hands a delivery out; `False`, and its window dropped, if its lock has died."""
        with self._lock:
            window = delivery.window
            if window.dropped or not self._is_held(window.queue):
                window.dropped = True
                return False
            self._in_hand[window.queue] = delivery
            return True

    def finish(self, delivery: D) -> D | None:
        """Notes that a delivery is processed; returns the next one to be taken."""
        with self._lock:
            self._leave_hand(delivery)
            window = delivery.window
            self._outside.discard(window)
            return self._next(window)

    def fail(self, delivery: D) -> None:
        """Notes that processing failed: the delivery stays in front, out of everybody's hands."""
        with self._lock:
            self._leave_hand(delivery)

    def forget(self, window: ProcessQueue) -> None:
        """Drops what waits of a window. What is in hand stays in hand."""
        with self._lock:
            self.pop(window, None)
            self._outside.discard(window)

    def is_in_hand(self, queue: MessageQueue) -> bool:
        """Whether a message of the queue is being processed, of whatever window."""
        return queue in self._in_hand

    def _leave_hand(self, delivery: D) -> None:
        queue = delivery.window.queue
        if self._in_hand.get(queue) is delivery:
            del self._in_hand[queue]

    def _next(self, window: ProcessQueue) -> D | None:
        waiting = self.get(window)
        if not waiting or window in self._outside or window.dropped:
            return None
        self._outside.add(window)
        return waiting.popleft()


class LockKeeper:
    """Renews locks until cancelled, and says which windows have lost theirs."""

    def __init__(
        self,
        locks: QueueLocks,
        windows: Callable[[], list[ProcessQueue]],
        lost: Callable[[ProcessQueue], None],
        *,
        renew_s: float,
    ) -> None:
        self._locks = locks
        self._windows = windows
        self._lost = lost
        self._renew_s = renew_s

    async def run(self) -> None:
        """Renews at its interval, and sooner where a renewal failed."""
        pause_s = self._renew_s
        while True:
            await asyncio.sleep(pause_s)
            held = [window for window in self._windows() if not window.dropped]
            granted = await self._locks.lock([window.queue for window in held])
            for window in self._windows():
                if window.dropped or not self._locks.is_held(window.queue):
                    logger.warning("lock lost queue=%s", window.queue)
                    self._lost(window)
            missing = any(window.queue not in granted for window in held)
            pause_s = self._renew_s / 20 if missing else self._renew_s


def _by_broker(queues: Iterable[MessageQueue]) -> dict[str, list[MessageQueue]]:
    groups: dict[str, list[MessageQueue]] = {}
    for queue in sorted(queues):
        groups.setdefault(queue.broker_name, []).append(queue)
    return groups
