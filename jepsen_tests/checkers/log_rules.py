"""Rules C1-C5: is a log with known offsets linearizable? Exact, and a pass instead of a search.

Offsets are dense, so the order of the appends is given and only their times are free. Let p(o) be
the instant of the append at offset o. Every operation bounds some p from below (a) or above (b):

* an append at o: inv <= p(o) <= ret; an indeterminate one has no upper bound;
* a read that proves a length in [lo, hi]: p(lo - 1) <= ret and inv <= p(hi).

p must not decrease, so a history is legal iff every value has one place (C1, C2, C3), the largest
lower bound up to o never exceeds the smallest upper bound from o on (C4), and the offsets of
unknown value can be given to indeterminate appends that were invoked early enough (C5).
Operations that end and begin at the same instant count as concurrent.
"""

from __future__ import annotations

from array import array
from itertools import accumulate
from operator import gt

from jepsen_tests.checkers.log_gaps import BatchGaps
from jepsen_tests.checkers.log_reads import judge_lows, judge_sessions, judge_sums, torn_reads
from jepsen_tests.checkers.log_store import (
    ABSENT,
    ALWAYS,
    FAIL,
    INFO,
    NEVER,
    KeyedAck,
    LogHistory,
    QueueLog,
)
from jepsen_tests.checkers.verdict import Violation

_VIOLATIONS_PER_RULE_MAX = 5


def judge_log(history: LogHistory) -> list[Violation]:
    """Judges every queue; queues are independent of each other (locality)."""
    found = list(history.violations)
    places = array("q", [ABSENT]) * len(history.inv)  # attempt -> offset
    judges = [QueueJudge(history, queue, places) for queue in history.queues.values()]
    # Places first, of all queues: a value in two queues is one value at two places.
    for judge in judges:
        judge.place_values()
    placed_keys = _place_keys(history, judges, places)
    for judge in judges:
        judge.judge_times(placed_keys)
        found += judge.found
    return found


def _place_keys(
    history: LogHistory, judges: list[QueueJudge], places: array[int]
) -> dict[str, tuple[int, int]]:
    """Gives every key of an idempotent producer its one (queue, offset): C2 over keys."""
    placed: dict[str, tuple[int, int]] = {}
    first: dict[str, int] = {}
    earliest: dict[str, int] = {}

    def claim(key: str, queue: int, offset: int, attempt: int) -> None:
        if placed.setdefault(key, (queue, offset)) != (queue, offset):
            text = f"key {key} at offset {offset} and at offset {placed[key][1]}"
            numbers = (history.number[first[key]], history.number[attempt])
            judges[queue].report("C2", "duplicate", text, *numbers)
        first.setdefault(key, attempt)

    for attempt, key in history.key_of.items():
        if history.status[attempt] != FAIL:
            earliest[key] = min(earliest.get(key, NEVER), history.inv[attempt])
        if places[attempt] != ABSENT and history.home[attempt] >= 0:
            claim(key, history.home[attempt], places[attempt], attempt)
    for ack in history.keyed_acks:
        claim(ack.key, ack.queue, ack.offset, ack.attempt)
        judges[ack.queue].add_keyed_ack(ack, earliest[ack.key])
    return placed


class QueueJudge:
    """Judges one queue."""

    def __init__(self, history: LogHistory, queue: QueueLog, places: array[int]) -> None:
        self.history = history
        self.queue = queue
        self.places = places
        self.found: list[Violation] = []
        self.lower = array("q")  # a(o)
        self.upper = array("q")  # b(o)
        self.filled: dict[int, str] = {}  # offsets of unknown value but known key
        self.groups: list[tuple[int, int]] = []  # offsets [begin, end) of batches
        self.highest = array("q")  # the largest lower bound up to an offset
        self.lowest = array("q")  # the smallest upper bound from an offset on

    def report(self, rule: str, kind: str, text: str, *witnesses: int) -> None:
        """Adds a violation unless the rule has been shown often enough here."""
        if sum(found.rule == rule for found in self.found) < _VIOLATIONS_PER_RULE_MAX:
            known = tuple(number for number in witnesses if number >= 0)
            self.found.append(Violation(rule, kind, self.queue.name, text, known))

    # --- C1, C2, C3 ---

    def place_values(self) -> None:
        """Gives every known value its offset and bounds (C1, C2, C3)."""
        queue, history = self.queue, self.history
        self._place_far()
        for offset, first, second in queue.conflicts:
            self.report("C1", "two values at one offset", f"offset {offset}", first, second)
        attempt_of, places, status = history.attempt_of, self.places, history.status
        inv, ret, home = history.inv, history.ret, history.home
        homes = history.homes(queue)
        lower, upper = self.lower, self.upper
        for offset, value in enumerate(queue.values):
            attempt = attempt_of.get(value, ABSENT)
            if attempt < 0:
                lower.append(ALWAYS)
                upper.append(NEVER)
                if value != ABSENT:
                    self._phantom(offset, value)
                continue
            lower.append(inv[attempt])
            upper.append(ret[attempt])
            if places[attempt] != ABSENT:
                self._second_place(attempt, offset, value)
            else:
                places[attempt] = offset
            if status[attempt] == FAIL:
                self._aborted(attempt, offset, value)
            if home[attempt] not in homes:
                self._misplaced(attempt, offset, value)
        self._place_batches()

    def _place_far(self) -> None:
        """Places offsets that were too far off to be believed when they were read."""
        attempts = len(self.history.inv)
        for offset, value, number in sorted(self.queue.far):
            if 0 <= offset < len(self.queue.values) + attempts:
                self.queue.grow(offset)
                self.queue.put(offset, value, number)
            else:
                text = f"offset {offset}, but the history has only {attempts} appends"
                self.report("C5", "unknown append", text, number)

    def _phantom(self, offset: int, value: int) -> None:
        text = f"value {self.history.value_name(value)} at offset {offset} was never written"
        self.report("C3", "phantom", text, self.queue.seen[offset])

    def _aborted(self, attempt: int, offset: int, value: int) -> None:
        text = f"value {self.history.value_name(value)} at offset {offset} was reported as failed"
        self.report(
            "C3", "aborted read", text, self.history.number[attempt], self.queue.seen[offset]
        )

    def _misplaced(self, attempt: int, offset: int, value: int) -> None:
        text = f"value {self.history.value_name(value)} was sent to another queue"
        self.report("C3", "misplaced", text, self.history.number[attempt], self.queue.seen[offset])

    def _second_place(self, attempt: int, offset: int, value: int) -> None:
        text = (
            f"value {self.history.value_name(value)} at offset {offset} "
            f"and at offset {self.places[attempt]} (of this or another queue)"
        )
        numbers = (self.history.number[attempt], self.queue.seen[offset])
        self.report("C2", "duplicate", text, *dict.fromkeys(numbers))

    # --- batches and keys ---

    def _place_batches(self) -> None:
        """A batch of which one value is known has all its values next to it, at one instant."""
        history, places, queue = self.history, self.places, self.queue
        for first, size in history.batches:
            if history.home[first] != queue.index:
                continue
            known = [at for at in range(first, first + size) if places[at] != ABSENT]
            if not known:
                continue
            base = places[known[0]] - (known[0] - first)
            number = history.number[first]
            if base < 0 or any(places[at] - (at - first) != base for at in known):
                self.report("C4", "torn batch", f"not together at offset {base}", number)
                continue
            self._extend(base + size)
            for at in range(first, first + size):
                offset = base + at - first
                if queue.values[offset] != ABSENT and places[at] == ABSENT:
                    other = queue.seen[offset]
                    text = f"another value at offset {offset}, inside the batch at {base}"
                    self.report("C4", "torn batch", text, number, other)
                    break
                if places[at] == ABSENT:
                    places[at] = offset
                    queue.values[offset] = history.value_of(at)
                    queue.seen[offset] = number
                    self.lower[offset], self.upper[offset] = history.inv[at], history.ret[at]
            self.groups.append((base, base + size))

    def _extend(self, size: int) -> None:
        self.queue.grow(size)
        more = size - len(self.lower)
        if more > 0:
            self.lower.extend(array("q", [ALWAYS]) * more)
            self.upper.extend(array("q", [NEVER]) * more)

    def add_keyed_ack(self, ack: KeyedAck, earliest: int) -> None:
        """Adds an acknowledgement of an idempotent producer: its key is at this offset."""
        history, offset = self.history, ack.offset
        number = history.number[ack.attempt]
        if offset >= len(self.lower) + len(history.inv):
            self.report("C5", "unknown append", f"offset {offset} is beyond every append", number)
            return
        self._extend(offset + 1)
        value = self.queue.values[offset]
        self.upper[offset] = min(self.upper[offset], history.ret[ack.attempt])
        if value != ABSENT:
            attempt = history.attempt_of.get(value, ABSENT)
            if attempt >= 0 and history.key_of.get(attempt) != ack.key:
                seen = self.queue.seen[offset]
                text = f"offset {offset} was acknowledged for key {ack.key}"
                self.report("C1", "two values at one offset", text, number, seen)
            return
        if self.filled.setdefault(offset, ack.key) != ack.key:
            text = f"offset {offset} was acknowledged for keys {ack.key} and {self.filled[offset]}"
            self.report("C1", "two values at one offset", text, number)
        self.lower[offset] = max(self.lower[offset], earliest)

    # --- C4, C5 ---

    def judge_times(self, placed_keys: dict[str, tuple[int, int]]) -> None:
        """Judges real-time order (C4) and the offsets of unknown value (C5)."""
        queue = self.queue
        longest, number = max(((read[0], read[4]) for read in queue.reads()), default=(0, ABSENT))
        if longest > len(self.lower) + len(self.history.inv):
            text = f"a length of {longest}, but the history has {len(self.history.inv)} appends"
            self.report("C5", "unknown append", text, number)
            longest = 0
        self._extend(longest)
        self._apply_reads()
        for begin, end in self.groups:
            self.lower[begin] = max(self.lower[begin:end])
            self.upper[end - 1] = min(self.upper[begin:end])
        self.highest = array("q", accumulate(self.lower, max))
        self.lowest = array("q", accumulate(reversed(self.upper), min))
        self.lowest.reverse()
        if any(map(gt, self.highest, self.lowest)):
            self._explain_order()
        self._judge_gaps(placed_keys)
        self.found += torn_reads(queue, self.groups)
        self.found += judge_sessions(queue, self.history)
        self.found += judge_lows(queue, self.history)
        self.found += judge_sums(queue, self.history)

    def _apply_reads(self) -> None:
        lower, upper, queue = self.lower, self.upper, self.queue
        size = len(lower)
        for lo, hi, inv, ret, _, _, _ in queue.reads():
            if 0 < lo <= size and ret < upper[lo - 1]:
                upper[lo - 1] = ret
            if hi < size and inv > lower[hi]:
                lower[hi] = inv

    def _explain_order(self) -> None:
        """Reports the first witnesses of every kind of broken order."""
        kinds: set[str] = set()
        pairs: set[tuple[int, int]] = set()
        for offset, (late, early) in enumerate(zip(self.highest, self.lowest, strict=True)):
            if late <= early or (late, early) in pairs:
                continue
            pairs.add((late, early))
            if len(pairs) > 50:
                break
            after, after_reads = self._witness_lower(offset, late, early)
            before, before_reads, place = self._witness_upper(offset, early)
            kind = self._kind_of(after_reads, before_reads, place, early)
            if kind not in kinds:
                kinds.add(kind)
                text = f"at offset {offset}: the second began after the first had ended"
                if kind == "read from the future":
                    text = f"offset {offset} was read before its append began"
                self.report("C4", kind, text, before, after)

    def _kind_of(self, after_reads: bool, before_reads: bool, place: int, ended: int) -> str:
        if not after_reads:
            return "read from the future" if before_reads else "real-time order broken"
        if before_reads:
            return "length went back"
        seen_later = any(read[0] > place and read[3] > ended for read in self.queue.reads())
        return "stale read" if seen_later else "lost write"

    def _witness_lower(self, offset: int, time: int, ended: int) -> tuple[int, bool]:
        """Returns a record that began after `ended` and holds back `offset`; whether it is a read.

        `time` is the latest such beginning; of several reads the first tells most.
        """
        place = offset
        while self.lower[place] != time:
            place -= 1
        attempt = self._attempt_at(place)
        if attempt >= 0 and self.history.inv[attempt] == time:
            return self.history.number[attempt], False
        reads = list(self.queue.reads())
        fitting = [(inv, number) for _, hi, inv, _, number, _, _ in reads if hi <= offset]
        late = [found for found in fitting if found[0] > ended]
        late = late or [(inv, number) for _, _, inv, _, number, _, _ in reads if inv == time]
        return (min(late)[1], True) if late else (ABSENT, False)

    def _witness_upper(self, offset: int, time: int) -> tuple[int, bool, int]:
        """Returns the record whose end is the upper bound `time`, whether a read, and its place."""
        place = offset
        while self.upper[place] != time:
            place += 1
        attempt = self._attempt_at(place)
        if attempt >= 0 and self.history.ret[attempt] == time:
            return self.history.number[attempt], False, place
        for ack in self.history.keyed_acks:
            if ack.offset == place and self.history.ret[ack.attempt] == time:
                return self.history.number[ack.attempt], False, place
        fitting = [
            (read[0] != place + 1, read[4]) for read in self.queue.reads() if read[3] == time
        ]
        return (min(fitting)[1], True, place) if fitting else (ABSENT, False, place)

    def _attempt_at(self, offset: int) -> int:
        if offset >= len(self.queue.values):
            return ABSENT
        return self.history.attempt_of.get(self.queue.values[offset], ABSENT)

    def _judge_gaps(self, placed_keys: dict[str, tuple[int, int]]) -> None:
        """C5: the j-th offset of unknown value needs the j-th oldest unseen append."""
        queue = self.queue
        values = queue.values
        known = len(values)
        gaps = [
            offset
            for offset in range(len(self.lower))
            if (offset >= known or values[offset] == ABSENT) and offset not in self.filled
        ]
        if not gaps:
            return
        unseen = self._unseen(placed_keys)
        for position, offset in enumerate(gaps):
            proof = self.lowest[offset]
            if position < len(unseen) and unseen[position] <= proof:
                continue
            number, _, _ = self._witness_upper(offset, proof)
            kind = "unknown append" if position >= len(unseen) else "append from the future"
            text = (
                f"offset {offset} is proven to exist, but of its value nothing is known and only "
                f"{len(unseen)} indeterminate appends could be at the {len(gaps)} such offsets"
            )
            self.report("C5", kind, text, number)
            return
        batches = self._unseen_batches()
        if batches:
            singles = [(inv, 1) for inv in self._unseen(placed_keys, without_batches=True)]
            if not BatchGaps(queue, gaps, singles + batches, self.highest, self.lowest).possible():
                number, _, _ = self._witness_upper(gaps[0], self.lowest[gaps[0]])
                text = f"no indeterminate appends and batches fit the unknown offsets {gaps[:8]}"
                self.report("C5", "unknown append", text, number)

    def _unseen_batches(self) -> list[tuple[int, int]]:
        """Returns beginning and size of the indeterminate batches without a place."""
        history = self.history
        return [
            (history.inv[first], size)
            for first, size in history.batches
            if history.home[first] == self.queue.index
            and history.status[first] == INFO
            and self.places[first] == ABSENT
        ]

    def _unseen(
        self, placed_keys: dict[str, tuple[int, int]], without_batches: bool = False
    ) -> list[int]:
        """Returns when the indeterminate appends without a place began, in order."""
        history, homes = self.history, self.history.homes(self.queue)
        batched = {
            first + position
            for first, size in (history.batches if without_batches else ())
            for position in range(size)
        }
        unseen: list[int] = []
        of_keys: dict[str, int] = {}
        for attempt, place in enumerate(self.places):
            if place != ABSENT or history.status[attempt] != INFO:
                continue
            if history.home[attempt] not in homes or attempt in batched:
                continue
            key = history.key_of.get(attempt)
            if key is None:
                unseen.append(history.inv[attempt])
            elif key not in placed_keys:
                of_keys[key] = min(of_keys.get(key, NEVER), history.inv[attempt])
        return sorted(unseen + list(of_keys.values()))
