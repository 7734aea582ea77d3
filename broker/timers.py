"""Delivers messages whose time has come. Runs on the serving leader only.

The pending timers are replicated state (`store.timer_table`); nothing of them is kept here but
which ones are on their way: proposed, and not decided yet. A timer that is on its way is neither
proposed again nor recalled, so that in one term each is proposed once; what an old leader proposed
is applied or gone before a new one serves. A proposal whose outcome is not known in time is still
in the log, and ends with the term at the latest: its timers stay on their way until then.

A message is never proposed before its time by this replica's clock. While timers are pending, the
clock is looked at once a second at least, for it may jump.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from broker import delay_rules
from broker.appender import Appender
from broker.messages_command import EncodedMessage
from broker.timers_command import (
    TimersCancelled,
    TimersDelivered,
    deliver_prefix,
    encode_cancel,
)
from dledger.clock import Clock
from dledger.errors import DLedgerError, InvariantError, NotFoundError
from dledger.model import TopicConfig
from store.state_store import StateStore
from store.timer_table import Timer

logger = logging.getLogger(__name__)

COMMANDS_IN_FLIGHT_MAX: Final = 4
TIMERS_PER_COMMAND: Final = 256
COMMAND_BYTES_MAX: Final = 128 * 1024
CLOCK_CHECK_S: Final = 1.0
RETRY_S: Final = 0.1


class Proposer(Protocol):
    """What is asked of Raft."""

    def propose(
        self, command: bytes, callback: Callable[[object, DLedgerError | None], None]
    ) -> None:
        """Proposes a command: raises if it is refused, otherwise calls back once."""
        ...


class AlreadyLeavingError(NotFoundError):
    """The message is being delivered or recalled right now."""


class TimerDelivery:
    """Proposes the delivery of due timers. Satisfies `RaftListener`."""

    def __init__(
        self,
        store: StateStore,
        raft: Proposer,
        appender: Appender,
        clock: Clock,
        *,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        """Prepares the delivery; it begins when this replica serves."""
        self._store = store
        self._raft = raft
        self._appender = appender
        self._clock = clock
        self._on_fatal = on_fatal
        self._term: int | None = None
        self._leaving: set[bytes] = set()
        self._overdue: set[bytes] = set()  # of the leaving: the outcome is not known in time
        self._commands_in_flight = 0
        self._handle: asyncio.TimerHandle | asyncio.Handle | None = None
        self._armed_ms = 0
        self.delivered_count = 0

    # --- leadership -------------------------------------------------------------------------

    def on_serving(self, term: int) -> None:
        """Begins to deliver what is due."""
        self._reset(term)
        self._soon()

    def on_stopped_serving(self) -> None:
        """Ends delivering; what is on its way is the next leader's to find, or done."""
        self._reset(None)

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Does nothing: what counts is whether this replica serves."""

    def close(self) -> None:
        """Ends delivering."""
        self._reset(None)

    def _reset(self, term: int | None) -> None:
        self._term = term
        self._leaving = set()
        self._overdue = set()
        self._commands_in_flight = 0
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    # --- events -----------------------------------------------------------------------------

    def parked(self, due_ms: int) -> None:
        """Notes that a timer was added."""
        if self._term is not None and (self._handle is None or due_ms < self._armed_ms):
            self._arm(due_ms)

    def cancel(
        self, timers: Sequence[Timer], callback: Callable[[int, DLedgerError | None], None]
    ) -> None:
        """Takes timers away, so that they are never delivered.

        Args:
            timers: As just read from the store.
            callback: Called once with how many were taken away, or an error.

        Raises:
            AlreadyLeavingError: One is on its way already. Nothing was proposed.
            DLedgerError: Refused; nothing was proposed.

        Durability: at the callback without error, committed on a majority.
        """
        timer_keys = [timer.key for timer in timers]
        if not self._leaving.isdisjoint(timer_keys):
            raise AlreadyLeavingError("the message is being delivered or recalled")
        term = self._leave(timer_keys)

        def decided(result: object, error: DLedgerError | None) -> None:
            self._arrive(term, timer_keys, error)
            if error is not None:
                callback(0, error)
            elif isinstance(result, TimersCancelled):
                callback(len(result.removed), None)
            else:
                raise InvariantError(f"cancelling timers returned {result!r}")

        try:
            self._raft.propose(encode_cancel(timer_keys), decided)
        except DLedgerError:
            self._arrive(term, timer_keys)
            raise

    # --- delivering -------------------------------------------------------------------------

    def _soon(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_ms = 0
        self._handle = asyncio.get_running_loop().call_soon(self._run_guarded)

    def _arm(self, due_ms: int) -> None:
        """Looks again when the next timer is due, at the latest in a second."""
        if self._handle is not None:
            self._handle.cancel()
        self._armed_ms = due_ms
        delay_s = min(max(due_ms - self._clock.wall_ms(), 1) / 1000, CLOCK_CHECK_S)
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._run_guarded)

    def _retry(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_ms = 0
        self._handle = asyncio.get_running_loop().call_later(RETRY_S, self._run_guarded)

    def _run_guarded(self) -> None:
        self._handle = None
        if self._term is None:
            return
        try:
            self._run()
        except Exception as error:
            # Without this, messages would wait for ever behind one that cannot be read.
            logger.exception("delivering timers failed")
            self._on_fatal(error)

    def _run(self) -> None:
        if self._overdue:
            done = {key for key in self._overdue if not self._store.timers.exists(key)}
            self._overdue -= done
            self._leaving -= done
        while self._commands_in_flight < COMMANDS_IN_FLIGHT_MAX:
            timers = self._store.timers.due(
                self._clock.wall_ms(),
                count_max=TIMERS_PER_COMMAND,
                bytes_max=COMMAND_BYTES_MAX,
                skip=self._leaving,
            )
            if not timers:
                break
            if not self._deliver(timers):
                self._retry()
                return
        else:
            return  # the next decision looks again
        next_ms = self._store.timers.next_due_ms(skip=self._leaving)
        if next_ms is not None:
            self._arm(next_ms)

    def _deliver(self, timers: Sequence[Timer]) -> bool:
        """Proposes to deliver timers, and to drop those whose topic is gone; False if refused."""
        timer_keys: list[bytes] = []
        items: list[tuple[TopicConfig, int, list[EncodedMessage]]] = []
        dropped: list[Timer] = []
        for timer in timers:
            target = self._target(timer)
            if target is None:
                dropped.append(timer)
            else:
                timer_keys.append(timer.key)
                items.append((target[0], target[1], [target[2]]))
        try:
            if dropped:
                self.cancel(dropped, lambda _count, _error: None)
            if timer_keys:
                self._propose(timer_keys, items)
        except InvariantError:
            raise
        except DLedgerError as error:
            logger.warning("timers not proposed: count=%d reason=%s", len(timers), error)
            return False
        return True

    def _target(self, timer: Timer) -> tuple[TopicConfig, int, EncodedMessage] | None:
        try:
            topic_name, queue_id, message = delay_rules.delivered(timer.stored)
        except DLedgerError as error:
            logger.error("timer cannot be delivered: key=%s reason=%s", timer.key.hex(), error)
            return None
        topic = self._store.topic(topic_name)
        if topic is None:
            logger.warning("delayed message dropped, its topic is gone: topic=%s", topic_name)
            return None
        return topic, queue_id, message

    def _propose(
        self,
        timer_keys: list[bytes],
        items: list[tuple[TopicConfig, int, list[EncodedMessage]]],
    ) -> None:
        term = self._leave(timer_keys)
        self._commands_in_flight += 1

        def decided(result: object, error: DLedgerError | None) -> None:
            if term == self._term:
                self._commands_in_flight -= 1
            self._arrive(term, timer_keys, error)
            if error is not None:
                logger.warning("timers not delivered: count=%d reason=%s", len(timer_keys), error)
                if term == self._term:
                    self._retry()
                return
            if not isinstance(result, TimersDelivered) or result.messages is None:
                raise InvariantError(f"delivering timers that were there returned {result!r}")
            self.delivered_count += len(timer_keys)
            if term == self._term:
                self._soon()

        try:
            self._appender.append_within(deliver_prefix(timer_keys), items, decided)
        except DLedgerError:
            self._commands_in_flight -= 1
            self._arrive(term, timer_keys)
            raise

    def _leave(self, timer_keys: Sequence[bytes]) -> int | None:
        self._leaving.update(timer_keys)
        return self._term

    def _arrive(
        self, term: int | None, timer_keys: Sequence[bytes], error: DLedgerError | None = None
    ) -> None:
        # After a change of leadership the sets are others, of which these are no part.
        if term != self._term:
            return
        if error is None or error.definite:
            self._leaving.difference_update(timer_keys)
        else:
            self._overdue.update(timer_keys)
