"""What a history says about logs, in packed arrays: about 150 bytes per operation, no objects.

Operations are fed one by one, in any order; `log_rules` judges what has gathered. Witnesses are
kept as positions in the history, so that only those of a violation are read again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple, cast

from jepsen_tests.checkers.verdict import Violation
from jepsen_tests.history import Append, BatchAppend, Meta, Read, Value, topic_of

NEVER: Final = (1 << 63) - 1  # later than every time; also: no upper bound
ALWAYS: Final = -(1 << 63)
ABSENT: Final = -1
OK: Final = 0
INFO: Final = 1
FAIL: Final = 2
STATUS: Final = {"ok": OK, "info": INFO, "fail": FAIL}

_GROWTH_SLACK = 65_536
# A read: length within [lo, hi] during [inv, ret], its record, the largest min offset that it
# allows (or ABSENT), the node. Packing is several times faster than as many arrays.
_ROW = Struct("<7q")
PACK_ROW = _ROW.pack


class KeyedAck(NamedTuple):
    """An acknowledged append of an idempotent producer."""

    queue: int
    offset: int
    key: str
    attempt: int


class FinalRead(NamedTuple):
    """One answer of a final full read: offsets [first, last) came back."""

    queue: str
    node: str
    first: int
    last: int
    end: int | None
    low: int


class LowRow(NamedTuple):
    """A read that tells that the min offset was `lo` or more when it ended."""

    ret: int
    number: int
    node: int
    lo: int


class SessionRead(NamedTuple):
    """An eventual read, for the promises within one session."""

    inv: int
    number: int
    lo: int
    hi: int


class QueueLog:
    """Everything known of one queue: values by offset, and reads as bounds of its length."""

    __slots__ = (
        "acks",
        "conflicts",
        "far",
        "index",
        "lows",
        "name",
        "rows",
        "seen",
        "sessions",
        "sums",
        "values",
    )

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.index = index
        self.acks = 0
        self.values = array("q")
        self.seen = array("q")  # the record that first told the value
        self.far: list[tuple[int, int, int]] = []
        self.conflicts: list[tuple[int, int, int]] = []
        self.rows = bytearray()  # of `ReadRow`
        self.lows: dict[tuple[int, int], LowRow] = {}  # by node and min offset
        self.sessions: dict[tuple[int, str], list[SessionRead]] = {}
        self.sums: list[tuple[int, int, int, int]] = []  # first, count, sum, record

    def put(self, offset: int, value: int, number: int) -> None:
        """Notes that `offset` holds `value`, as record `number` says (rule C1)."""
        values = self.values
        size = len(values)
        if offset == size:
            values.append(value)
            self.seen.append(number)
        elif 0 <= offset < size:
            known = values[offset]
            if known == ABSENT:
                values[offset] = value
                self.seen[offset] = number
            elif known != value:
                self.conflicts.append((offset, self.seen[offset], number))
        elif size < offset < 2 * size + _GROWTH_SLACK:
            self.grow(offset)
            values.append(value)
            self.seen.append(number)
        else:
            # No memory by an unchecked offset: judged when the number of attempts is known.
            self.far.append((offset, value, number))

    def put_run(self, first: int, run: array[int], number: int) -> None:
        """Notes the values of consecutive offsets."""
        values = self.values
        if first == len(values):
            values.extend(run)
            self.seen.extend(array("q", [number]) * len(run))
            return
        for offset, value in enumerate(run, first):
            self.put(offset, value, number)

    def grow(self, size: int) -> None:
        """Extends what is known with unknown offsets up to `size`."""
        more = size - len(self.values)
        if more > 0:
            self.values.extend(array("q", [ABSENT]) * more)
            self.seen.extend(array("q", [ABSENT]) * more)

    def bound(self, lo: int, hi: int, inv: int, ret: int, number: int) -> None:
        """Notes that the length was in [lo, hi] at some time in [inv, ret]."""
        self.rows += PACK_ROW(lo, hi, inv, ret, number, ABSENT, ABSENT)

    def reads(self) -> Iterator[tuple[int, int, int, int, int, int, int]]:
        """Yields (lo, hi, inv, ret, record, largest min offset, node) of every read."""
        return _ROW.iter_unpack(self.rows)


class LogHistory:
    """All attempts and all queues of a history."""

    def __init__(self) -> None:
        self.meta = Meta()
        self.queues: dict[str, QueueLog] = {}
        self.attempt_of: dict[int, int] = {}  # value -> position in the arrays below
        self.inv = array("q")
        self.ret = array("q")  # NEVER unless acknowledged
        self.status = array("b")
        self.home = array("i")  # queue; -2 - topic if the producer was not told the queue
        self.number = array("q")
        self.key_of: dict[int, str] = {}
        self.keyed_acks: list[KeyedAck] = []
        self.batches: list[tuple[int, int]] = []  # first attempt, size
        self.finals: list[FinalRead] = []
        self.own: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        self.repeated: list[int] = []  # records that write a value already written
        self.malformed: list[int] = []
        self.loose: set[str] = set()  # topics with acknowledged messages of unknown place
        self.sums_unchecked = 0
        self.violations: list[Violation] = []
        self._names: dict[str, int] = {}
        self._topics: dict[str, int] = {}
        self._nodes: dict[str, int] = {}
        self._words: list[str] = []
        self._values: list[int] = []

    # --- names ---

    def number_of(self, value: Value) -> int:
        """Returns the integer that stands for a value; strings get negative ones."""
        if type(value) is int and 0 <= value < NEVER:
            return value
        return self._names.setdefault(str(value), -2 - len(self._names))

    def value_name(self, number: int) -> Value:
        """Returns the value for which a number stands."""
        if number >= 0:
            return number
        if len(self._words) != len(self._names):
            self._words = list(self._names)
        return self._words[-2 - number]

    def topic_index(self, topic: str) -> int:
        """Returns the home of attempts whose producer was told only the topic."""
        return -2 - self._topics.setdefault(topic, len(self._topics))

    def queue(self, name: str) -> QueueLog:
        """Returns the log of a queue, made at its first mention."""
        found = self.queues.get(name)
        if found is None:
            found = self.queues[name] = QueueLog(name, len(self.queues))
        return found

    # --- attempts ---

    def add_append(self, number: int, op: Append) -> None:
        """Adds one append."""
        value = op.value
        if type(value) is not int or not 0 <= value < NEVER:
            value = self.number_of(value)
        queue = self.queues.get(op.queue) or self.queue(op.queue)
        attempt = len(self.inv)
        if self.attempt_of.setdefault(value, attempt) != attempt:
            self.repeated.append(number)
            return
        self.inv.append(op.inv)
        self.home.append(queue.index)
        self.number.append(number)
        if op.key:
            self.key_of[attempt] = op.key
        if op.status != "ok":
            self.ret.append(NEVER)
            self.status.append(INFO if op.status == "info" else FAIL)
            return
        self.ret.append(op.ret)
        self.status.append(OK)
        queue.acks += 1
        offset = op.offset
        if offset is None or offset < 0:
            self.malformed.append(number)
        elif op.key:
            self.keyed_acks.append(KeyedAck(queue.index, offset, op.key, attempt))
        else:
            queue.put(offset, value, number)
            if self.meta.read_your_writes:
                own = self.own.setdefault((queue.index, op.process), [])
                own.append((op.ret, offset, number))

    def add_batch(self, number: int, op: BatchAppend) -> None:
        """Adds an append of several values that must enter together."""
        queue = self.queue(op.queue)
        status = STATUS[op.status]
        if status == OK and (op.offset is None or op.offset < 0):
            self.malformed.append(number)
            return
        values = [self.number_of(value) for value in op.values]
        if any(value in self.attempt_of for value in values) or len(set(values)) != len(values):
            self.repeated.append(number)
            return
        self.batches.append((len(self.inv), len(values)))
        queue.acks += status == OK
        for position, value in enumerate(values):
            self._add_attempt(number, value, queue.index, op.inv, op.ret, status)
            if status == OK and op.offset is not None:
                queue.put(op.offset + position, value, number)

    def add_loose(
        self, number: int, value: Value, topic: str, inv: int, ret: int, status: str
    ) -> None:
        """Adds a message whose queue and offset nobody was told (delayed, transactional)."""
        named = self.number_of(value)
        if named in self.attempt_of:
            self.repeated.append(number)
            return
        # Its place in the final log is taken at an unknown time after `inv`: never "ok" here.
        kind = FAIL if status == "fail" else INFO
        if status == "ok":
            self.loose.add(topic)
        self._add_attempt(number, named, self.topic_index(topic), inv, ret, kind)

    def _add_attempt(
        self, number: int, value: int, home: int, inv: int, ret: int, status: int
    ) -> None:
        self.attempt_of[value] = len(self.inv)
        self.inv.append(inv)
        self.ret.append(ret if status == OK else NEVER)
        self.status.append(status)
        self.home.append(home)
        self.number.append(number)

    def value_of(self, attempt: int) -> int:
        """Returns the value of an attempt (slow the first time; only for half-seen batches)."""
        if len(self._values) != len(self.attempt_of):
            self._values = list(self.attempt_of)
        return self._values[attempt]

    # --- reads ---

    def add_read(self, number: int, op: Read) -> None:
        """Adds a read; one that did not succeed says nothing."""
        if op.status != "ok":
            return
        queue = self.queues.get(op.queue) or self.queue(op.queue)
        first = op.start if op.first is None else op.first
        last = self._put_values(queue, number, op, first)
        came = last > first
        lo, hi = (last if came else 0), NEVER
        if op.max > 0 and not op.out_of_range:
            if not came:
                hi = op.start
            elif op.whole and last - first < op.max and op.offsets is None:
                hi = lo
        if op.end is not None:
            if not lo <= op.end <= hi:
                text = f"{last - first} entries came back from {first}, but end={op.end}"
                self._contradiction(number, op, text)
            lo = hi = op.end
        inv = op.inv
        if op.eventual:
            session = queue.sessions.setdefault((op.process, op.node), [])
            session.append(SessionRead(inv, number, lo, hi))
            if not (op.final and self.meta.equal_final_reads):
                inv = ALWAYS
        node = self._nodes.get(op.node)
        if node is None:
            node = self._nodes[op.node] = len(self._nodes)
        low_at_most = first if came else ABSENT
        if op.low is not None or op.out_of_range:
            low_at_most = self._add_low(queue, number, op, low_at_most, node)
        queue.rows += PACK_ROW(lo, hi, inv, op.ret, number, low_at_most, node)
        if op.final:
            end = hi if hi != NEVER else None
            self.finals.append(FinalRead(op.queue, op.node, first, last, end, op.low or 0))

    def observe(self, number: int, queue: str, offset: int, value: Value, t: int) -> None:
        """Adds what a delivery proves: the offset held the value at `t`."""
        if offset < 0:
            return
        log = self.queue(queue)
        log.put(offset, self.number_of(value), number)
        log.bound(offset + 1, NEVER, ALWAYS, t, number)

    def _put_values(self, queue: QueueLog, number: int, op: Read, first: int) -> int:
        """Notes the values that came back; returns the offset after the last."""
        values = op.values
        if values and op.offsets is not None:
            for offset, value in zip(op.offsets, values, strict=False):
                queue.put(offset, self.number_of(value), number)
            return max(op.offsets, default=-1) + 1
        if values:
            last = first + len(values)
            try:
                run = array("q", cast("list[int]", values))
            except (TypeError, OverflowError):
                run = array("q", map(self.number_of, values))
            if first >= 0 and queue.values[first:last] == run:
                return last  # what most reads bring is known already
            if min(run) < 0:
                run = array("q", map(self.number_of, values))
            queue.put_run(first, run, number)
            return last
        if op.count:
            if op.sum is not None:
                queue.sums.append((first, op.count, op.sum, number))
            return first + op.count
        return first

    def _add_low(self, queue: QueueLog, number: int, op: Read, at_most: int, node: int) -> int:
        """Notes what a read tells about the min offset; returns its upper bound (or ABSENT)."""
        lo = op.start + 1
        if op.low is not None:
            if at_most != ABSENT and at_most < op.low:
                self._contradiction(number, op, f"offset {at_most} came back, but low={op.low}")
            if op.out_of_range and op.low <= op.start < (op.end or 0):
                self._contradiction(number, op, f"refused from={op.start}, but low={op.low}")
            lo = at_most = op.low
        if lo > 0 and not op.eventual:
            # Of all reads that tell the same, the first to end says most.
            row = LowRow(op.ret, number, node, lo)
            queue.lows[node, lo] = min(row, queue.lows.get((node, lo), row))
        return at_most

    def _contradiction(self, number: int, op: Read, text: str) -> None:
        self.violations.append(Violation("C4", "impossible read", op.queue, text, (number,)))

    def homes(self, queue: QueueLog) -> tuple[int, int]:
        """Returns the homes whose attempts may be in `queue`: the queue and its topic."""
        return queue.index, self.topic_index(topic_of(queue.name))
