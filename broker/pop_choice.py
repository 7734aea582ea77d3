"""What a pop takes of a queue: the leader's choice, from applied state. Pure but for reading.

First what is visible again, then what was never given out. What one answer holds of one queue is
one run, for a client makes its handles from one start for each queue; so messages that come again
go with those that were given out as often, and not with new ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, NamedTuple, Protocol

from broker.filters import TagCodes
from broker.pop_state import (
    SPAN_MAX,
    Part,
    Pick,
    QueueRow,
    RunKey,
    offsets_of,
    pack_bits,
    queue_key,
    queue_row,
    run_row,
    runs_by_time,
    unpack_bits,
    valid_cursor,
)
from dledger.model import TopicConfig
from store.state_rows import RowReader

# Runs of one queue that may be out; beyond, only what comes again is given out.
RUNS_MAX: Final = 2048
RUNS_SEEN_MAX: Final = 64
CANDIDATES_MAX: Final = 2048
UNITS_SCANNED_MAX: Final = 4096
MESSAGES_TESTED_MAX: Final = 512
_UNIT = Struct(">qiq")

Test = Callable[[int, int], bool]


class State(Protocol):
    """What is read of the store."""

    @property
    def rows(self) -> RowReader:
        """The tables of features."""
        ...

    def queue_bounds(self, topic_id: int, queue_id: int) -> tuple[int, int]:
        """Returns the first queue offset held and the next one to be given."""
        ...

    def read_unit_bytes(self, topic_id: int, queue_id: int, start: int, count: int) -> bytes:
        """Returns packed ConsumeQueue units."""
        ...

    def consumer_offset(self, group: str, topic: str, queue_id: int) -> int | None:
        """Returns a group's offset, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What a pop asks for.

    Attributes:
        group: Consumer group.
        codes: Tag hashes that pass; None: all.
        test: What else a message must pass.
        order: Nothing while earlier messages of the queue are out.
        attempt_id: A pop in order that names the same one as the last gets the same again.
        deliveries_max: How often a message may be given out, given how often it had failed before
            it came to this queue; None: without end.
    """

    group: str
    codes: TagCodes = None
    test: Test | None = None
    order: bool = False
    attempt_id: str = ""
    deliveries_max: Callable[[int, int], int | None] = lambda _at, _size: None


class Chosen(NamedTuple):
    """A message to be given out."""

    offset: int
    physical_offset: int
    size_bytes: int


class _Candidate(NamedTuple):
    """A message that is visible again; None in place of one that is gone or not wanted."""

    key: RunKey
    deliveries: int
    offset: int
    chosen: Chosen | None


class Dead(NamedTuple):
    """A message that was given out too often."""

    key: RunKey
    offset: int
    physical_offset: int
    size_bytes: int
    deliveries: int


@dataclass(slots=True)
class Choice:
    """What a pop takes of one queue.

    Attributes:
        part: For the command; None if nothing changes.
        messages: To be given out.
        earlier: How often they were given out before.
        dead: Found on the way.
        rest: Messages behind those taken.
        visible_ms: When something that is out now is visible again; None: nothing is.
        skipped: Messages looked at and not wanted.
        is_full: So much is out that nothing new is given out.
    """

    part: Part | None = None
    messages: list[Chosen] = field(default_factory=list)
    earlier: int = 0
    dead: list[Dead] = field(default_factory=list)
    rest: int = 0
    visible_ms: int | None = None
    skipped: int = 0
    is_full: bool = False


class QueueView:
    """One group's view of one queue, at one moment."""

    def __init__(
        self,
        state: State,
        wish: Wish,
        topic: TopicConfig,
        queue_id: int,
        first_offset: Callable[[], int],
    ) -> None:
        """Reads the group's place in the queue.

        Args:
            state: The store.
            wish: What is asked for.
            topic, queue_id: The queue.
            first_offset: Where a group begins that has no offset in the queue.
        """
        self._state = state
        self._wish = wish
        self._topic = topic
        self._queue_id = queue_id
        self._key = queue_key(wish.group, topic.topic_id, queue_id)
        self._row: QueueRow | None = queue_row(state.rows, self._key)
        stored = state.consumer_offset(wish.group, topic.name, queue_id)
        self._stored = -1 if stored is None else stored
        self._seen = valid_cursor(self._row, self._stored)
        self._min, self.offset_max = state.queue_bounds(topic.topic_id, queue_id)
        begin = first_offset() if self._stored < 0 else self._stored
        self._begin = begin if self._seen < 0 else 0
        self.cursor = begin if self._seen < 0 else self._seen

    def choose(self, now_ms: int, *, count_max: int, bytes_max: int) -> Choice:
        """Returns what a pop takes: at most so many messages and, but for one, bytes."""
        choice = Choice()
        if self._seen >= 0:
            self._come_again(choice, now_ms, count_max, bytes_max)
        is_out = self._row is not None and self._seen >= 0 and self._row.run_count > 0
        if choice.messages or (self._wish.order and (choice.dead or is_out)):
            choice.rest = max(0, self.offset_max - self.cursor)
            return choice
        if self._row is None or self._seen < 0 or self._row.run_count < RUNS_MAX:
            self._take_new(choice, count_max, bytes_max)
        else:
            choice.is_full = True
        stop = self.cursor if choice.part is None else choice.part.stop
        choice.rest = max(0, self.offset_max - stop)
        return choice

    # --- what comes again -----------------------------------------------------------------------

    def _come_again(self, choice: Choice, now_ms: int, count_max: int, bytes_max: int) -> None:
        wish = self._wish
        limit = RUNS_MAX if wish.order else RUNS_SEEN_MAX
        runs = runs_by_time(self._state.rows, self._key, limit)
        later = [until_ms for until_ms, _ in runs if until_ms > now_ms]
        choice.visible_ms = min(later, default=None)
        repeats = bool(
            wish.order
            and wish.attempt_id
            and self._row is not None
            and self._row.attempt_id == wish.attempt_id
        )
        if later and wish.order and not repeats:
            return
        visible = [key for until_ms, key in runs if until_ms <= now_ms or repeats]
        candidates: Iterable[_Candidate] = self._candidates(visible)
        if wish.order:
            candidates = sorted(candidates, key=lambda candidate: candidate.offset)
        taken: dict[RunKey, int] = {}
        dropped: dict[RunKey, int] = {}
        size = 0
        for key, deliveries, offset, chosen in itertools.islice(candidates, CANDIDATES_MAX):
            if len(choice.messages) >= count_max:
                break
            bit = 1 << offset - key.start
            if chosen is None:
                dropped[key] = dropped.get(key, 0) | bit
                continue
            is_dead = self._is_dead(chosen, deliveries)
            if is_dead:
                place = (chosen.physical_offset, chosen.size_bytes)
                choice.dead.append(Dead(key, offset, *place, deliveries))
            if is_dead or (choice.messages and deliveries != choice.earlier):
                if wish.order:
                    break  # nothing behind it may come before it
                continue
            size += chosen.size_bytes
            if choice.messages and (size > bytes_max or not self._spans(choice.messages, offset)):
                break
            choice.messages.append(chosen)
            choice.earlier = deliveries
            taken[key] = taken.get(key, 0) | bit
        if taken or dropped:
            choice.messages.sort()
            choice.part = self._part(choice.messages, self.cursor, _picks(taken), _picks(dropped))

    def _is_dead(self, chosen: Chosen, deliveries: int) -> bool:
        limit = self._wish.deliveries_max(chosen.physical_offset, chosen.size_bytes)
        return limit is not None and deliveries >= limit

    def _candidates(self, keys: list[RunKey]) -> Iterator[_Candidate]:
        """Yields the messages of runs, read as they are needed."""
        for key in keys:
            run = run_row(self._state.rows, self._key, key)
            if run is not None:
                for offset, chosen in self._read(key.start, unpack_bits(run.bits)):
                    yield _Candidate(key, run.deliveries, offset, chosen)

    @staticmethod
    def _spans(messages: list[Chosen], offset: int) -> bool:
        offsets = [offset, *(message.offset for message in messages)]
        return max(offsets) - min(offsets) < SPAN_MAX

    def _read(self, start: int, bits: int) -> list[tuple[int, Chosen | None]]:
        """Returns the messages of a bitmap; None for what is gone or no longer wanted."""
        offsets = offsets_of(start, bits)
        held = [offset for offset in offsets if self._min <= offset < self.offset_max]
        found: list[tuple[int, Chosen | None]] = [
            (offset, None) for offset in offsets if offset not in held
        ]
        if not held:
            return found
        count = held[-1] - held[0] + 1
        units = self._state.read_unit_bytes(self._topic.topic_id, self._queue_id, held[0], count)
        for offset in held:
            at, size, code = _UNIT.unpack_from(units, (offset - held[0]) * _UNIT.size)
            wanted = self._passes(at, size, code)
            found.append((offset, Chosen(offset, at, size) if wanted else None))
        return found

    # --- what is new ----------------------------------------------------------------------------

    def _take_new(self, choice: Choice, count_max: int, bytes_max: int) -> None:
        start = offset = max(self.cursor, self._min)
        scan_max = UNITS_SCANNED_MAX if self._wish.test is None else MESSAGES_TESTED_MAX
        filtered = self._wish.codes is not None or self._wish.test is not None
        stop = min(self.offset_max, offset + (scan_max if filtered else count_max))
        size = 0
        messages: list[Chosen] = []
        is_full = False
        while offset < stop and not is_full:
            count = min(stop - offset, 256 if filtered else count_max)
            units = self._state.read_unit_bytes(self._topic.topic_id, self._queue_id, offset, count)
            for at, size_bytes, code in _UNIT.iter_unpack(units):
                if messages and offset - messages[0].offset >= SPAN_MAX:
                    is_full = True
                    break
                if self._passes(at, size_bytes, code):
                    size += size_bytes
                    if messages and (len(messages) >= count_max or size > bytes_max):
                        is_full = True
                        break
                    messages.append(Chosen(offset, at, size_bytes))
                offset += 1
        choice.skipped = offset - start - len(messages)
        choice.messages = messages
        dropped = [] if choice.part is None else choice.part.dropped
        if messages or offset > self.cursor or dropped or self._seen < 0:
            choice.part = self._part(messages, max(offset, self.cursor), [], dropped)

    def _passes(self, at: int, size: int, code: int) -> bool:
        wish = self._wish
        if wish.codes is not None and code not in wish.codes:
            return False
        return wish.test is None or wish.test(at, size)

    def _part(
        self, messages: list[Chosen], stop: int, taken: list[Pick], dropped: list[Pick]
    ) -> Part:
        start = messages[0].offset if messages else stop
        bits = 0
        for message in messages:
            bits |= 1 << message.offset - start
        return Part(
            topic=self._topic.name,
            queue_id=self._queue_id,
            seen_cursor=self._seen,
            seen_offset=self._stored,
            begin=self._begin,
            stop=stop,
            start=start,
            bits=pack_bits(bits),
            taken=taken,
            dropped=dropped,
        )


def _picks(bits_of: dict[RunKey, int]) -> list[Pick]:
    return [Pick(key, pack_bits(bits)) for key, bits in bits_of.items()]
