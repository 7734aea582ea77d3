"""The leader's send path: from encoded messages to proposals, and from commits to answers.

All that arrives in one turn of the event loop becomes one log entry, because an entry has a price
(a record header, a replication message, a share of an fdatasync, an LMDB transaction) that many
messages should share. A turn that gathers more than `command_bytes_max` becomes several.

Queue offsets are given when an entry gets its place in the log (`encode`), not when a message
arrives: what is refused in between leaves no hole. The next offset of a queue is what the store has
applied plus what is under way; the appender keeps that overlay for as long as this replica serves
in one term. A new serving term starts from the store, which by then has applied everything that
earlier terms can have committed.

A request whose producer numbers its messages (`SendIdentity`) is stored once, however often it
comes: a repetition gets the first one's place, or waits for the first one's outcome while that is
under way. Together the applied table and the requests under way know every request that can be
committed: what earlier terms left is applied before this replica serves, or gone. So deciding here,
before an entry gets its place, needs no second decision when it is applied.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from broker import riders
from broker.messages_command import (
    RUN,
    EncodedMessage,
    Messages,
    MessagesBuilder,
    Part,
    SendIdentity,
    Singles,
)
from broker.requests import AppendCallback, AppendRequest, RequestsUnderWay, call_back
from broker.riders import Rider
from broker.state_machine import MessagesApplied
from dledger.clock import Clock
from dledger.errors import (
    CommitTimeoutError,
    ConfigError,
    DLedgerError,
    FlowControlError,
    InvariantError,
    MessageRejectedError,
    NotLeaderError,
    OffsetOutOfRangeError,
    StaleSequenceError,
    TopicNotFoundError,
    invariant,
)
from dledger.model import QueueUnit, TopicConfig
from store.producer_lanes import LaneBatch, LaneLimits, Repeated

__all__ = ["Appender", "AppenderConfig", "AppenderStatistics", "EncodedMessage"]

_logger = logging.getLogger(__name__)

# (result of the command, None) or (None, error)
ProposalCallback = Callable[[object, DLedgerError | None], None]
# (ids of topics that had been deleted before: nothing is stored in them; None) or ((), error)
SinglesCallback = Callable[[Collection[int], DLedgerError | None], None]

# How long a repetition waits whose first attempt nobody waits for any more: without a pause its
# producer would ask again at once.
_RECHECK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class AppenderConfig:
    """Limits of the send path.

    Attributes:
        command_bytes_max: A log entry is closed once it has gathered this much. Larger entries
            save nothing more and delay heartbeats.
        request_bytes_max: Largest command that one request may become; at most Raft's limit.
        pending_bytes_max: Messages gathered or on their way to a majority; beyond it, appends
            are refused.
        commands_in_flight_max: Entries on their way to a majority. When reached, messages go on
            gathering, which makes entries larger exactly when the disk or network is slow.
        lanes: How much is remembered of producers that number their messages.
    """

    command_bytes_max: int = 128 * 1024
    request_bytes_max: int = 6 * 1024 * 1024
    pending_bytes_max: int = 48 * 1024 * 1024
    commands_in_flight_max: int = 64
    lanes: LaneLimits = LaneLimits()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "lanes" and value <= 0:
                raise ConfigError(f"appender.{name}", value, "must be greater than 0")
        if self.request_bytes_max > self.pending_bytes_max:
            raise ConfigError(
                "appender.request_bytes_max",
                self.request_bytes_max,
                f"must not exceed appender.pending_bytes_max ({self.pending_bytes_max})",
            )


@dataclass(frozen=True)
class AppenderStatistics:
    """Work under way."""

    pending_bytes: int
    commands_in_flight: int
    commands_waiting: int


class Proposer(Protocol):
    """What the appender asks of Raft; `dledger.raft.RaftNode` is one."""

    @property
    def is_serving(self) -> bool:
        """Whether this replica leads and may serve."""
        ...

    @property
    def term(self) -> int:
        """The current term."""
        ...

    @property
    def leader_id(self) -> str | None:
        """The known leader."""
        ...

    def propose(
        self, command: _Gathering, callback: Callable[[object, DLedgerError | None], None]
    ) -> None:
        """Proposes a command: raises if it is refused, otherwise calls back once."""
        ...

    def add_listener(self, listener: Appender) -> None:
        """Tells the listener about leadership."""
        ...


class AppliedState(Protocol):
    """What the appender asks of the store."""

    def queue_bounds(self, topic_id: int, queue_id: int) -> tuple[int, int]:
        """Returns first and next queue offset as applied."""
        ...

    def find_send(
        self, producer_id: int, topic_id: int, queue_id: int, sequence: int, count: int
    ) -> LaneBatch | Repeated:
        """Returns where a producer's request is stored already, or what it is otherwise."""
        ...

    def read_units(self, topic_id: int, queue_id: int, start: int, count: int) -> list[QueueUnit]:
        """Returns ConsumeQueue units."""
        ...


class _Gathering:
    """One command being gathered, then proposed. Satisfies `StampedCommand`."""

    __slots__ = (
        "_owner",
        "builder",
        "prefix",
        "requests",
        "riders",
        "singles_callbacks",
        "size_bytes",
        "whole",
    )

    def __init__(
        self,
        owner: Appender,
        limits: LaneLimits,
        prefix: bytes = b"",
        whole: ProposalCallback | None = None,
    ) -> None:
        self._owner = owner
        self.builder = MessagesBuilder(limits)
        self.prefix = prefix  # another command, of which the messages are a part
        self.whole = whole  # called back instead of each request's own callback
        self.size_bytes = len(prefix) + self.builder.size_bytes
        self.requests: list[AppendRequest] = []
        self.singles_callbacks: list[SinglesCallback] = []
        self.riders: list[tuple[Rider, Part, int]] = []

    def add_singles(self, singles: Singles, callback: SinglesCallback) -> None:
        """Adds single messages of many requests, which are called back as one."""
        self.builder.add_singles(singles)
        self.size_bytes = len(self.prefix) + self.builder.size_bytes
        self.singles_callbacks.append(callback)

    def add(self, request: AppendRequest, queue_id: int, rider: Rider | None) -> None:
        """Adds the messages of a request."""
        self.builder.add(request.topic.topic_id, queue_id, request.part)
        self.size_bytes = len(self.prefix) + self.builder.size_bytes
        if rider is not None:
            self.riders.append((rider, request.part, request.topic.topic_id))
            self.size_bytes += riders.prefix_bytes(self.riders)
        self.requests.append(request)

    def encode(self, body_offset: int) -> bytearray:
        """Returns the command for its place in the log; called once."""
        if not self.riders:
            start = len(self.prefix)
            messages = self._owner._encode(self.builder, body_offset + start)[0]
            return bytearray(self.prefix) + messages if start else messages
        start = riders.prefix_bytes(self.riders)
        messages, time_ms = self._owner._encode(self.builder, body_offset + start)
        return bytearray().join((riders.encode_prefix(self.riders, time_ms), messages))

    def takes(self, rider: Rider | None) -> bool:
        """Whether a request with this rider, or with none, may join."""
        if self.whole is not None:
            return False
        if rider is None:
            return not self.riders
        return 0 < len(self.riders) < riders.RIDERS_MAX


class Appender:
    """Turns messages into log entries. Satisfies `RaftListener`.

    Concurrency: the event loop only. Every accepted append is answered exactly once, provided
    that Raft calls back for every proposal.
    """

    def __init__(
        self, raft: Proposer, store: AppliedState, config: AppenderConfig, clock: Clock
    ) -> None:
        """Makes an appender and registers it as a listener of `raft`.

        Args:
            raft: Where commands are proposed.
            store: What has been applied.
            config: Limits.
            clock: Store timestamps.
        """
        self._raft = raft
        self._store = store
        self._config = config
        self._clock = clock
        self._serving_term: int | None = None
        # Next queue offset of queues written in this term.  Invariant: at least the store's.
        self._next_offsets: dict[tuple[int, int], int] = {}
        self._under_way = RequestsUnderWay()
        self._store_timestamp_ms = 0
        self._waiting: deque[_Gathering] = deque()  # the last one may still grow
        self._gatherers: list[Callable[[], None]] = []
        self._flush_scheduled = False
        self._commands_in_flight = 0
        self._pending_bytes = 0
        raft.add_listener(self)

    @property
    def pending_bytes(self) -> int:
        """Bytes of commands gathered or on their way to a majority."""
        return self._pending_bytes

    @property
    def request_bytes_max(self) -> int:
        """Largest command that one request may become."""
        return self._config.request_bytes_max

    def statistics(self) -> AppenderStatistics:
        """Returns how much is under way."""
        return AppenderStatistics(self._pending_bytes, self._commands_in_flight, len(self._waiting))

    def append(
        self,
        topic: TopicConfig,
        queue_id: int,
        messages: Messages,
        callback: AppendCallback,
        identity: SendIdentity | None = None,
        *,
        rider: Rider | None = None,
    ) -> bool:
        """Takes the messages of one request; they become consecutive messages of one queue.

        Args:
            topic: As the store holds it.
            queue_id: A queue of it.
            messages: At least one. Not copied yet: they must not change until the callback.
            callback: Called once, later, with the first queue offset, the physical offset of
                each message (valid to keep) and None; or with -1, an empty list and an error,
                whose `definite` says whether the messages may still be stored.
            identity: By which a repetition of the request is known, if its producer numbers its
                messages.
            rider: What is applied together with the messages.

        Returns:
            Whether the request repeats an earlier one. Then it is not appended, and the callback
            gets the earlier one's outcome; of what is no longer held, only the first message's
            physical offset.

        Raises, with nothing accepted and no callback to come:
            NotLeaderError: This replica does not serve as leader.
            FlowControlError: Too much is under way.
            MessageRejectedError: The request is too large for one log entry.
            StaleSequenceError: Later messages of the producer are stored already; whether this
                request is, nobody remembers.

        Durability: at the callback without error the messages are durable on a majority and
        applied here.
        """
        if self._serving_term is None:
            raise NotLeaderError(self._raft.leader_id, self._raft.term)
        if identity is not None and self._repeats(
            topic.topic_id, queue_id, identity, len(messages), callback
        ):
            return True
        part = Part(topic.topic_id, messages, identity)
        size = part.command_bytes + (riders.prefix_bytes([(rider, part, 0)]) if rider else 0)
        self._check_room(len(messages), size)
        gathering = self._gathering(size, rider)
        before = gathering.size_bytes
        request = AppendRequest(part, topic, queue_id, callback)
        if request.lane is not None:
            self._under_way.add(request.lane, request)
        gathering.add(request, queue_id, rider)
        self._pending_bytes += gathering.size_bytes - before
        self._schedule_flush()
        return False

    def append_singles(self, singles: Singles, callback: SinglesCallback) -> None:
        """Takes single messages of many requests to many queues, which share one callback.

        Args:
            singles: About `command_bytes_max` in all.
            callback: Called once, later. Without an error `singles` holds their places, but for
                those in topics that had been deleted. It must not raise.

        Raises, with nothing accepted and no callback to come: as `append`.

        Durability: as `append`.
        """
        if self._serving_term is None:
            raise NotLeaderError(self._raft.leader_id, self._raft.term)
        size = singles.size_bytes + len(singles.runs) * RUN.size
        self._check_room(len(singles.messages), size)
        gathering = self._gathering(size, None)
        before = gathering.size_bytes
        gathering.add_singles(singles, callback)
        self._pending_bytes += gathering.size_bytes - before
        self._schedule_flush()

    def before_flush(self, hand_over: Callable[[], None]) -> None:
        """Calls this once before the messages of this turn are proposed.

        For those who gather messages themselves while requests come in, to append them then.
        """
        self._gatherers.append(hand_over)
        self._schedule_flush()

    def _gathering(self, size: int, rider: Rider | None) -> _Gathering:
        """Returns the command that so many bytes of messages join."""
        gathering = self._waiting[-1] if self._waiting else None
        if (
            gathering is None
            or gathering.size_bytes + size > self._config.command_bytes_max
            or not gathering.takes(rider)
        ):
            gathering = _Gathering(self, self._config.lanes)
            self._waiting.append(gathering)
            self._pending_bytes += gathering.size_bytes
        return gathering

    def _check_room(self, count: int, size: int) -> None:
        """Raises what `append` says if so many messages of this size cannot be taken now."""
        config = self._config
        if size > config.request_bytes_max:
            raise MessageRejectedError(
                f"{count} messages with their index make {size} bytes, more than "
                f"appender.request_bytes_max = {config.request_bytes_max}"
            )
        if self._pending_bytes + size > config.pending_bytes_max:
            raise FlowControlError(
                f"appender.pending_bytes_max = {config.pending_bytes_max} is reached: "
                f"{self._pending_bytes} bytes wait for a majority"
            )

    def append_within(
        self,
        prefix: bytes,
        items: Sequence[tuple[TopicConfig, int, Sequence[EncodedMessage]]],
        callback: ProposalCallback,
    ) -> None:
        """Proposes messages as part of another command: an entry of its own.

        Args:
            prefix: What stands before the MESSAGES command in the entry.
            items: Topic, queue id and messages.
            callback: Called once, later, with the command's result or an error.

        Raises, with nothing accepted and no callback to come: as `append`.

        Queue offsets are given as for `append`, when the entry gets its place. So the command
        must store all of its messages, or none ever again in the term: whoever proposes sees to
        it that the condition which the prefix sets will hold.
        """
        if self._serving_term is None:
            raise NotLeaderError(self._raft.leader_id, self._raft.term)
        gathering = _Gathering(self, self._config.lanes, prefix, callback)
        for topic, queue_id, messages in items:
            part = Part(topic.topic_id, messages)
            gathering.add(AppendRequest(part, topic, queue_id, _nothing), queue_id, None)
        size = gathering.size_bytes
        self._check_room(sum(len(messages) for _, _, messages in items), size)
        self._waiting.append(gathering)
        self._pending_bytes += size
        self._schedule_flush()

    # --- leadership -------------------------------------------------------------------------

    def on_serving(self, term: int) -> None:
        """Begins to accept messages; queue offsets go on from what the store has applied."""
        self._fail_waiting()
        self._next_offsets.clear()
        self._under_way.clear()
        self._store_timestamp_ms = 0
        self._serving_term = term

    def on_stopped_serving(self) -> None:
        """Refuses messages; those not proposed yet are answered as certainly not stored."""
        self._serving_term = None
        self._next_offsets.clear()
        self._fail_waiting()
        self._under_way.clear()

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Does nothing: what counts is whether this replica serves."""

    # --- repetitions ------------------------------------------------------------------------

    def _repeats(
        self,
        topic_id: int,
        queue_id: int,
        identity: SendIdentity,
        count: int,
        callback: AppendCallback,
    ) -> bool:
        """Answers a repeated request, now or later; False if the request is new."""
        producer_id, sequence = identity
        stored = self._store.find_send(producer_id, topic_id, queue_id, sequence, count)
        loop = asyncio.get_running_loop()
        if isinstance(stored, LaneBatch):
            loop.call_soon(self._answer_stored, topic_id, queue_id, stored, callback)
            return True
        first = self._under_way.find((producer_id, topic_id, queue_id), sequence, count)
        if isinstance(first, AppendRequest):
            if first.decided:  # its time is over, but not its proposal's
                loop.call_later(
                    _RECHECK_S, self._recheck, topic_id, queue_id, identity, count, callback
                )
            else:
                first.callbacks.append(callback)
            return True
        if Repeated.TOO_OLD in (stored, first):
            raise StaleSequenceError(
                f"producer {producer_id:016x} has later messages than {sequence} in the queue"
            )
        return False

    def _recheck(
        self,
        topic_id: int,
        queue_id: int,
        identity: SendIdentity,
        count: int,
        callback: AppendCallback,
    ) -> None:
        stored = self._store.find_send(
            identity.producer_id, topic_id, queue_id, identity.sequence, count
        )
        if isinstance(stored, LaneBatch):
            self._answer_stored(topic_id, queue_id, stored, callback)
        else:
            error = CommitTimeoutError("an earlier attempt is under way; its outcome is unknown")
            call_back(callback, -1, [], error)

    def _answer_stored(
        self, topic_id: int, queue_id: int, stored: LaneBatch, callback: AppendCallback
    ) -> None:
        first, count = stored.queue_offset, stored.message_count
        try:
            units = self._store.read_units(topic_id, queue_id, first, count)
            offsets = [unit.physical_offset for unit in units]
        except OffsetOutOfRangeError:
            offsets = [stored.physical_offset]
        except DLedgerError as error:
            call_back(callback, -1, [], error)
            return
        call_back(callback, first, offsets, None)

    # --- proposing --------------------------------------------------------------------------

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled and (self._waiting or self._gatherers):
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Proposes what has gathered, as far as the window allows."""
        gatherers, self._gatherers = self._gatherers, []
        for hand_over in gatherers:
            hand_over()
        self._flush_scheduled = False
        while self._waiting and self._commands_in_flight < self._config.commands_in_flight_max:
            self._propose(self._waiting.popleft())

    def _propose(self, gathering: _Gathering) -> None:
        self._commands_in_flight += 1

        def decided(result: object, error: DLedgerError | None) -> None:
            self._commands_in_flight -= 1
            self._pending_bytes -= gathering.size_bytes
            self._answer(gathering, result, error)
            self._schedule_flush()

        try:
            self._raft.propose(gathering, decided)
        except InvariantError:
            raise
        except DLedgerError as error:
            # Refused before it got a place: no queue offset was taken.
            decided(None, error)

    def _encode(self, builder: MessagesBuilder, body_offset: int) -> tuple[bytearray, int]:
        # Without this, offsets could be given out from a store that is still behind the log,
        # and every replica would stop at an entry that does not fit.
        invariant(self._serving_term is not None, "an entry got its place while not serving")
        now = max(self._clock.wall_ms(), self._store_timestamp_ms)
        self._store_timestamp_ms = now
        return builder.encode(body_offset, now, self._take_offsets), now

    def _take_offsets(self, topic_id: int, queue_id: int, count: int) -> int:
        queue = (topic_id, queue_id)
        first = self._next_offsets.get(queue)
        if first is None:
            first = self._store.queue_bounds(topic_id, queue_id)[1]
        self._next_offsets[queue] = first + count
        return first

    # --- answering --------------------------------------------------------------------------

    def _answer(self, gathering: _Gathering, result: object, error: DLedgerError | None) -> None:
        if gathering.whole is not None:
            if error is None:
                self._under_way.applied()
            _call_whole(gathering.whole, result, error)
            return
        missing: tuple[int, ...] = ()
        if error is None:
            invariant(
                isinstance(result, MessagesApplied), "unexpected result of messages", result=result
            )
            missing = result.missing_topic_ids  # type: ignore[attr-defined]
            self._under_way.applied()
        for request in gathering.requests:
            failure = error
            if missing and request.topic.topic_id in missing:
                failure = TopicNotFoundError(f"topic {request.topic.name} was deleted meanwhile")
            self._under_way.decided(request, failure)
            request.answer(failure)
        for callback in gathering.singles_callbacks:
            callback(missing, error)

    def _fail_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for gathering in waiting:
            self._pending_bytes -= gathering.size_bytes
            error = NotLeaderError(self._raft.leader_id, self._raft.term)
            self._answer(gathering, None, error)


def _call_whole(callback: ProposalCallback, result: object, error: DLedgerError | None) -> None:
    try:
        callback(result, error)
    except InvariantError:
        raise
    except Exception:
        _logger.exception("proposal callback failed")


def _nothing(first: int, offsets: list[int], error: DLedgerError | None) -> None:
    """The callback of a part of a larger command, which is called back as a whole."""
