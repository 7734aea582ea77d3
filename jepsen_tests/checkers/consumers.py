"""Rules D1-D3 and D7-D10: what consumer groups are promised, by linear scans after sorting."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate, pairwise

from jepsen_tests.checkers.events import (
    NEVER,
    ConsumerHistory,
    Delivery,
    Ending,
    Findings,
    GroupEvents,
    Message,
    Ownership,
)
from jepsen_tests.history import Value

NS_PER_MS = 1_000_000
RETRY_PREFIX = "%"  # queues of the broker's own topics: %RETRY%group, %DLQ%group


class GroupJudge:
    """Judges one group (or one consumer of a broadcast group, D9)."""

    def __init__(self, history: ConsumerHistory, events: GroupEvents, findings: Findings) -> None:
        self.history = history
        self.events = events
        self.info = events.info
        self.name = events.name
        self.findings = findings
        self.by_value: dict[Value, list[Delivery]] = defaultdict(list)
        for delivery in events.deliveries:
            self.by_value[delivery.value].append(delivery)
        self.ends_of: dict[Value, list[Ending]] = defaultdict(list)
        for ending in events.endings:
            self.ends_of[ending.value].append(ending)
        self.owners_of: dict[str, list[Ownership]] = defaultdict(list)
        for owner in events.ownership:
            self.owners_of[owner.queue].append(owner)
        self.duplicates = 0

    def judge(self, visible: set[Value], delivered_anywhere: set[Value]) -> None:
        """Applies all rules.

        Args:
            visible: Values that some log shows.
            delivered_anywhere: Values that any group got.
        """
        self.phantoms()
        if self.info.drained:
            self.lost(visible | delivered_anywhere)
        queues = {d.queue for d in self.events.deliveries} | self.events.commits.keys()
        for queue in sorted(queues):
            if not queue.startswith(RETRY_PREFIX):
                QueueOrder(self, queue).judge()
        if self.info.ordered:
            self.shards()
        self.repeated()
        self.retries()

    # --- D10 ---

    def phantoms(self) -> None:
        """D10: only what was sent, and not what certainly failed, is delivered."""
        for value, deliveries in self.by_value.items():
            first = deliveries[0]
            message = self.history.messages.get(value)
            if message is None:
                self.add("D10", "phantom", f"value {value} was never sent", first.number)
            elif message.status == "fail":
                text = f"value {value} was reported as failed"
                self.add("D10", "aborted delivery", text, message.number, first.number)
            elif self.info.topics and not self.history.wants(self.info, message):
                text = f"value {value} does not match the subscription"
                self.add("D10", "not subscribed", text, message.number, first.number)
        for value, number in self.events.dead.items():
            if value not in self.history.messages:
                self.add("D10", "phantom", f"dead value {value} was never sent", number)

    # --- D1 ---

    def lost(self, seen: set[Value]) -> None:
        """D1: every committed message that matches is delivered before the drain ended."""
        keys = {
            message.key
            for value in self.by_value
            if (message := self.history.messages.get(value)) is not None and message.key
        }
        missing = [
            message
            for message in self.history.messages.values()
            if message.value not in self.by_value
            and self.history.wants(self.info, message)
            and not (message.key and message.key in keys)
            and message.value not in self.events.dead
            and self._must_arrive(message, seen)
        ]
        if not missing:
            return
        places = {
            value: (queue, offset)
            for queue, values in self.history.log_values.items()
            for offset, value in enumerate(values)
        }
        got: dict[str, list[int]] = defaultdict(list)
        for delivery in self.events.deliveries:
            got[delivery.queue].append(delivery.offset)
        for message in missing:
            queue, offset = places.get(message.value, ("", -1))
            kind = "lost message"
            if queue in got:
                low, high = min(got[queue]), max(got[queue])
                part = "prefix" if offset < low else "suffix" if offset > high else "middle"
                kind = f"lost {part}"
            text = (
                f"value {message.value} ({queue or message.topic} offset {offset}) was never "
                f"delivered; {len(missing)} messages are missing"
            )
            self.add("D1", kind, text, message.number)

    def _must_arrive(self, message: Message, seen: set[Value]) -> bool:
        if message.value in self.history.recalls:
            return False
        if message.half:
            committed = self.history.committed_half(message.value)
            return committed is True or (committed is None and message.value in seen)
        return message.status == "ok" or (message.status == "info" and message.value in seen)

    # --- D3 per shard ---

    def shards(self) -> None:
        """D3: messages of one shard key arrive first in the order in which they were sent."""
        shards: dict[str, list[tuple[Delivery, Message]]] = defaultdict(list)
        for deliveries in self.by_value.values():
            message = self.history.messages.get(deliveries[0].value)
            if message is not None and message.shard:
                shards[message.shard].append((deliveries[0], message))
        for shard, firsts in shards.items():
            firsts.sort(key=lambda pair: pair[0][:2])
            latest: tuple[int, Delivery] | None = None
            for delivery, message in firsts:
                ended = message.ret if message.status == "ok" else NEVER
                if latest is not None and ended < latest[0]:
                    text = f"shard {shard}: a message sent later was delivered first"
                    self.add("D3", "shard out of order", text, latest[1].number, delivery.number)
                    break
                if latest is None or message.inv > latest[0]:
                    latest = (message.inv, delivery)

    # --- D7 ---

    def repeated(self) -> None:
        """D7: every further delivery of a message has a cause, and there are not too many."""
        last: Delivery | None = None
        for value, deliveries in self.by_value.items():
            places = {(deliveries[0].queue, deliveries[0].offset): deliveries[0]}
            for early, late in pairwise(deliveries):
                # A retried message may come again from its first queue too, if the offset
                # committed there was lost: the cause lies after its last delivery from there.
                before = places.get((late.queue, late.offset))
                caused = self._was_retried(value, early.t, late.t, 1)
                if before is None:
                    # Each retry puts one copy at a place of its own.
                    caused = caused or self._was_retried(value, 0, late.t, len(places))
                    caused = caused or self._handed_back_twice(value, late)
                    before = early
                places[late.queue, late.offset] = late
                if caused:
                    continue
                self.duplicates += 1
                last = late
                if not self._has_cause(value, before, late):
                    text = f"value {value} was delivered again without a cause"
                    self.add("D7", "duplicate without cause", text, early.number, late.number)
        limit = self.history.meta.duplicates_max
        if limit is not None and self.duplicates > limit and last is not None:
            text = f"{self.duplicates} duplicates, at most {limit} are allowed"
            self.add("D7", "too many duplicates", text, last.number)

    def _handed_back_twice(self, value: Value, late: Delivery) -> bool:
        """Whether a copy may be there because handing back met a fault, and was done again."""
        failed = [ending.t for ending in self.ends_of.get(value, ()) if ending.result != "ok"]
        return bool(failed) and self.history.fault_between(min(failed), late.t)

    def _was_retried(self, value: Value, begin: int, end: int, times: int) -> bool:
        retries = sum(
            ending.result != "ok" and begin <= ending.t <= end
            for ending in self.ends_of.get(value, ())
        )
        return retries >= times

    def _has_cause(self, value: Value, early: Delivery, late: Delivery) -> bool:
        if self.history.fault_between(early.t, late.t):
            return True
        if any(early.t <= owner.t <= late.t for owner in self.owners_of.get(early.queue, ())):
            return True
        if not self.info.ordered and self._owned_together(early, late):
            return True
        unfinished = not any(
            early.t <= ending.t <= late.t and ending.consumer == early.consumer
            for ending in self.ends_of.get(value, ())
        )
        return late.attempt > early.attempt and unfinished  # the broker's time-out

    def _owned_together(self, early: Delivery, late: Delivery) -> bool:
        """Whether both consumers were given the queue, as happens while it changes hands.

        Groups without exclusive queues allow that for as long as a rebalance may take, which is
        promised, or longer if a fault kept one of them from hearing of it. Two that stay owners
        beside each other are no cause: their group has lost its balance.
        """
        if early.consumer == late.consumer:
            return False
        first = self._holding(early)
        second = self._holding(late)
        if first is None or second is None:
            return False
        begin, end = max(first[0], second[0]), min(first[1], second[1])
        if begin > end:
            return False
        limit = self.history.meta.two_owners_ms * NS_PER_MS
        return end - begin <= limit or self.history.fault_between(begin, end)

    def _holding(self, delivery: Delivery) -> tuple[int, int] | None:
        """Returns from when until when the consumer of a delivery held its queue."""
        begin: int | None = None
        for owner in self.owners_of.get(delivery.queue, ()):
            if owner.consumer != delivery.consumer:
                continue
            if owner.begins and owner.t <= delivery.t:
                begin = owner.t
            elif not owner.begins and owner.t >= delivery.t:
                return None if begin is None else (begin, owner.t)
        return None if begin is None else (begin, NEVER)

    # --- D8 ---

    def retries(self) -> None:
        """D8: a message ends consumed or dead, not both, within its attempts."""
        limit = self.info.max_attempts
        for value, deliveries in self.by_value.items():
            first, last = deliveries[0], deliveries[-1]
            dead = self.events.dead.get(value)
            consumed = next((e for e in self.ends_of.get(value, ()) if e.result == "ok"), None)
            excuses = self._excuses(deliveries)
            # A redelivery after a lost commit begins to count its attempts anew.
            if limit is not None and len(deliveries) > limit * (1 + excuses):
                text = f"value {value}: {len(deliveries)} deliveries, {limit} attempts allowed"
                self.add("D8", "too many attempts", text, first.number, last.number)
            if dead is not None and consumed is not None and not excuses:
                text = f"value {value} was consumed, and is in the dead-letter queue"
                self.add("D8", "consumed and dead", text, consumed.number, dead)
            if dead is None and consumed is None and self.info.drained and self.events.endings:
                text = f"value {value} was delivered, but neither consumed nor dead-lettered"
                self.add("D8", "vanished", text, last.number)

    def _excuses(self, deliveries: list[Delivery]) -> int:
        """Counts the faults and the changes of owner that overlap the life of a message.

        Retries come from a queue of their own, which changes owners as any other does. The change
        may have begun before the message came: then two owners were given the same place.
        """
        first, last = deliveries[0], deliveries[-1]
        faults = sum(
            fault.inv <= last.t and (fault.ret is None or fault.ret >= first.t)
            for fault in self.history.faults
        )
        queues = {delivery.queue for delivery in deliveries}
        owners = [owner for queue in queues for owner in self.owners_of.get(queue, ())]
        changes = sum(first.t <= owner.t <= last.t and owner.begins for owner in owners)
        twice = sum(
            (early.queue, early.offset) == (late.queue, late.offset)
            and self._owned_together(early, late)
            for early, late in pairwise(sorted(deliveries, key=_place))
            if not self.info.ordered
        )
        return faults + changes + twice

    def add(self, rule: str, kind: str, text: str, *witnesses: int) -> None:
        """Reports a violation of this group."""
        if self.info.broadcast:
            rule = f"D9/{rule}"
        self.findings.add(rule, kind, f"group {self.name}", text, *witnesses)


def _place(delivery: Delivery) -> tuple[str, int, int]:
    return delivery.queue, delivery.offset, delivery.t


class QueueOrder:
    """Judges D2 and D3 of one group on one queue."""

    def __init__(self, group: GroupJudge, queue: str) -> None:
        self.group = group
        self.queue = queue
        self.owners = group.owners_of.get(queue, [])
        self.deliveries = [d for d in group.events.deliveries if d.queue == queue]
        self.endings = [e for e in group.events.endings if e.queue == queue]
        self.commits = group.events.commits.get(queue, [])
        values = group.history.log_values.get(queue, [])
        self.wanted = [self._is_wanted(value) for value in values]
        self.sums = list(accumulate(self.wanted, initial=0))

    def judge(self) -> None:
        """Applies both rules."""
        self._commits_after_done()
        self._begins_at_committed()
        if self.group.info.ordered:
            self._in_order()

    def _is_wanted(self, value: Value | None) -> bool:
        message = self.group.history.messages.get(value) if value is not None else None
        if message is None:
            # Of an offset of unknown value a filter may have kept the message back.
            return not self.group.info.tags
        return self.group.history.wants(self.group.info, message)

    def _wanted_between(self, begin: int, end: int) -> int:
        """Returns how many offsets in [begin, end) the group wants."""
        begin, end = min(begin, len(self.wanted)), min(end, len(self.wanted))
        return self.sums[end] - self.sums[begin] if end > begin else 0

    def _base(self) -> int:
        """Returns where the group began: before it nothing is owed."""
        return self.group.history.first_offsets.get((self.group.name, self.queue), 0)

    # --- D2 ---

    def _commits_after_done(self) -> None:
        """D2: when commit(x) begins, every wanted offset below x has been done with."""
        if not self.group.info.topics:
            return  # a group that says of no topic that it consumes it, and only commits
        done: dict[int, int] = {}
        for ending in self.endings:
            if ending.result != "suspend":
                done.setdefault(ending.offset, ending.t)
        offset, latest, culprit = self._base(), -1, -1
        for commit in sorted(self.commits, key=lambda commit: commit.offset):
            while offset < commit.offset and latest < NEVER:
                if offset >= len(self.wanted) and self.group.info.tags:
                    break
                if offset >= len(self.wanted) or self.wanted[offset]:
                    ended = done.get(offset, NEVER)
                    if ended > latest:
                        latest, culprit = ended, offset
                offset += 1
            if latest > commit.inv:
                text = (
                    f"{self.queue}: offset {commit.offset} was committed before {culprit} was done"
                )
                seen = next((d.number for d in self.deliveries if d.offset == culprit), -1)
                self.group.add("D2", "committed before done", text, seen, commit.number)
                return

    def _begins_at_committed(self) -> None:
        """D2: a new owner begins where commits say, not above and not too far below."""
        began: dict[str, Ownership] = {}
        invoked = [commit.inv for commit in self.commits]
        highest = list(accumulate((commit.offset for commit in self.commits), max))
        events: list[Ownership | Delivery] = sorted([*self.owners, *self.deliveries])
        for event in events:
            if isinstance(event, Ownership):
                began.pop(event.consumer, None)
                if event.begins:
                    began[event.consumer] = event
                continue
            owner = began.pop(event.consumer, None)
            if owner is None:
                continue
            position = bisect_right(invoked, event.t)
            committed = highest[position - 1] if position else self._base()
            if self.group.info.ordered and self._wanted_between(committed, event.offset):
                text = f"{self.queue}: began at offset {event.offset}, committed is {committed}"
                self.group.add("D2", "skipped on assign", text, owner.number, event.number)
            self._not_far_below(owner, event)

    def _not_far_below(self, owner: Ownership, first: Delivery) -> None:
        window = self.group.history.meta.commit_window
        if window is None:
            return
        stored = [c for c in self.commits if c.status == "ok" and c.ret < owner.t]
        if not stored:
            return
        best = max(stored, key=lambda commit: commit.offset)
        if first.offset < best.offset - window:
            text = (
                f"{self.queue}: began at offset {first.offset}, but {best.offset} was committed, "
                f"window {window}"
            )
            self.group.add("D2", "forgotten offset", text, best.number, first.number)

    # --- D3 ---

    def _in_order(self) -> None:
        """D3: no jump forward ever; a jump back only with a cause."""
        highest = self._base() - 1
        runs: dict[str, Delivery] = {}
        excused: set[str] = set()
        for event in self._all_events():
            if isinstance(event, Ownership):
                runs.pop(event.consumer, None)
                continue
            if isinstance(event, Ending):
                if event.result != "ok":
                    excused.add(event.consumer)
                continue
            last = runs.get(event.consumer)
            since = highest if last is None else last.offset
            number = -1 if last is None else last.number
            if self._wanted_between(since + 1, event.offset):
                text = f"{self.queue}: offset {event.offset} was delivered after {since}"
                self.group.add("D3", "jump forward", text, number, event.number)
            elif (
                last is not None
                and event.offset <= last.offset
                and event.consumer not in excused
                and not self.group.history.fault_between(last.t, event.t)
            ):
                text = f"{self.queue}: offset {event.offset} was delivered after {since}"
                self.group.add("D3", "jump back", text, number, event.number)
            runs[event.consumer] = event
            excused.discard(event.consumer)
            highest = max(highest, event.offset)

    def _all_events(self) -> Iterator[Ownership | Delivery | Ending]:
        events: list[Ownership | Delivery | Ending] = [
            *self.owners,
            *self.deliveries,
            *self.endings,
        ]
        yield from sorted(events, key=lambda event: event[:2])
